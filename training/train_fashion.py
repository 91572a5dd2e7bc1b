"""Train the Fashion-MNIST reference checkpoint: python -m training.train_fashion

Stages run in order and each resumes where it stopped: tokenizer, tokens, classifier, transformer,
export. Then measure with python -m training.evaluate_fashion
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch
from torch import Tensor

from stagevar_probe.metrics.classifier import save_scorer
from stagevar_runtime.families.tokenizers.vqvae import VQVAE

from .classify import ClassifierPlan, classify, train_classifier
from .data import DataError
from .data.fashion import CLASS_NAMES, DEFAULT_ROOT, Images, load_fashion
from .export import SCORER_FILE, export_tokenizer, export_transformer, round_to_half
from .fit import FitPlan, train_transformer
from .settings import SIDES, SIZES, TOKENIZER
from .stages import Staged, show_sizes
from .state import load_torch, save_json, save_torch
from .tokenizer import TokenizerPlan, train_tokenizer
from .tokens import decode_tokens, encode_tokens
from .transformer import TransformerConfig

STAGES = ("tokenizer", "tokens", "classifier", "transformer", "export")
REFERENCES = 2000


def share_right(predicted: Tensor, labels: Tensor) -> float:
    """Share of predictions that equal the label."""
    return (predicted.cpu() == labels).float().mean().item()


class Run(Staged):
    """A method per stage."""

    def train_tokenizer(self) -> tuple[VQVAE, Tensor]:
        """The tokenizer, trained if it is not yet, rounded to the precision of its file."""
        model, hits = train_tokenizer(
            TOKENIZER,
            load_fashion("train", self.args.data),
            SIZES,
            TokenizerPlan(),
            self.folder / "tokenizer.pt",
            self.device,
            self.logger("tokenizer"),
            stop=self.stop,
        )
        round_to_half(model)
        return model.requires_grad_(False), hits

    def tokens(self, split: str) -> Tensor:
        """Tokens of a split, encoded if they are not yet."""
        path = self.folder / f"tokens_{split}.pt"
        if (saved := load_torch(path)) is not None:
            return saved
        model, _ = self.train_tokenizer()
        return encode_tokens(model, load_fashion(split, self.args.data), SIZES, path, self.device)

    def rebuilt(self, split: str) -> Images:
        """What the tokenizer makes of every image of a split, decoded if it is not yet."""
        path = self.folder / f"rebuilt_{split}.pt"
        labels = load_fashion(split, self.args.data).labels
        if (saved := load_torch(path)) is not None:
            return Images(saved, labels)
        tokenizer, _ = self.train_tokenizer()
        images = Images(decode_tokens(tokenizer, self.tokens(split), SIZES, self.device), labels)
        save_torch(path, images.pixels)
        return images

    def train_classifier(self) -> None:
        """Train the scorer; measure it on real images and on what the tokenizer makes of them."""
        rebuilt = self.rebuilt("test")
        model = train_classifier(
            load_fashion("train", self.args.data),
            ClassifierPlan(),
            self.folder / "classifier.pt",
            self.device,
            self.logger("classifier"),
            self.rebuilt("train"),
            stop=self.stop,
        )
        round_to_half(model)
        test = load_fashion("test", self.args.data)
        features, predicted = classify(model, lambda s: test.batch(s, self.device), len(test))
        accuracy = share_right(predicted, test.labels)
        path = self.folder / SCORER_FILE
        save_scorer(path, model, features[:REFERENCES], CLASS_NAMES, accuracy)

        _, predicted_rebuilt = classify(model, lambda s: rebuilt.batch(s, self.device), len(test))
        error = (rebuilt.pixels.float() - test.pixels.float()).abs().mean().item() / 127.5
        ids = self.tokens("test").long()
        usage = torch.bincount(ids.flatten(), minlength=TOKENIZER.vocabulary).float()
        share = usage / usage.sum()
        record = {
            "test_accuracy": accuracy,
            "test_accuracy_on_reconstructions": share_right(predicted_rebuilt, test.labels),
            "reconstruction_l1": error,
            "codes_used": int((usage > 0).sum()),
            "code_perplexity": torch.exp(-(share * (share + 1e-12).log()).sum()).item(),
            "code_counts": usage.long().tolist(),
        }
        save_json(self.folder / "tokenizer_and_scorer.json", record)
        self.copy_scorer(self.args.early)

    def copy_scorer(self, target: Path) -> None:
        """Put the scorer beside a transformer, if it is trained."""
        source = self.folder / SCORER_FILE
        if source.is_file():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target / SCORER_FILE)

    def train_transformer(self) -> dict[str, Tensor]:
        """The transformer's averaged weights, trained if they are not yet."""
        tokenizer, hits = self.train_tokenizer()
        log = self.logger("transformer")

        def export_early(state: dict[str, Tensor], step: int) -> None:
            export_tokenizer(tokenizer.state_dict(), hits, self.args.early)
            export_transformer(state, self.args.early)
            self.copy_scorer(self.args.early)
            log({"step": step, "exported": True})

        return train_transformer(
            TransformerConfig(SIDES, TOKENIZER.vocabulary, TOKENIZER.z_channels),
            tokenizer,
            self.tokens("train"),
            load_fashion("train", self.args.data).labels,
            SIZES,
            FitPlan(minutes=self.args.minutes, steps=self.args.steps),
            self.folder / "transformer.pt",
            self.device,
            log,
            export_early,
            stop=self.stop,
        )

    def export(self) -> None:
        """Write the three files that ship."""
        tokenizer, hits = self.train_tokenizer()
        paths = [
            export_tokenizer(tokenizer.state_dict(), hits, self.args.output),
            export_transformer(self.train_transformer(), self.args.output),
        ]
        self.copy_scorer(self.args.output)
        show_sizes(paths)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.train_fashion", description=__doc__)
    parser.add_argument("--data", type=Path, default=DEFAULT_ROOT, help="folder of the idx files")
    parser.add_argument("--runs", type=Path, default=Path("runs/fashion"), help="resumable state")
    parser.add_argument("--early", type=Path, default=Path("runs/early"), help="partial exports")
    parser.add_argument("--output", type=Path, default=Path("checkpoints/fashion"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=60.0, help="transformer's training time")
    parser.add_argument("--steps", type=int, help="transformer's steps, instead of --minutes")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the asked stages in order; return the exit code."""
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    run = Run(args)
    try:
        return run.perform(
            {
                "tokenizer": run.train_tokenizer,
                "tokens": lambda: [run.tokens(split) for split in ("train", "test")],
                "classifier": run.train_classifier,
                "transformer": run.train_transformer,
                "export": run.export,
            }
        )
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
