"""Train the text-to-image reference checkpoint: python -m training.train_scenes

Stages run in order and each resumes where it stopped: tokenizer, features, transformer, decoder
(the tokenizer's, trained on alone), export. Then measure with stagevar-probe evaluate.

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
from .export import round_to_half
from .scenes.export import export, restore
from .scenes.fit import FitPlan, fit
from .scenes.recipe import same_recipe
from .scenes.settings import SIZES, TEXT_LENGTH, TEXT_WIDTH, TOKENIZER, transformer_config
from .scenes.tokenizer import (
    DECODER,
    TokenizerPlan,
    encode,
    given_tokenizer,
    quantize,
    train_tokenizer,
)
from .scenes.transformer import TextToImage
from .stages import Staged, show_sizes
from .state import Interrupted, load_torch, save_json, save_torch

T = TypeVar("T")
STAGES = ("tokenizer", "features", "transformer", "decoder", "export")
CHUNK = 3000  # pictures rendered at once
TOKENIZER_PICTURES = 9000
CEILING_PICTURES = 500
TOKENIZING = TokenizerPlan(11.0)
DECODING = replace(DECODER, minutes=9.0)
FIT = FitPlan(76.0)


class Run(Staged):
    """A method per stage."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.given = given_tokenizer(args.tokenizer, TOKENIZER) if args.tokenizer else None
        own = ("minutes", "learning_rate", "wrong_captions")
        self.fit = replace(FIT, **{name: getattr(args, name) for name in own})
        recipe = {name: getattr(args, name) for name in ("width", "depth", "pictures")}
        same_recipe(self.folder, recipe | {"words": len(VOCABULARY)})

    def model(self) -> TextToImage:
        """The transformer and its words, untrained."""
        words = WordEncoder(VOCABULARY, TEXT_LENGTH, TEXT_WIDTH)
        return TextToImage(transformer_config(self.args.width, self.args.depth), words, SIZES)

    def pixels(self, seed: int) -> Tensor:
        """Pictures (N, 3, 128, 128) uint8 to train the tokenizer on."""
        return training_set(TOKENIZER_PICTURES, seed=seed)[0]

    def describe(self) -> str:
        """What the run will do."""
        args = self.args
        size = sum(p.numel() for p in self.model().transformer.parameters()) / 1e6
        tokenizer = (
            f"{args.tokenizer_minutes:g} min, batch {TOKENIZING.batch}; then its decoder alone "
            f"{args.decoder_minutes:g} min, batch {DECODING.batch}"
        )
        batches = ", ".join(f"{batch} to scale {count}" for count, batch, _ in self.fit.prefixes)
        return "\n".join(
            (
                f"on {args.device}: {', '.join(args.stages)}",
                f"pictures: {args.pictures} scenes; {len(VOCABULARY)} words",
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
        for i in range(-(-self.args.pictures // CHUNK)):
            makers[f"{i:04}"] = partial(training_set, CHUNK, TRAINING_SEED + i)
        return makers

    def _tokenizer(self) -> BSQVAE:
        """The tokenizer, trained if it is not yet, rounded to the precision of its file."""
        if self.given is not None:
            return self.given.to(self.device)
        plan = replace(TOKENIZING, minutes=self.args.tokenizer_minutes)
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
        plan = replace(DECODING, minutes=self.args.decoder_minutes)
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
        return {
            "l1": (rebuilt - real).abs().mean().item(),
            "passed": sum(passed(real, texts)) / len(texts),
            "passed_rebuilt": sum(passed(rebuilt, texts)) / len(texts),
        }

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
            export(state, tokenizer.state_dict(), self.folder / "early")
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
            show_sizes(export(state, decoder.state_dict(), self.args.output))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.train_scenes", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, default, text in (
        ("runs", Path("runs/scenes"), "resumable state"),
        ("output", Path("checkpoints/scenes"), "folder to write"),
        ("tokenizer-minutes", TOKENIZING.minutes, "tokenizer's training time"),
        ("decoder-minutes", DECODING.minutes, "its decoder's, trained on alone"),
        ("pictures", 36000, "rendered scenes"),
        ("minutes", FIT.minutes, "transformer's training time"),
        ("learning-rate", FIT.learning_rate, "its highest; less with --initial"),
        ("wrong-captions", FIT.wrong_captions, "share of pictures shown with another's caption"),
        ("width", 192, "transformer's, in steps of 32"),
        ("depth", 6, "transformer's blocks"),
    ):
        parser.add_argument(
            f"--{name}", type=type(default), default=default, help=f"{text} (%(default)s)"
        )
    parser.add_argument("--tokenizer", type=Path, help="trained one to use; it is not trained on")
    parser.add_argument("--initial", type=Path, help="exported folder to go on from")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    args = parser.parse_args(argv)
    if not 0 <= args.wrong_captions < 1:
        parser.error(f"--wrong-captions {args.wrong_captions:g} is no share: expected 0 to below 1")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the asked stages in order; return the exit code."""
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        run = Run(args)
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
