"""Honest speed: contenders side by side in one run, interleaved, with their share of the ceiling.

Every round runs each contender once, in turn (A B A B); the first round is a warm-up that is not
counted. Ratios are medians over rounds of ratios within a round, so that a machine that slows down
for a while slows both sides. The ceiling is a large matrix product and a large copy, timed between
the rounds.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch

import stagevar_runtime
from stagevar_runtime.compiled import compile_model
from stagevar_runtime.engine import Generation, generate
from stagevar_runtime.errors import StagevarError
from stagevar_runtime.families.base import Conditioning, ScaleModel, ScaleSpec
from stagevar_runtime.pipeline import GPU_TILE
from stagevar_runtime.plan import Plan, compile_plan, exact_plan
from stagevar_runtime.presets import preset
from stagevar_runtime.profile import PlanStep, Profile, TokenOption
from stagevar_runtime.sampling import Sampling

from .ceiling import (
    copy_gb_s,
    decode_flops,
    describe_machine,
    forget_peak,
    peak_mb,
    product_tflops,
    wait,
)
from .commands import ModelOptions, Said
from .cost import scale_flops
from .files import check_writable, write_whole
from .progress import Meter, meter
from .published import Published
from .published_infinity import PublishedInfinity
from .published_var import PublishedVAR
from .random_models import random_conditioning, random_model

KIND, VERSION = "stagevar-bench", 1
RESULTS = Path("benchmarks/results")
PUBLISHED, EXACT, LATE = "published", "exact", "balanced-like"
DEFAULT_PLANS = (LATE, "cfg-off", "stagevar", "skip-2")
MAKE_PUBLISHED: dict[str, Callable[[Any], PublishedLoop]] = {
    "var": PublishedVAR,
    "infinity": PublishedInfinity,
}


class PublishedLoop(Protocol):
    """A family's loop as its publishers run it; made before the clock starts."""

    def __call__(self, conditioning: Conditioning, sampling: Sampling, seed: int) -> Published:
        """One batch."""


@dataclass(frozen=True)
class Run:
    """One timed generation. ``text_ms``: from inputs to conditioning.

    ``cpu_ms``: processor time of all threads, which other programs' load hardly changes.
    """

    total_ms: float
    cpu_ms: float
    text_ms: float
    loop_ms: float
    decode_ms: float
    scale_ms: tuple[float, ...]


@dataclass(frozen=True)
class Contender:
    """Something that makes a batch of images, and the plan whose arithmetic it does."""

    make: Callable[[Conditioning], Generation | Published]
    plan: Plan


def late(scales: Sequence[ScaleSpec]) -> list[PlanStep]:
    """Guidance off at the last three scales, 0.3 of the tokens at the last two, all blocks."""
    count = len(scales)
    tokens = TokenOption(keep=0.3, select="deviation", restore="cache", span="all")
    return [
        PlanStep(scale=count - 3, guidance="cond"),
        PlanStep(scale=count - 2, tokens=tokens),
        PlanStep(scale=count - 1, tokens=tokens),
    ]


def plan_named(name: str, model: ScaleModel, sampling: Sampling, profile: Profile | None) -> Plan:
    """A plan of the profile, ``balanced-like``, or a preset.

    Raises:
        ProfileError: none of them has this name.
    """
    info, scales = model.info, model.scales()
    tile = GPU_TILE if model.device.type == "cuda" else 1
    if profile is not None and name in profile.plans:
        steps: Sequence[PlanStep] = profile.plan(name).steps
    else:
        steps = late(scales) if name == LATE else preset(name, info, scales)
    return compile_plan(steps, info, scales, sampling, tile)


def contenders(
    model: ScaleModel,
    sampling: Sampling,
    plans: Sequence[str],
    seed: int,
    profile: Profile | None = None,
) -> dict[str, Contender]:
    """``published`` where we wrote that family's loop, ``exact``, then the plans."""
    exact = exact_plan(model.info, model.scales(), sampling)
    out: dict[str, Contender] = {}
    if model.info.family in MAKE_PUBLISHED:
        loop = MAKE_PUBLISHED[model.info.family](model)
        out[PUBLISHED] = Contender(lambda c: loop(c, sampling, seed), exact)
    named = {EXACT: exact} | {
        name: plan_named(name, model, sampling, profile) for name in plans if name != EXACT
    }
    for name, plan in named.items():
        out[name] = Contender(_engine(model, plan, sampling, seed), plan)
    return out


def _engine(
    model: ScaleModel, plan: Plan, sampling: Sampling, seed: int
) -> Callable[[Conditioning], Generation]:
    return lambda conditioning: generate(model, conditioning, plan, sampling, seed)


def measure(
    model: ScaleModel,
    condition: Callable[[], Conditioning],
    named: Mapping[str, Contender],
    repeats: int,
    tick: Meter,
) -> dict[str, Any]:
    """Time every contender on one batch; returns what the JSON says about this batch."""
    runs: dict[str, list[Run]] = {name: [] for name in named}
    memory: dict[str, float] = {}
    ids: dict[str, list[torch.Tensor]] = {}
    products, copies = [], []
    for turn in range(repeats + 1):
        products.append(product_tflops(model.device, model.dtype))
        copies.append(copy_gb_s(model.device))
        for name, contender in named.items():
            forget_peak(model.device)
            run, made = _time(model.device, condition, contender)
            ids.setdefault(name, made.ids)
            memory[name] = max(memory.get(name, 0.0), peak_mb(model))
            if turn:
                runs[name].append(run)
            tick()
    ceiling = {"tflops": median(products), "copy_gb_s": median(copies)}
    conditioning = condition()
    decode = decode_flops(model, conditioning, named[EXACT].plan)
    figures = {
        name: _figures(model, conditioning.batch, contender.plan, runs, name, decode, ceiling)
        | {"peak_memory_mb": memory[name]}
        for name, contender in named.items()
    }
    out = {"batch": conditioning.batch, "ceiling": ceiling, "runs": figures}
    if PUBLISHED in ids:
        out["same_ids_as_published"] = _agreement(ids[PUBLISHED], ids[EXACT])
    return out


def _agreement(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> float:
    """Share of equal ids, all scales together."""
    same = sum(int((x == y).sum()) for x, y in zip(a, b, strict=True))
    return same / sum(x.numel() for x in a)


def _time(
    device: torch.device, condition: Callable[[], Conditioning], contender: Contender
) -> tuple[Run, Generation | Published]:
    wait(device)
    begun, cpu = time.perf_counter(), time.process_time()
    conditioning = condition()
    wait(device)
    text = time.perf_counter()
    made = contender.make(conditioning)
    wait(device)
    done = time.perf_counter()
    run = Run(
        total_ms=1000 * (done - begun),
        cpu_ms=1000 * (time.process_time() - cpu),
        text_ms=1000 * (text - begun),
        loop_ms=made.loop_ms,
        decode_ms=made.decode_ms,
        scale_ms=tuple(made.scale_ms),
    )
    return run, made


def _figures(
    model: ScaleModel,
    batch: int,
    plan: Plan,
    runs: Mapping[str, Sequence[Run]],
    name: str,
    decode: float,
    ceiling: Mapping[str, float],
) -> dict[str, Any]:
    own = runs[name]
    flops = [batch * f for f in scale_flops(model.info, plan)]
    scale_ms = [median(values) for values in zip(*(run.scale_ms for run in own), strict=True)]
    out: dict[str, Any] = {
        key: _spread([getattr(run, key) for run in own])
        for key in ("total_ms", "cpu_ms", "text_ms", "loop_ms", "decode_ms")
    }
    out["images_per_s"] = 1000 * batch / out["total_ms"]["median"]
    out["scales"] = [
        {"ms": ms, **_rate(f, ms, ceiling["tflops"])} for f, ms in zip(flops, scale_ms, strict=True)
    ]
    out["loop"] = _rate(sum(flops), out["loop_ms"]["median"], ceiling["tflops"])
    out["decode"] = _rate(decode, out["decode_ms"]["median"], ceiling["tflops"])
    for other in (PUBLISHED, EXACT):
        if other in runs and other != name:
            out[f"vs_{other}"] = {
                part: median(
                    getattr(a, f"{part}_ms") / getattr(b, f"{part}_ms")
                    for a, b in zip(runs[other], own, strict=True)
                )
                for part in ("total", "cpu", "loop", "decode")
            }
    return out


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def _rate(flops: float, ms: float, ceiling_tflops: float) -> dict[str, float]:
    """Work in TFLOP, rate in TFLOP/s, and its share of the measured matrix product."""
    rate = flops / ms / 1e9 if ms else 0.0
    return {"tflop": flops / 1e12, "tflops": rate, "of_ceiling": rate / ceiling_tflops}


def document(
    name: str,
    model: ScaleModel,
    sampling: Sampling,
    batches: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    created_at: str,
) -> dict[str, Any]:
    """The whole JSON document of one run."""
    notes = [
        "ms are per batch; ratios are medians of ratios within a round",
        "cpu: processor time of this process, hardly changed by what else the machine runs",
        "FLOP of the loop are those of the blocks the plan runs (text, AdaLN and head left out)",
    ]
    if model.info.family not in MAKE_PUBLISHED:
        notes.append(f"no published loop was written for the {model.info.family} family")
    return {
        "kind": KIND,
        "version": VERSION,
        "stagevar": stagevar_runtime.__version__,
        "created_at": created_at,
        "model": {
            "name": name,
            "family": model.info.family,
            "depth": model.info.depth,
            "width": model.info.width,
            "scales": [[s.height, s.width] for s in model.scales()],
        },
        "hardware": describe_machine(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "sampling": {
            "guidance": sampling.guidance,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
        },
        **settings,
        "notes": notes,
        "batches": list(batches),
    }


def table(doc: Mapping[str, Any]) -> str:
    """The document for people, one table a batch."""
    lines = [f"{doc['model']['name']} on {doc['hardware'].get('name', '?')}, {doc['dtype']}"]
    for part in doc["batches"]:
        ceiling = part["ceiling"]
        lines.append(
            f"batch {part['batch']}: measured ceiling {ceiling['tflops']:.3g} TFLOP/s, "
            f"copy {ceiling['copy_gb_s']:.3g} GB/s"
        )
        rows = [("", "total ms", "cpu", "loop", "decode", "vs published", "vs exact", "of ceiling")]
        for name, f in part["runs"].items():
            total = f["total_ms"]
            rows.append(
                (
                    name,
                    f"{total['median']:.0f} [{total['min']:.0f}, {total['max']:.0f}]",
                    f"{f['cpu_ms']['median']:.0f}",
                    f"{f['loop_ms']['median']:.0f}",
                    f"{f['decode_ms']['median']:.0f}",
                    _ratio(f.get(f"vs_{PUBLISHED}")),
                    _ratio(f.get(f"vs_{EXACT}")),
                    f"loop {f['loop']['of_ceiling']:.0%} decode {f['decode']['of_ceiling']:.0%}",
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
    return "\n".join(lines)


def _ratio(versus: Mapping[str, float] | None) -> str:
    if versus is None:
        return "-"
    return f"{versus['total']:.2f}x (loop {versus['loop']:.2f}x, cpu {versus['cpu']:.2f}x)"


def bench(
    checkpoint: Path | None,
    random: str | None,
    options: ModelOptions,
    plans: Sequence[str] = (),
    batches: Sequence[int] = (1, 4, 8),
    repeats: int = 5,
    output: Path | None = None,
    compile: str = "off",
    quiet: bool = False,
) -> Said:
    """``stagevar-probe bench``.

    Raises:
        StagevarError: neither or both of a checkpoint and a size with random weights were given.
    """
    if (checkpoint is None) == (random is None):
        raise StagevarError("got neither or both of CHECKPOINT and --random, expected one of them")
    if output is not None:
        check_writable(output)
    profile = None
    if checkpoint is not None:
        pipeline = options.load(checkpoint, "auto")
        model, profile, name = pipeline.model, pipeline.profile, checkpoint.stem
        sampling = pipeline.sampling(**options.sampling)

        def conditioning(batch: int) -> Conditioning:
            return options.inputs(pipeline, batch, held_out=False).condition(model)
    else:
        assert random is not None
        model, name = random_model(random, options.device, options.dtype), f"{random}-random"
        sampling = replace(model.default_sampling, **options.sampling)

        def conditioning(batch: int) -> Conditioning:
            return random_conditioning(model, batch, options.seed)

    chosen = list(plans) or [*(profile.plans if profile else ()), *DEFAULT_PLANS]
    named = contenders(model, sampling, chosen, options.seed, profile)
    compiled = compile_model(model, compile)  # the published loop calls no block of ours
    parts = []
    with meter(name, len(batches) * len(named) * (repeats + 1), quiet) as tick:
        for batch in batches:
            parts.append(measure(model, partial(conditioning, batch), named, repeats, tick))
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    settings = {"repeats": repeats, "seed": options.seed, "compile": compiled}
    found = document(name, model, sampling, parts, settings, now)
    target = output or RESULTS / f"{_slug(found)}.json"
    if output is None:
        RESULTS.mkdir(parents=True, exist_ok=True)
    write_whole(target, (json.dumps(found, indent=1) + "\n").encode())
    return found, f"{table(found)}\nwritten to {target}"


def _slug(found: Mapping[str, Any]) -> str:
    """One file a model, machine, dtype and version."""
    machine = found["hardware"]
    mode = found["compile"]
    threads = f"-{machine['threads']}t" if machine["device"] == "cpu" else ""
    parts = (
        found["model"]["name"],
        f"{machine.get('name', machine['device'])}{threads}",
        found["dtype"],
        *([] if mode.startswith("off") else [f"compile-{mode.partition(':')[0]}"]),
        f"v{found['stagevar']}",
    )
    return "_".join(re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-") for part in parts)
