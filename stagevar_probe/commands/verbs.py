"""What each command does: arguments in, ``(JSON-ready result, text for people)`` out."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from stagevar_runtime.errors import StagevarError
from stagevar_runtime.families import families
from stagevar_runtime.loading import load
from stagevar_runtime.loop.engine import Generation
from stagevar_runtime.loop.plan import compile_plan
from stagevar_runtime.pipeline import Pipeline
from stagevar_runtime.profile import dump_profile, load_profile
from stagevar_runtime.profile.discovery import check_match
from stagevar_runtime.profile.fingerprint import schedule

from ..calibrate.job import CalibrationJob, Outputs, Settings
from ..calibrate.processes import ALONE, Processes, local_device
from ..datasets.inputs import (
    Inputs,
    balanced_labels,
    builtin_prompts,
    given_labels,
    prompts_beside,
    prompts_from,
    read_lines,
    split_prompts,
)
from ..files import check_writable
from ..measure.costs import describe_scales
from ..measure.measurements import KIND, load_measurements
from ..metrics.protocol import Quality
from ..metrics.quality import find_quality
from ..progress import duration, meter
from ..report.contact_sheet import contact_sheet, save_png
from ..solve.target import Target
from ..tables import columns
from ..validate.run import EXACT
from ..validate.run import validate as validate_plans

logger = logging.getLogger("stagevar_probe")

Said = tuple[dict[str, Any], str]
NOTHING_FASTER = (
    "no faster plan kept the budget, so balanced is the exact path: "
    "allow more (--max-loss), or measure more images (--count)"
)
FILES = ("profile", "measurements", "report", "bases")
COUNTS = {"labels": (192, 1000), "prompts": (64, 64)}  # calibration and held-out images


def parse_options(said: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` pairs; numbers, true and false become what they look like.

    Raises:
        StagevarError: no ``=`` in one of them.
    """
    pairs = [text.partition("=") for text in said]
    for name, sign, value in pairs:
        if not (name and sign and value):
            raise StagevarError(f"got --option {name}{sign}{value}, expected NAME=VALUE")
    return {name: yaml.safe_load(value) for name, _, value in pairs}


@dataclass(frozen=True)
class ModelOptions:
    """Options that commands share."""

    tokenizer: Path | None = None
    device: str | None = None
    dtype: torch.dtype | None = None
    seed: int = 0
    batch: int = 16
    prompts: Path | None = None
    metric: str | None = None
    features: str | None = None
    reference: Path | None = None
    text_encoder: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)

    def load(self, checkpoint: Path, profile: Any = None, strict: bool = False) -> Pipeline:
        """The pipeline of a checkpoint."""
        return load(
            checkpoint,
            self.tokenizer,
            self.device or local_device(),
            self.dtype,
            profile,
            strict=strict,
            options=self.options,
            text_encoder=self.text_encoder,
        )

    def quality(self, checkpoint: Path, pipeline: Pipeline) -> Quality:
        """What pictures are scored by."""
        classes = pipeline.model.info.classes
        metric = self.metric or pipeline.metadata.get("metric")
        return find_quality(metric, checkpoint, classes, self.features, self.reference)

    def lines(self, pipeline: Pipeline, held_out: bool) -> tuple[list[str], str]:
        """Prompts and where they are from: asked for, beside the checkpoint, or the project's."""
        if self.prompts:
            return read_lines(self.prompts), self.prompts.name
        own = prompts_beside(pipeline.path)
        return (
            (split_prompts(own, held_out), own.name)
            if own
            else (builtin_prompts(held_out), "builtin-64")
        )

    def inputs(self, pipeline: Pipeline, count: int, held_out: bool) -> Inputs:
        """Calibration or held-out inputs for the family."""
        model = pipeline.model
        if not model.info.classes:
            lines, name = self.lines(pipeline, held_out)
            return prompts_from(lines, name, count, self.seed, pipeline.read_condition, held_out)
        if self.prompts is None:
            return balanced_labels(model, count, self.seed, held_out)
        lines = read_lines(self.prompts)
        return given_labels(model, lines, self.prompts.name, count, self.seed, held_out)


def calibrate(
    checkpoint: Path,
    options: ModelOptions,
    output: Path | None = None,
    count: int | None = None,
    held_out: int | None = None,
    max_loss: float | None = None,
    resume: bool = True,
    dry_run: bool = False,
    quiet: bool = False,
    min_speedup: float | None = None,
    max_ms: float | None = None,
    ranks: Processes = ALONE,
) -> Said:
    """``stagevar-probe calibrate``; ``ranks``: the processes that share the work."""
    outputs = Outputs.beside(checkpoint, output)
    if checkpoint.exists() and not dry_run:
        check_writable(outputs.profile, outputs.measurements, outputs.report, outputs.bases)
    pipeline = options.load(checkpoint)
    kind = "labels" if pipeline.model.info.classes else "prompts"
    quality = options.quality(checkpoint, pipeline)
    job = CalibrationJob(
        pipeline,
        options.inputs(pipeline, count or COUNTS[kind][0], held_out=False),
        options.inputs(pipeline, held_out or COUNTS[kind][1], held_out=True),
        pipeline.sampling(**options.sampling),
        quality,
        Settings(
            max_loss=quality.default_loss if max_loss is None else max_loss,
            min_speedup=min_speedup,
            max_ms=max_ms,
            loss_asked=max_loss is not None,
            seed=options.seed,
            batch=options.batch,
            quiet=quiet,
        ),
        outputs,
        ranks,
    )
    work = job.work()
    if dry_run:
        found = job.dry_run()
        return found, (
            f"{checkpoint.name}: {describe_scales(pipeline.model.scales())}\n"
            f"one image: {found['seconds_one_image']:.2f} s, "
            f"peak memory {found['peak_memory_mb']:.0f} MB\n"
            f"{work['interventions']:.0f} interventions, at most {work['generations']:.1f} "
            f"generations per image; the whole calibration: "
            f"about {found['seconds_estimate'] / 60:.1f} minutes"
        )
    logger.info(
        "%s: %s\n%s; %d interventions on %d images, at most %.1f generations "
        "an image, then %d held-out images: at most about %s",
        checkpoint.name,
        describe_scales(pipeline.model.scales()),
        job.target.description(quality.name),
        work["interventions"],
        len(job.inputs),
        work["generations"],
        len(job.held_out),
        duration(job.seconds(work)),
    )
    profile = job.run(resume)
    assert profile.target is not None
    figures = load_measurements(job.outputs.measurements).validation
    result = {
        "profile": str(job.outputs.profile),
        "measurements": str(job.outputs.measurements),
        "report": str(job.outputs.report),
        **({"bases": str(job.outputs.bases)} if job.outputs.bases.exists() else {}),
        "satisfied": profile.target.satisfied,
        "max_loss": profile.target.max_loss,
        "plans": {name: figures[name] for name in (EXACT, *profile.plans)},
    }
    text = [
        figures_table({name: figures[name] for name in (EXACT, *profile.plans)}),
        f"target: {job.target.description(quality.name)}: "
        + ("met" if profile.target.satisfied else "NOT met"),
        *([] if profile.plan("balanced").steps else [NOTHING_FASTER]),
        *(f"{name:<13}{result[name]}" for name in FILES if name in result),
    ]
    return result, "\n".join(text)


def figures_table(figures: dict[str, dict[str, Any]]) -> str:
    """Held-out figures of plans as a table."""
    kid = next(iter(figures.values())).get("kid_name", "KID")
    head = ("plan", "loss [95 %]", "score", kid, "PSNR", "transformer", "loop", "total")
    rows = [head]
    for name, f in figures.items():
        network = f["exact_transformer_ms"] / f["transformer_ms"]
        loss = "-" if name == EXACT else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*f["loss"])
        rows.append(
            (
                name,
                loss,
                f"{f['score'][0]:.4f}",
                f"{f['kid']:.2f}" if "kid" in f else "-",
                "-" if name == EXACT else f"{f['psnr'][0]:.1f}",
                f"{f['transformer_ms']:.0f} ms {network:.2f}x",
                f"{f['loop_ms']:.0f} ms {f['exact_loop_ms'] / f['loop_ms']:.2f}x",
                f"{f['total_ms']:.0f} ms {f['exact_total_ms'] / f['total_ms']:.2f}x",
            )
        )
    return columns(rows)


def inspect(path: Path, tokenizer: Path | None = None) -> Said:
    """``stagevar-probe inspect``."""
    known = families()
    if str(path) in known:
        family = known[str(path)]
        result: dict[str, Any] = {
            "kind": "family",
            "family": family.family,
            "tokenizer": list(family.tokenizer_patterns),
            "options": list(family.options),
        }
        doc = (family.__doc__ or "").strip()
        return result, f"family {family.family}: {doc}\ntokenizer: {family.tokenizer_patterns}"
    if path.suffix in (".yaml", ".yml"):
        profile = load_profile(path)
        result = {"path": str(path), **profile.model_dump(mode="json")}
        return result, dump_profile(profile).rstrip()
    if path.suffix == ".json":
        measured = load_measurements(path)
        images = len(measured.smooth["exact"])
        result = {"kind": KIND, "path": str(path), "images": images, "job": measured.job}
        return (
            result,
            f"{KIND}: {images} images, {len(measured.interventions)} interventions\n"
            + json.dumps(measured.job, indent=2),
        )
    pipeline = load(path, tokenizer, profile=None, device="cpu")
    info, scales = pipeline.model.info, pipeline.model.scales()
    result = {
        "kind": "checkpoint",
        "path": str(path),
        "family": info.family,
        "depth": info.depth,
        "width": info.width,
        "heads": info.heads,
        "groups": [[g.start, g.stop] for g in info.groups],
        "scales": schedule(scales),
        "config": dict(info.config),
        "architecture": pipeline.fingerprint.architecture,
        "weights": pipeline.fingerprint.weights,
    }
    text = [
        f"{path.name}: {info.family}, depth {info.depth}, width {info.width}, {info.heads} heads",
        describe_scales(scales),
        f"architecture {result['architecture']}",
        f"weights      {result['weights']}",
    ]
    return result, "\n".join(text)


def validate(
    profile_path: Path,
    checkpoint: Path,
    options: ModelOptions,
    names: Sequence[str],
    held_out: int,
    quiet: bool,
) -> Said:
    """``stagevar-probe validate``."""
    profile = load_profile(profile_path)
    pipeline = options.load(checkpoint)
    for warning in check_match(
        profile,
        pipeline.fingerprint,
        schedule(pipeline.model.scales()),
        repair=f"stagevar-probe calibrate {checkpoint}",
        family=pipeline.model.info.family,
    ):
        logger.warning(warning)
    pipeline.profile = profile
    pipeline.use_bases(profile, profile_path)
    sampling = pipeline.sampling(**options.sampling)
    quality = options.quality(checkpoint, pipeline)
    model = pipeline.model
    chosen = list(names) or list(profile.plans)
    plans = {EXACT: compile_plan((), model.info, model.scales(), sampling)} | {
        name: compile_plan(profile.plan(name).steps, model.info, model.scales(), sampling)
        for name in chosen
    }
    fresh = replace(options, seed=options.seed + 1)  # not the held-out inputs of the calibration
    inputs = fresh.inputs(pipeline, held_out, held_out=True)
    with meter("held out", len(inputs), quiet) as tick:
        figures = validate_plans(model, inputs, plans, sampling, quality, options.batch, tick)
    target = Target(quality.default_loss)
    if profile.target and profile.target.metric == quality.name:
        asked = profile.target
        target = Target(asked.max_loss, asked.min_speedup, asked.max_ms)
    name = profile.default_plan if profile.default_plan in figures else chosen[0]
    met = target.met(figures[name])
    result = {"satisfied": met, "plan": name, "max_loss": target.max_loss, "plans": figures}
    verdict = f"{name}: {target.description(quality.name)}: {'met' if met else 'NOT met'}"
    return result, f"{figures_table(figures)}\n{verdict}"


def generate(
    checkpoint: Path,
    options: ModelOptions,
    labels: str | None = None,
    texts: Sequence[str] = (),
    plan: str | None = None,
    profile: Path | None = None,
    strict: bool = False,
    compare: bool = False,
    output: Path = Path("generated.png"),
) -> Said:
    """``stagevar-probe generate``."""
    check_writable(output)
    wanted = "auto" if profile is None else profile
    pipeline = options.load(checkpoint, None if plan == EXACT else wanted, strict)
    if plan not in (None, EXACT):
        pipeline.enable(plan)
    inputs = _wanted(pipeline, options, labels, texts)
    kind = "labels" if pipeline.model.info.classes else "prompts"
    seeds = [options.seed + i for i in range(len(inputs))]

    def run() -> list[Generation]:
        return [
            pipeline.generate(
                seed=seeds[i : i + options.batch],
                **options.sampling,
                **{kind: inputs[i : i + options.batch]},  # type: ignore[arg-type]
            )
            for i in range(0, len(inputs), options.batch)
        ]

    made = run()
    summary = pipeline.summary()
    rows = [torch.cat([m.images for m in made])]
    if compare and summary.plan != EXACT:
        pipeline.disable()
        rows.insert(0, torch.cat([m.images for m in run()]))
    save_png(contact_sheet(rows), output)
    result = {
        "output": str(output),
        "images": len(inputs),
        "profile": pipeline.profile_source,
        "plan": summary.plan,
        "loop_ms": sum(m.loop_ms for m in made),
        "decode_ms": sum(m.decode_ms for m in made),
        "notes": list(summary.notes),
    }
    return result, f"{summary}\n{len(inputs)} images in {output}"


def _wanted(
    pipeline: Pipeline, options: ModelOptions, labels: str | None, texts: Sequence[str]
) -> list[Any]:
    """What to draw: labels or prompts, as the family needs; by default a few of its own."""
    info = pipeline.model.info
    if bool(info.classes) == bool(texts) or (labels is not None and not info.classes):
        got, takes = ("prompts", "labels") if info.classes else ("labels", "prompts")
        if texts or labels is not None:
            raise StagevarError(f"got {got}, but the {info.family} family draws from {takes}")
    if not info.classes:
        lines, _ = options.lines(pipeline, held_out=True)
        return list(texts) or (lines if options.prompts else lines[:8])
    if labels is None:
        return list(range(min(16, info.classes)))
    try:
        numbers = [int(part) for part in labels.replace(",", " ").split()]
    except ValueError as error:
        raise StagevarError(f"labels {labels!r}: {error}; expected numbers like 0,3,7") from error
    pipeline.condition(labels=numbers)
    return numbers
