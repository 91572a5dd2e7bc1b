"""Everything after training.gpu, in one command: python -m training.after runs/pictures

Joins the parts, calibrates, evaluates scenes and emoji, draws the loss curves and a contact sheet,
writes a page that holds the figures against the bars, and points make demo-t2i at the checkpoint if
calibrating fits the demo's time. On a CPU say --count and --held-out, or it takes hours.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagevar_probe.datasets.archive import SPLITS, open_archive

from .data import DataError
from .join import NAME, join
from .stages import show_sizes

DEMO = 300.0  # seconds that make demo-t2i may take to calibrate
TARGET_MISSED = 5  # how calibrate ends when the profile misses its target
MAKEFILE = Path(__file__).resolve().parents[1] / "Makefile"
SCENES = ("a red circle left of a blue square", "three yellow stars")  # on the contact sheet


@dataclass(frozen=True)
class Bar:
    """What is asked of the checkpoint, and what it does: value with its 95 % interval."""

    name: str
    least: float
    found: Sequence[float]

    def line(self) -> str:
        """A row of the page's table."""
        value, low, high = self.found
        verdict = "met" if value >= self.least else "missed"
        return f"| {self.name} | {self.least:g} | {value:.3f} [{low:.3f}, {high:.3f}] | {verdict} |"


def bars(scenes: dict[str, Any], emoji: dict[str, Any]) -> list[Bar]:
    """The bars and what two evaluations found."""
    rows = {row["name"]: row for row in scenes["rows"]}
    kinds = {row["name"]: row for row in emoji["rows"]}["exact"]["kinds"]
    none = [0.0, 0.0, 0.0]
    out = [
        Bar("scenes passed", 0.90, rows["exact"]["passed"]),
        Bar("emoji R@1, trained pairs", 0.50, kinds.get("train", none)),
        Bar("emoji R@1, held-out pairs", 0.25, kinds.get("held_out_pair", none)),
        Bar("guidance is worth", 0.10, rows["no guidance"]["passed_loss"]),
    ]
    if "balanced" in rows:
        out.append(Bar("balanced, loop only", 3.4, rows["balanced"]["speedup_loop"]))
        loss = rows["balanced"]["passed_loss"]
        out.append(Bar("balanced, passed that is left", -0.01, [-loss[0], -loss[2], -loss[1]]))
    return out


def page(found: Sequence[Bar], job: dict[str, Any], seconds: dict[str, float]) -> str:
    """Markdown: bars against figures, and how they came about."""
    took = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    return "\n".join(
        (
            f"# {job['checkpoint']}, measured",
            "",
            "| what | at least | measured [95 %] | |",
            "|---|---|---|---|",
            *(bar.line() for bar in found),
            "",
            f"Weights {job['weights']}, {job['hardware']['device']}, {job['dtype']}, "
            f"features {job['features']}; {took}.",
            "",
        )
    )


def draw_losses(record: dict[str, Any], path: Path) -> None:
    """The loss of every scale over time, as SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = [r for r in record["logs"]["transformer"] if "by_scale" in r]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for scale in range(max((len(r["by_scale"]) for r in steps), default=0)):
        own = [r for r in steps if len(r["by_scale"]) > scale]
        axes.plot([r["images"] for r in own], [r["by_scale"][scale] for r in own], label=scale + 1)
    axes.set(xlabel="images", ylabel="cross-entropy of a bit", title="by scale")
    axes.legend(ncols=2, fontsize="small")
    figure.savefig(path)
    pyplot.close(figure)


def switch_demo(makefile: Path, checkpoint: Path) -> bool:
    """Point ``make demo-t2i`` at a checkpoint below ``checkpoints``; whether the file changed."""
    text = makefile.read_text()
    name = f"{checkpoint.parent.name}/{checkpoint.stem}"
    changed = re.sub(r"^T2I := .*$", f"T2I := {name}", text, flags=re.MULTILINE)
    if changed != text:
        makefile.write_text(changed)
    return changed != text


def probe(*arguments: object, missed: bool = False) -> float:
    """Run a verb of stagevar-probe; its seconds.

    Raises:
        DataError: it failed.
    """
    command = [sys.executable, "-m", "stagevar_probe", *map(str, arguments)]
    print("+", *command[2:], flush=True)
    begin = time.monotonic()
    code = subprocess.run(command).returncode
    if code != 0 and not (missed and code == TARGET_MISSED):
        raise DataError(f"{' '.join(command[2:5])} ended with {code}")
    return time.monotonic() - begin


def measure(args: argparse.Namespace, checkpoint: Path) -> dict[str, float]:
    """Calibrate, evaluate and draw; the seconds of each."""
    common = ["--features", args.features, "--batch", args.batch]
    common += ["--device", args.device] if args.device else []
    size = [] if args.count is None else ["--count", args.count]
    calibrate = size + ([] if args.held_out is None else ["--held-out", args.held_out])
    seconds = {"calibrate": probe("calibrate", checkpoint, *common, *calibrate, missed=True)}
    suites = {"scenes": [], "emoji": ["--suite", "emoji", "--pictures", args.shard]}
    for suite, own in suites.items():
        output = checkpoint.with_suffix(f".{suite}.html")
        seconds[suite] = probe("evaluate", checkpoint, *common, *size, *own, "--output", output)
    archive = open_archive(args.shard)
    emoji = [p.prompt for split in SPLITS for p in archive.of(split)[:2]]
    prompts = [part for prompt in (*SCENES, *emoji) for part in ("--prompt", prompt)]
    sheet = checkpoint.with_suffix(".sheet.png")
    seconds["sheet"] = probe(
        *("generate", checkpoint, "--compare", *prompts, "--output", sheet, *common[2:])
    )
    return seconds


def main(argv: list[str] | None = None) -> int:
    """Do everything; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.after", description=__doc__)
    parser.add_argument("parts", type=Path, help="the folder that training.gpu wrote to")
    parser.add_argument("--output", type=Path, default=Path("checkpoints/pictures"))
    parser.add_argument("--shard", type=Path, default=Path("runs/pictures.zip"))
    parser.add_argument("--device", help="default: cuda if there is one")
    parser.add_argument("--features", default="effnet-64", help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--count", type=int, help="images of each measurement")
    parser.add_argument("--held-out", type=int, help="images that validate the profile")
    parser.add_argument("--keep-demo", action="store_true", help="leave the Makefile as it is")
    args = parser.parse_args(argv)
    checkpoint = args.output / f"{NAME}.safetensors"
    try:
        show_sizes(join(args.parts, args.output))
        seconds = measure(args, checkpoint)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    results = [
        json.loads(checkpoint.with_suffix(f".{suite}.json").read_text())
        for suite in ("scenes", "emoji")
    ]
    found = bars(*results)
    text = page(found, results[0]["job"], seconds)
    (args.output / "RESULTS.md").write_text(text)
    record = json.loads((args.output / f"{NAME}.training.json").read_text())
    draw_losses(record, args.output / f"{NAME}.losses.svg")
    print(text)
    fits = seconds["calibrate"] <= DEMO
    if fits and not args.keep_demo:
        switch_demo(MAKEFILE, checkpoint)
    kept = "as it was" if args.keep_demo or not fits else f"now calibrates {checkpoint}"
    print(f"make demo-t2i: {kept} (calibrating took {seconds['calibrate']:.0f} of {DEMO:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
