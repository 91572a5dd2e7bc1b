"""Train the text-to-image reference checkpoint: python -m training.train_scenes

Stages run in order and each resumes where it stopped: tokenizer, features, transformer, decoder
(the tokenizer's, trained on alone), export. Then measure with stagevar-probe evaluate.

--preset gpu trains a larger model on scenes and on emoji (make them first: python -m
training.data.emoji --output runs/emoji.zip); any other option wins over the preset.

Several processes train together with torchrun --nproc-per-node N -m training.train_scenes --threads
1: on two cores twice as fast as one process with two threads.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from stagevar_probe.datasets.scenes import VOCABULARY, passed, training_set
from stagevar_probe.datasets.scenes.prompts import TRAINING_SEED
from stagevar_runtime.families.tokenizers.bsq_vae import BSQVAE
from stagevar_runtime.text.words import WordEncoder

from .data import DataError
from .data.captioned import Captioned
from .export import round_to_half
from .scenes.export import export, restore
from .scenes.fit import fit
from .scenes.presets import PRESETS, emoji_beside, fill, in_presets, same_recipe
from .scenes.settings import SIZES, TEXT_LENGTH, TEXT_WIDTH, TOKENIZER, transformer_config
from .scenes.tokenizer import encode, given_tokenizer, quantize, train_tokenizer
from .scenes.transformer import TextToImage
from .stages import Staged, show_sizes
from .state import Interrupted, load_torch, save_json, save_torch

T = TypeVar("T")
STAGES = ("tokenizer", "features", "transformer", "decoder", "export")
CHUNK = 3000  # pictures rendered at once
TOKENIZER_PICTURES = 9000
CEILING_PICTURES = 500


class Run(Staged):
    """A method per stage."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.preset = PRESETS[args.preset]
        self.given = given_tokenizer(args.tokenizer, TOKENIZER) if args.tokenizer else None
        own = ("minutes", "learning_rate", "wrong_captions")
        self.fit = replace(self.preset.fit, **{name: getattr(args, name) for name in own})
        self.emoji = Captioned(args.emoji) if args.emoji else None
        new = [w for w in self.emoji.words() if w not in VOCABULARY] if self.emoji else []
        self.vocabulary = (*VOCABULARY, *new)
        recipe = {name: getattr(args, name) for name in ("width", "depth", "pictures")}
        if self.emoji:
            recipe |= {"emoji": self.emoji.digest, "emoji_share": args.emoji_share}
        same_recipe(self.folder, recipe | {"words": len(self.vocabulary)})

    def model(self) -> TextToImage:
        """The transformer and its words, untrained."""
        words = WordEncoder(self.vocabulary, TEXT_LENGTH, TEXT_WIDTH)
        return TextToImage(transformer_config(self.args.width, self.args.depth), words, SIZES)

    def pixels(self, seed: int) -> Tensor:
        """Pictures (N, 3, 128, 128) uint8 to train the tokenizer on."""
        scenes = training_set(TOKENIZER_PICTURES, seed=seed)[0]
        if self.emoji is None:
            return scenes
        count = emoji_beside(len(scenes), self.args.emoji_share)
        return torch.cat([scenes, self.emoji.training_set(count, seed)[0]])

    def describe(self) -> str:
        """What the run will do."""
        args, plan = self.args, self.preset
        size = sum(p.numel() for p in self.model().transformer.parameters()) / 1e6
        pictures = f"{args.pictures} scenes"
        if self.emoji is not None:
            own = len(self.emoji.captions("train"))
            count = emoji_beside(args.pictures, args.emoji_share)
            pictures += f" and {count} emoji ({own} of {args.emoji}, in turn)"
        tokenizer = (
            f"{args.tokenizer_minutes:g} min, batch {plan.tokenizer.batch}; then its decoder alone "
            f"{args.decoder_minutes:g} min, batch {plan.decoder.batch}"
        )
        batches = ", ".join(f"{batch} to scale {count}" for count, batch, _ in self.fit.prefixes)
        return "\n".join(
            (
                f"preset {args.preset} on {args.device}: {', '.join(args.stages)}",
                f"pictures: {pictures}; {len(self.vocabulary)} words",
                f"tokenizer: {args.tokenizer or tokenizer}",
                f"transformer: width {args.width}, {args.depth} blocks, {size:.1f} M parameters, "
                f"{args.minutes:g} min, batches {batches}",
                f"state in {self.folder} (the same command goes on), result in {args.output}",
            )
        )

    def first(self, make: Callable[[], T]) -> T:
        """What ``make`` gives: the first process makes it, the others then read what it saved."""
        if not dist.is_initialized():
            return make()
        if dist.get_rank() > 0:
            dist.barrier()
            return make()
        made = make()
        dist.barrier()
        return made

    def tokenizer(self) -> BSQVAE:
        """The tokenizer, by one process."""
        return self.first(self._tokenizer)

    def decoder(self) -> BSQVAE:
        """The tokenizer with its decoder trained on, by one process."""
        return self.first(self._decoder)

    def features(self) -> tuple[Tensor, list[str]]:
        """Encoded training pictures (N, d, 16, 16) in half precision, with their captions.

        Chunks are shared out over the processes and kept, so that an interrupted run goes on.
        """
        model, log = self.tokenizer(), self.logger("features")
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        folder = self.folder / "features"
        folder.mkdir(parents=True, exist_ok=True)
        makers = self._pictures()
        paths = [folder / f"{name}.pt" for name in makers]
        for path in paths[rank::world]:
            if path.exists():
                continue
            if self.stop():
                raise Interrupted
            pixels, texts = makers[path.stem]()
            save_torch(path, {"features": encode(model, pixels, self.device), "captions": texts})
            log({"file": path.name, "pictures": len(texts)})
        if world > 1:
            dist.barrier()
        parts = [part for path in paths if (part := load_torch(path)) is not None]
        captions = [caption for part in parts for caption in part["captions"]]
        return torch.cat([part["features"] for part in parts]), captions

    def _pictures(self) -> dict[str, Callable[[], tuple[Tensor, list[str]]]]:
        """What makes every chunk of training pictures (N, 3, 128, 128) and captions, by name."""
        makers: dict[str, Callable[[], tuple[Tensor, list[str]]]] = {}
        if self.emoji is not None:  # first, for it takes longest
            count = emoji_beside(self.args.pictures, self.args.emoji_share)
            makers["emoji"] = partial(self.emoji.training_set, count, TRAINING_SEED)
        for i in range(-(-self.args.pictures // CHUNK)):
            makers[f"{i:04}"] = partial(training_set, CHUNK, TRAINING_SEED + i)
        return makers

    def _tokenizer(self) -> BSQVAE:
        """The tokenizer, trained if it is not yet, rounded to the precision of its file."""
        if self.given is not None:
            return self.given.to(self.device)
        plan = replace(self.preset.tokenizer, minutes=self.args.tokenizer_minutes)
        path = self.folder / "tokenizer.pt"
        saved = load_torch(path)
        done = saved is not None and saved["spent"] >= plan.minutes * 60
        pixels = torch.empty(0) if done else self.pixels(seed=1)
        log = self.logger("tokenizer")
        model = train_tokenizer(TOKENIZER, pixels, SIZES, plan, path, self.device, log, self.stop)
        round_to_half(model)
        if not (self.folder / "tokenizer.json").exists():
            save_json(self.folder / "tokenizer.json", self._ceiling(model))
        return model

    def _decoder(self) -> BSQVAE:
        """The tokenizer with its decoder trained on, if it is not yet; its tokens are the same."""
        start = self._tokenizer()
        if self.given is not None:
            return start
        plan = replace(self.preset.decoder, minutes=self.args.decoder_minutes)
        path = self.folder / "decoder.pt"
        saved = load_torch(path)
        done = saved is not None and saved["spent"] >= plan.minutes * 60
        pixels = torch.empty(0) if done else self.pixels(seed=6)
        log, files = self.logger("decoder"), (path, self.device)
        model = train_tokenizer(TOKENIZER, pixels, SIZES, plan, *files, log, self.stop, start)
        round_to_half(model)
        if not (self.folder / "decoder.json").exists():
            save_json(self.folder / "decoder.json", self._ceiling(model))
        return model

    @torch.inference_mode()
    def _ceiling(self, model: BSQVAE) -> dict[str, float]:
        """What the tokenizer keeps: error, and pass rates of reconstructions."""
        pixels, texts = training_set(CEILING_PICTURES, seed=2)
        real, rebuilt = pixels.float().div(255), self._rebuilt(model, pixels)
        kept = {
            "l1": (rebuilt - real).abs().mean().item(),
            "passed": sum(passed(real, texts)) / len(texts),
            "passed_rebuilt": sum(passed(rebuilt, texts)) / len(texts),
        }
        if self.emoji is not None:
            unseen = self.emoji.pixels("held_out_pair")[:CEILING_PICTURES]
            off = self._rebuilt(model, unseen) - unseen.float().div(255)
            kept["l1_emoji"] = off.abs().mean().item()
        return kept

    def _rebuilt(self, model: BSQVAE, pixels: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] after encoding, rounding and decoding."""
        parts = []
        for part in pixels.split(50):
            features = encode(model, part, self.device).to(self.device).float()
            parts.append(model.decode(quantize(model, features, SIZES)).cpu())
        return torch.cat(parts)

    def transformer(self) -> dict[str, Tensor]:
        """The averaged weights of transformer and words, trained if they are not yet."""
        tokenizer, (features, captions) = self.tokenizer(), self.features()
        log = self.logger("transformer")
        model = self.model()
        if self.args.initial:
            restore(model, self.args.initial)

        def export_early(state: dict[str, Tensor], step: int) -> None:
            export(state, tokenizer, self.folder / "early", self.vocabulary)
            log({"step": step, "exported": True})

        path = self.folder / "transformer.pt"
        return fit(
            model,
            *(tokenizer, features, captions, self.fit, path, self.device, log, export_early),
            stop=self.stop,
        )

    def export(self) -> None:
        """Write the files that ship."""
        state, decoder = self.transformer(), self.decoder()
        if not dist.is_initialized() or dist.get_rank() == 0:
            show_sizes(export(state, decoder, self.args.output, self.vocabulary))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.train_scenes", description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="cpu", help="default: %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, kind, text in (
        ("runs", Path, "resumable state"),
        ("output", Path, "folder to write"),
        ("tokenizer-minutes", float, "tokenizer's training time"),
        ("decoder-minutes", float, "its decoder's, trained on alone"),
        ("pictures", int, "rendered scenes"),
        ("emoji", Path, "zip by training.data.emoji to train on, too"),
        ("emoji-share", float, "of all pictures; 0 is without emoji"),
        ("minutes", float, "transformer's training time"),
        ("learning-rate", float, "its highest; less with --initial"),
        ("wrong-captions", float, "share of pictures shown with another's caption"),
        ("width", int, "transformer's, in steps of 32"),
        ("depth", int, "transformer's blocks"),
    ):
        defaults = in_presets(name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=kind, help=f"{text} ({defaults})")
    parser.add_argument("--tokenizer", type=Path, help="trained one to use; it is not trained on")
    parser.add_argument("--initial", type=Path, help="exported folder to go on from")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the asked stages in order; return the exit code."""
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        run = Run(fill(args))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if os.environ.get("RANK", "0") == "0":
        print(run.describe(), flush=True)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
    if args.device == "cuda":
        torch.set_float32_matmul_precision("high")
    return run.perform(
        {
            "tokenizer": run.tokenizer,
            "features": run.features,
            "transformer": run.transformer,
            "decoder": run.decoder,
            "export": run.export,
        }
    )


if __name__ == "__main__":
    sys.exit(main())
