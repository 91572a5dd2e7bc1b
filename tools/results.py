"""Make docs/results.md from committed results, or keep new results first.

python -m tools.results                                       # the page, from what is kept
python -m tools.results curves NAME MODEL.stagevar.measurements.json   # keep curves of a model
python -m tools.results evaluation MODEL.evaluation.json               # keep an evaluation
python -m tools.results race MODEL.stagevar.measurements.json          # keep a race of plans
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stagevar_probe.intervals import bootstrap_mean
from stagevar_probe.measure.figures import Figures
from stagevar_probe.measure.measurements import load_measurements
from stagevar_probe.report import plots
from stagevar_probe.report.calibration import report_data
from stagevar_probe.tables import NONE, ranged
from stagevar_runtime.profile import load_profile

from .marked import fill
from .reference import reference_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS, DOCS = ROOT / "benchmarks/results", ROOT / "docs/results"
PAGE = ROOT / "docs/results.md"
RACE = RESULTS / "scenes-race.json"
CALIBRATIONS = RESULTS / "calibrations.json"
SUITES = {"scenes": "", "emoji": "emoji-"}  # with what the marks of their tables begin
CURVES = {
    "Stages": "stages",
    "Frequency change": "frequency",
    "Feature rank": "rank",
    "Guidance sensitivity": "sensitivity",
    "What dropping guidance costs": "dropping",
}


def keep_curves(name: str, path: Path) -> None:
    """Write the curves of a calibration as figures and as numbers with intervals."""
    measured = load_measurements(path)
    stem = path.name.removesuffix(".measurements.json")
    profile = load_profile(path.with_name(f"{stem}.yaml"))
    DOCS.mkdir(parents=True, exist_ok=True)
    for figure in report_data(measured, profile)["figures"]:
        if figure["title"] in CURVES:
            target = DOCS / f"{name}-{CURVES[figure['title']]}.svg"
            target.write_text(figure["svg"] + "\n", encoding="utf-8")

    def band(values: Any) -> list[list[float]]:
        return [np.round(np.atleast_1d(part), 5).tolist() for part in bootstrap_mean(values)]

    stages = profile.stages
    assert stages is not None
    kept = {
        "job": measured.job.dump(),
        "images": len(measured.semantic),
        "semantic": band(measured.semantic),
        "structural": band(measured.structural),
        "low": band(measured.low),
        "high": band(measured.high),
        "sensitivity": {
            str(k): {branch: band(values) for branch, values in branches.items()}
            for k, branches in measured.sensitivity.items()
        },
        "ranks": [m.model_dump(mode="json", exclude_none=True) for m in profile.measurements],
        "stages": stages.model_dump(mode="json", exclude_none=True),
        "validation": {plan: figures.dump() for plan, figures in measured.validation.plans.items()},
        "plans": {
            plan: [step.model_dump(mode="json", exclude_defaults=True) for step in made.steps]
            for plan, made in profile.plans.items()
        },
    }
    target = RESULTS / f"{name}-curves.json"
    target.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def evaluation(suite: str) -> Path:
    """Where the evaluation by a suite is kept."""
    return RESULTS / f"{suite}-evaluation.json"


def keep_evaluation(path: Path) -> None:
    """Copy an evaluation and draw its Pareto plot."""
    found = json.loads(path.read_text(encoding="utf-8"))
    suite = found["job"]["suite"]
    evaluation(suite).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    points: dict[bool, list[plots.Point]] = {True: [], False: []}
    for row in found["rows"]:
        own = row["kind"] in ("plan", "exact")
        ms = row["total_ms"] / row["batch"]
        points[own].append(plots.Point(ms, *row["passed_loss"], row["name"][:28]))
    svg = plots.frontier(points[True], None, f"{suite} pass rate lost", points[False])
    DOCS.mkdir(parents=True, exist_ok=True)
    (DOCS / f"{suite}-pareto.svg").write_text(svg + "\n", encoding="utf-8")


def evaluation_table(found: Mapping[str, Any]) -> str:
    """METHODS' table of published methods, rebuilt: speed, pass rate, distribution, fidelity."""
    job, rows = found["job"], found["rows"]
    machine, first = job["hardware"], rows[0]
    beside = list(first.get("beside", ()))
    prompts = "prompts" if "train" in first["kinds"] else "held-out prompts"
    passed = f"{job['suite']} passed"
    lines = [
        f"{first['images']} {prompts} of the {job['suite']} suite, guidance "
        f"{job['sampling']['guidance']:g}, batch {first['batch']}, {job['dtype']}, "
        f"{machine['device']} ({machine['machine']}, {machine['threads']} threads, torch "
        f"{machine['torch']}), all rows interleaved in one run. Brackets are 95 % intervals; "
        "KID is times 1000.",
        "",
        f"| method | ms an image | end to end | loop only | {' | '.join([passed, *beside])} | "
        f"lost to exact | {job['features']}-KID | lost KID | perceptual distance | PSNR |",
        f"|---|---|---|---|---|---|---|---|---|---|{'---|' * len(beside)}",
    ]
    for row in rows:
        same, figures = row["name"] == "exact", Figures.parse(row)
        cells = (
            row["name"],
            *figures.speed_cells("x"),
            ranged(row["passed"]),
            *(ranged(row["beside"][head]) for head in beside),
            NONE if same else ranged(row["passed_loss"], "+.4f"),
            f"{row['kid']:.2f}" if "kid" in row else NONE,
            NONE if same or "kid" not in row else ranged(row["kid_loss"], "+.2f"),
            *([NONE, NONE] if same else figures.fidelity_cells(" dB")),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def kinds_table(found: Mapping[str, Any]) -> str:
    """Pass rates by kind."""
    kinds = list(found["rows"][0]["kinds"])
    lines = [f"| method | {' | '.join(kinds)} |", f"|---|{'---|' * len(kinds)}"]
    for row in found["rows"]:
        rates = (f"{row['kinds'][kind][0]:.2f}" for kind in kinds)
        lines.append(f"| {row['name']} | {' | '.join(rates)} |")
    return "\n".join(lines)


def keep_race(path: Path) -> None:
    """Keep the candidates of a calibration, with what they were on fresh inputs."""
    measured = load_measurements(path)
    job = measured.job.dump()
    names = ("weights", "dtype", "hardware", "metric", "sampling")
    kept = {
        "job": {name: job[name] for name in names},
        "attempts": [attempt.dump() for attempt in measured.validation.attempts],
    }
    RACE.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def said(steps: Sequence[Mapping[str, Any]]) -> str:
    """The steps of a plan in a few words: ``7-8 skip; 9 null_keep 0.5``."""
    parts: list[tuple[int, int, str]] = []
    for step in steps:
        words = []
        for name, value in step.items():
            if name == "tokens":
                words.append(f"{value['select']} + {value['restore']} {value['keep']:g}")
            elif name != "scale":
                words.append(str(value) if name in ("run", "guidance") else f"{name} {value:g}")
        begin, what = step["scale"], ", ".join(words)
        if parts and parts[-1][1:] == (begin - 1, what):
            begin = parts.pop()[0]
        parts.append((begin, step["scale"], what))
    return "; ".join(f"{a}-{b} {what}" if a < b else f"{a} {what}" for a, b, what in parts)


def race_table(found: Mapping[str, Any]) -> str:
    """Candidates of a calibration: what they lost, in passes and in distribution, and time."""
    job, first = found["job"], max((a["figures"] for a in found["attempts"]), key=_images)
    machine = job["hardware"]
    lines = [
        f"{first['images']} of the held-out prompts with seeds of their own (fewer where a plan "
        "was given up), "
        f"guidance {job['sampling']['guidance']:g}, batch "
        f"{first['batch']}, {job['dtype']}, {machine['device']} ({machine['threads']} threads), "
        f"interleaved in one run; the exact path passes "
        f"{first['score'][0] + first['loss'][0]:.3f}, its KID is "
        f"{first['kid'] - first['kid_loss'][0]:.0f}.",
        "",
        "| scales and what is asked of them | prompts | passed, lost | smoothed | lost KID "
        "| loop only |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["attempts"]:
        f = row["figures"]
        losses = (ranged(f[name], "+.3f") for name in ("loss", "smooth_loss"))
        cells = (said(row["steps"]), str(f["images"]), *losses, ranged(f["kid_loss"], "+.0f"))
        lines.append(f"| {' | '.join(cells)} | {f['speedup_loop'][0]:.2f}x |")
    return "\n".join(lines)


def _images(figures: Mapping[str, Any]) -> int:
    return int(figures["images"])


def calibrations_table(found: Mapping[str, Any]) -> str:
    """Short calibrations with other seeds: what each found, and what its plan is worth."""
    machine = found["hardware"]
    lines = [
        f"`--time {found['time']}`, batch {found['batch']}, {found['dtype']}, {machine['device']} "
        f"({machine['threads']} threads). Fresh prompts are ones that no calibration has seen: "
        "more of them where a plan was called satisfied.",
        "",
        "| seed | `balanced` | satisfied | lost, as found | inputs | lost on fresh prompts |"
        " prompts | loop only | end to end | seconds announced, taken |",
        f"|{'---|' * 10}",
    ]
    for row in found["rows"]:
        satisfied = {True: "yes", False: "no"}.get(row["satisfied"], "unproven")
        seconds = row["seconds"]
        cells = (
            *(str(row["seed"]), said(row["steps"]) or "exact", satisfied),
            *(ranged(row["loss"], "+.3f"), str(row["inputs"])),
            *(ranged(row["fresh_loss"], "+.3f"), str(row["fresh_inputs"])),
            *(f"{row[name][0]:.2f}x" for name in ("speedup_loop", "speedup_total")),
            f"{seconds['announced']:.0f}, {seconds['taken']:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Keep what is named, then rewrite the tables of the page."""
    if sys.argv[1:2] == ["curves"]:
        keep_curves(sys.argv[2], Path(sys.argv[3]))
    elif sys.argv[1:2] == ["evaluation"]:
        keep_evaluation(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["race"]:
        keep_race(Path(sys.argv[2]))
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The page with its tables made again."""
    text = PAGE.read_text(encoding="utf-8")
    for suite, prefix in SUITES.items():
        if evaluation(suite).exists():
            found = json.loads(evaluation(suite).read_text(encoding="utf-8"))
            text = fill(text, f"{prefix}evaluation", "results", evaluation_table(found))
            text = fill(text, f"{prefix}kinds", "results", kinds_table(found))
    text = fill(text, "reference", "results", reference_table())
    for name, path, table in (
        ("race", RACE, race_table),
        ("calibrations", CALIBRATIONS, calibrations_table),
    ):
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            text = fill(text, name, "results", table(found))
    return text


if __name__ == "__main__":
    main()
