"""Held-out figures of plans as a table."""

from __future__ import annotations

from collections.abc import Mapping

from stagevar_runtime.loop.plan import EXACT

from ..measure.figures import Figures
from ..measure.validation import Evidence
from ..tables import NONE, columns
from .verdict import said


def figures_table(figures: Mapping[str, Figures]) -> str:
    """Held-out figures of plans as a table."""
    kid = next(iter(figures.values())).kid_name or "KID"
    head = ("plan", "loss [95 %]", "score", kid, "PSNR", "transformer", "loop", "total")
    rows = [head]
    for name, f in figures.items():
        network = f.exact_transformer_ms / f.transformer_ms
        loss = NONE if name == EXACT else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*f.loss)
        rows.append(
            (
                name,
                loss,
                f"{f.score[0]:.4f}",
                f"{f.kid:.2f}" if f.kid is not None else NONE,
                NONE if name == EXACT else f"{f.psnr[0]:.1f}",
                f"{f.transformer_ms:.0f} ms {network:.2f}x",
                f"{f.loop_ms:.0f} ms {f.exact_loop_ms / f.loop_ms:.2f}x",
                f"{f.total_ms:.0f} ms {f.exact_total_ms / f.total_ms:.2f}x",
            )
        )
    return columns(rows)


def evidence_lines(evidence: Evidence) -> list[str]:
    """What the proof shows of a plan, in sentences."""
    lines = []
    for part in evidence.budgets:
        what = part.metric if part.tag is None else f"{part.metric} on {part.tag} prompts"
        mean, low, high = part.bounds
        lines.append(
            f"{what}: {mean:+.4f} lost, shown to be between {low:+.4f} and {high:+.4f} "
            f"({said(part.verdict)}: at most {part.max_loss:g}, with a margin of {part.margin:g})"
        )
    if evidence.verdict == "unproven" and evidence.more:
        lines.append(f"about {evidence.more} more inputs would settle it: --time")
    lines += [f"{tag} prompts are shown to lose several times the budget" for tag in evidence.named]
    return lines
