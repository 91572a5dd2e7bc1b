"""``stagevar-probe validate``: run the plans of a profile on fresh inputs beside the exact path."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import click

from stagevar_runtime.loop.plan import EXACT, plan_for
from stagevar_runtime.pipeline import Pipeline
from stagevar_runtime.profile import Profile, load_profile
from stagevar_runtime.profile.discovery import check_match
from stagevar_runtime.profile.fingerprint import schedule

from ..metrics.protocol import Quality
from ..progress import meter
from ..solve.target import Target
from ..validate.run import validate as run_plans
from ..validate.table import figures_table
from .options import ModelOptions, Printer, model_options, printing
from .parameters import BATCH, CHECKPOINT, MEASURING

logger = logging.getLogger("stagevar_probe")


@click.command()
@click.argument("profile_path", metavar="PROFILE", type=CHECKPOINT)
@click.option("--model", "-m", "checkpoint", type=CHECKPOINT, required=True, help="The checkpoint.")
@click.option("--plan", "names", multiple=True, help="Plans to run (default: all).")
@click.option(
    "--held-out",
    default=256,
    show_default=True,
    type=click.IntRange(2),
    help="Held-out images.",
)
@model_options(*BATCH, *MEASURING)
@printing
def validate(
    profile_path: Path,
    checkpoint: Path,
    names: tuple[str, ...],
    held_out: int,
    options: ModelOptions,
    printer: Printer,
) -> int:
    """Run the plans of PROFILE on fresh held-out inputs beside the exact path.

    Exit code 5: the default plan loses more than the profile's target.
    """
    profile = load_profile(profile_path)
    pipeline = matched(options, checkpoint, profile, profile_path)
    sampling = pipeline.sampling(**options.sampling)
    quality = options.quality(checkpoint, pipeline)
    model = pipeline.model
    chosen = list(names) or list(profile.plans)
    plans = {EXACT: plan_for(model, (), sampling)} | {
        name: plan_for(model, profile.plan(name).steps, sampling) for name in chosen
    }
    fresh = replace(options, seed=options.seed + 1)  # not the held-out inputs of the calibration
    inputs = fresh.inputs(pipeline, held_out, held_out=True)
    with meter("held out", len(inputs), printer.quiet) as tick:
        size = options.at_once(model)
        figures = run_plans(model, inputs, plans, sampling, quality, size, tick)
    target = target_of(profile, quality)
    name = profile.default_plan if profile.default_plan in figures else chosen[0]
    met = target.met(figures[name])
    result = {
        "satisfied": met,
        "plan": name,
        "max_loss": target.max_loss,
        "plans": {plan: found.dump() for plan, found in figures.items()},
    }
    verdict = f"{name}: {target.description(quality.name)}: {'met' if met else 'NOT met'}"
    printer.show(result, figures_table(figures), verdict)
    return 0 if met else 5


def matched(options: ModelOptions, checkpoint: Path, profile: Profile, path: Path) -> Pipeline:
    """The checkpoint with the profile and its bases, where they fit each other.

    Raises:
        ProfileMismatchError: they do not.
    """
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
    pipeline.use_bases(profile, path)
    return pipeline


def target_of(profile: Profile, quality: Quality) -> Target:
    """The profile's target where it is in the units of this metric, else the metric's own."""
    if profile.target and profile.target.metric == quality.name:
        asked = profile.target
        return Target(asked.max_loss, asked.min_speedup, asked.max_ms)
    return Target(quality.default_loss)
