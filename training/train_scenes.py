"""Train the text-to-image reference checkpoint: python -m training.train_scenes

Stages run in order and each resumes where it stopped: tokenizer, features, transformer, decoder
(the tokenizer's, trained on alone), export.
Then measure with stagevar-probe evaluate.

Several processes train together with torchrun --nproc-per-node N -m training.train_scenes --threads
1: on two cores twice as fast as one process with two threads.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from stagevar_probe.scenes import VOCABULARY, passed, training_set
from stagevar_probe.scenes.suite import TRAINING_SEED
from stagevar_runtime.families.bsq_vae import BSQVAE
from stagevar_runtime.text.words import WordEncoder

from .export import round_to_half
from .scenes.export import export, restore
from .scenes.fit import FitPlan, fit
from .scenes.settings import SIZES, TEXT_LENGTH, TEXT_WIDTH, TOKENIZER, transformer_config
from .scenes.tokenizer import DECODER, TokenizerPlan, encode, quantize, train_tokenizer
from .scenes.transformer import TextToImage
from .stages import Staged, show_sizes
from .state import Interrupted, load_torch, save_json, save_torch

T = TypeVar("T")
STAGES = ("tokenizer", "features", "transformer", "decoder", "export")
CHUNK = 3000  # pictures rendered at once
TOKENIZER_PICTURES = 9000


class Run(Staged):
    """A method per stage."""

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
        chunks = range(-(-self.args.pictures // CHUNK))
        paths = [self.folder / "features" / f"{i:04}.pt" for i in chunks]
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        for i in chunks[rank::world]:
            if paths[i].exists():
                continue
            if self.stop():
                raise Interrupted
            pixels, texts = training_set(CHUNK, seed=TRAINING_SEED + i)
            made = {"features": encode(model, pixels, self.device), "captions": texts}
            save_torch(paths[i], made)
            log({"chunk": i, "pictures": len(texts)})
        if world > 1:
            dist.barrier()
        parts = [part for path in paths if (part := load_torch(path)) is not None]
        captions = [caption for part in parts for caption in part["captions"]]
        return torch.cat([part["features"] for part in parts]), captions

    def _tokenizer(self) -> BSQVAE:
        """The tokenizer, trained if it is not yet, rounded to the precision of its file."""
        if self.args.tokenizer:
            return BSQVAE.from_tensors(load_file(self.args.tokenizer)).to(self.device)
        plan = TokenizerPlan(minutes=self.args.tokenizer_minutes)
        path = self.folder / "tokenizer.pt"
        saved = load_torch(path)
        done = saved is not None and saved["spent"] >= plan.minutes * 60
        pixels = torch.empty(0) if done else training_set(TOKENIZER_PICTURES, seed=1)[0]
        log = self.logger("tokenizer")
        model = train_tokenizer(TOKENIZER, pixels, SIZES, plan, path, self.device, log, self.stop)
        round_to_half(model)
        if not (self.folder / "tokenizer.json").exists():
            save_json(self.folder / "tokenizer.json", self._ceiling(model))
        return model

    def _decoder(self) -> BSQVAE:
        """The tokenizer with its decoder trained on, if it is not yet; its tokens are the same."""
        if self.args.tokenizer:
            return self._tokenizer()
        start, plan = self._tokenizer(), replace(DECODER, minutes=self.args.decoder_minutes)
        path = self.folder / "decoder.pt"
        saved = load_torch(path)
        done = saved is not None and saved["spent"] >= plan.minutes * 60
        pixels = torch.empty(0) if done else training_set(TOKENIZER_PICTURES, seed=6)[0]
        log, files = self.logger("decoder"), (path, self.device)
        model = train_tokenizer(TOKENIZER, pixels, SIZES, plan, *files, log, self.stop, start)
        round_to_half(model)
        if not (self.folder / "decoder.json").exists():
            save_json(self.folder / "decoder.json", self._ceiling(model))
        return model

    @torch.inference_mode()
    def _ceiling(self, model: BSQVAE) -> dict[str, float]:
        """What the tokenizer keeps: error, and pass rates of reconstructions."""
        pixels, texts = training_set(500, seed=2)
        real = pixels.float().div(255)
        rebuilt = torch.cat(
            [
                model.decode(quantize(model, encode(model, part, self.device).float(), SIZES))
                for part in pixels.split(50)
            ]
        )
        return {
            "l1": (rebuilt - real).abs().mean().item(),
            "passed": sum(passed(real, texts)) / len(texts),
            "passed_rebuilt": sum(passed(rebuilt, texts)) / len(texts),
        }

    def transformer(self) -> dict[str, Tensor]:
        """The averaged weights of transformer and words, trained if they are not yet."""
        tokenizer, (features, captions) = self.tokenizer(), self.features()
        log = self.logger("transformer")
        words = WordEncoder(VOCABULARY, TEXT_LENGTH, TEXT_WIDTH)
        config = transformer_config(self.args.width, self.args.depth)
        model = TextToImage(config, words, SIZES)
        if self.args.start:
            restore(model, self.args.start)

        def export_early(state: dict[str, Tensor], step: int) -> None:
            export(state, tokenizer, self.folder / "early")
            log({"step": step, "exported": True})

        plan = FitPlan(minutes=self.args.minutes)
        path = self.folder / "transformer.pt"
        return fit(
            model,
            *(tokenizer, features, captions, plan, path, self.device, log, export_early),
            stop=self.stop,
        )

    def export(self) -> None:
        """Write the files that ship."""
        state, decoder = self.transformer(), self.decoder()
        if not dist.is_initialized() or dist.get_rank() == 0:
            show_sizes(export(state, decoder, self.args.output))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.train_scenes", description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/scenes"), help="resumable state")
    parser.add_argument("--output", type=Path, default=Path("checkpoints/scenes"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokenizer-minutes", type=float, default=11.0)
    parser.add_argument("--decoder-minutes", type=float, default=9.0)
    parser.add_argument("--pictures", type=int, default=36000, help="training pictures")
    parser.add_argument("--minutes", type=float, default=90.0, help="transformer's training time")
    parser.add_argument("--width", type=int, default=192, help="transformer's, in steps of 32")
    parser.add_argument("--depth", type=int, default=6, help="transformer's blocks")
    parser.add_argument("--tokenizer", type=Path, help="trained one to use; it is not trained on")
    parser.add_argument("--start", type=Path, help="exported folder to go on from")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the asked stages in order; return the exit code."""
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
    run = Run(args)
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
