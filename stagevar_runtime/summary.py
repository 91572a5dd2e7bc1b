"""What a pipeline does and did, scale by scale: asked, done, and how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .loop.plan import Plan, ScaleStep
from .model.protocol import ScaleModel
from .profile.schema import PlanStep
from .tables import columns


@dataclass(frozen=True)
class SummaryRow:
    """One scale of the last generation: what was asked of it and what was done."""

    scale: int
    grid: str
    rows: int
    tokens: int
    kept_tokens: tuple[int, ...]
    ms: float
    asked: str
    done: str


@dataclass(frozen=True)
class MemoryUse:
    """MB of the last call's keys and values: with both branches, after guidance was dropped
    (None: it was not), and what both branches to the end would have held; the peak and what of."""

    guided_mb: float
    dropped_mb: float | None
    exact_mb: float
    peak_mb: float
    peak_of: str

    def __str__(self) -> str:
        after = (
            "" if self.dropped_mb is None else f", {self.dropped_mb:.1f} MB after it was dropped"
        )
        return (
            f"keys and values: {self.guided_mb:.1f} MB with guidance{after}; exact path "
            f"{self.exact_mb:.1f} MB. Peak memory {self.peak_mb:.0f} MB {self.peak_of}"
        )


@dataclass(frozen=True)
class Summary:
    """What the pipeline does, and what it did last. ``str()`` of it is a table."""

    model: str
    device: str
    dtype: str
    profile: str
    plan: str
    notes: tuple[str, ...]
    rows: tuple[SummaryRow, ...]
    loop_ms: float
    decode_ms: float
    images: int
    first_ms: float
    last_ms: float
    memory: MemoryUse

    def __str__(self) -> str:
        lines = [
            f"{self.model} on {self.device}, {self.dtype}",
            f"profile {self.profile}, plan {self.plan}",
            *self.notes,
        ]
        head = ("scale", "grid", "rows", "tokens", "run", "ms", "asked", "done")
        table = [head] + [
            (
                str(row.scale),
                row.grid,
                str(row.rows),
                str(row.tokens),
                "/".join(map(str, dict.fromkeys(row.kept_tokens))) or "0",
                f"{row.ms:.1f}" if self.images else "-",
                row.asked,
                row.done,
            )
            for row in self.rows
        ]
        lines.append(columns(table))
        if self.images:
            lines.append(
                f"last call: {self.images} images, loop {self.loop_ms:.1f} ms, "
                f"decode {self.decode_ms:.1f} ms"
            )
            lines.append(
                f"all but text: {self.last_ms:.1f} ms, the first call of this shape "
                f"{self.first_ms:.1f} ms"
            )
            lines.append(str(self.memory))
        return "\n".join(lines)


def memory_use(model: ScaleModel, plan: Plan, batch: int, held: Sequence[int]) -> MemoryUse:
    """What ``held`` bytes of keys and values after each scale mean, and the peak."""
    guided = [size for size, step in zip(held, plan, strict=False) if len(step.branches) == 2]
    dropped = [size for size, step in zip(held, plan, strict=False) if len(step.branches) == 1]
    info, tokens = model.info, sum(step.scale.tokens for step in plan)
    token = 2 * info.depth * info.width * model.dtype.itemsize  # a row's keys and values
    exact = token * len(info.branches) * batch * tokens if any(held) else 0
    peak, what = peak_memory(model.device)
    return MemoryUse(
        guided_mb=max(guided, default=0) / 1e6,
        dropped_mb=max(dropped) / 1e6 if dropped else None,
        exact_mb=exact / 1e6,
        peak_mb=peak,
        peak_of=what,
    )


def summary_row(model: ScaleModel, step: ScaleStep, ms: float, batch: int) -> SummaryRow:
    skipped = step.run == "skip"
    kept = (
        ()
        if skipped
        else tuple(g.tokens.keep if g.tokens else step.scale.tokens for g in step.groups)
    )
    done = ["skipped"] if skipped else []
    if not skipped:
        alone = "cond + cached difference" if step.delta else f"{step.branches[0]} alone"
        done.append("guided" if len(step.branches) == 2 else alone)
        if step.weights:
            done[-1] += f" {step.weights[0]:.3g}"
        if step.null_tokens:
            done[-1] += f" on {step.null_tokens} tokens"
        reduced = [g.tokens for g in step.groups if g.tokens]
        if reduced:
            one = reduced[0]
            done.append(f"{len(reduced)}/{len(step.groups)} groups {one.select} + {one.restore}")
        done += [layers.description(model) for layers in step.layers]
        if step.temperature != 1.0:
            done.append(f"temperature {step.temperature:g}")
    return SummaryRow(
        scale=step.scale.index,
        grid=f"{step.scale.height}x{step.scale.width}",
        rows=0 if skipped else batch * len(step.branches),
        tokens=step.scale.tokens,
        kept_tokens=kept,
        ms=ms,
        asked=_asked(step.asked),
        done=", ".join(done),
    )


def _asked(step: PlanStep | None) -> str:
    if step is None:
        return "-"
    said = step.model_dump(exclude_defaults=True, exclude={"scale"})
    tokens, features = said.pop("tokens", None), said.pop("features", None)
    parts = [f"{name} {value}" for name, value in said.items()]
    if tokens:
        keep = tokens["keep"]
        ratio = f"{sum(keep) / len(keep):.2g} mean" if isinstance(keep, tuple) else f"{keep:g}"
        parts.append(f"keep {ratio} {tokens['select']}")
    if features:
        parts.append(f"rank {features['rank']} {features['basis']}")
    return ", ".join(parts) or "full"


def peak_memory(device: torch.device) -> tuple[float, str]:
    """Peak in MB and what it is the peak of: nothing is reset, so it counts from the start.

    On CUDA what PyTorch allocated on the device; elsewhere what the process had in memory.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6, "allocated on the device so far"
    try:
        import resource
    except ImportError:  # Windows
        return 0.0, "not known on this system"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, "of the process so far"
