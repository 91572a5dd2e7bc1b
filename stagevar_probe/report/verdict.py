"""What the proof of a calibration shows, in words for its report."""

from __future__ import annotations

from stagevar_runtime.profile import TargetResult

from ..measure.figures import Figures
from ..measure.measurements import Measurements
from ..measure.validation import Evidence
from ..validate.table import evidence_lines
from ..validate.verdict import UNPROVEN
from .html import TableData


def sentences(best: Figures | None, target: TargetResult, evidence: Evidence | None = None) -> str:
    """What was shown of the balanced plan, in sentences."""
    if best is None:
        return "Nothing was validated on held-out inputs."
    loss, low, high = best.loss
    kept = "keeps" if target.satisfied is True else "misses"
    if target.satisfied == UNPROVEN:
        kept = "seems to keep, and is not proved to keep,"
    goal = f"budget of {target.max_loss:g}"
    if target.min_speedup is not None:
        goal = f"target of {target.min_speedup:g}x end to end"
    elif target.max_ms is not None:
        goal = f"target of {target.max_ms:g} ms an image"
    distribution = ""
    if best.kid_loss is not None:
        worse = best.significantly_worse
        distribution = (
            f", distribution {'significantly worse' if worse else 'not significantly worse'}"
        )
    return (
        f"The balanced plan {kept} its {goal}: it loses {loss:.4f} "
        f"[{low:.4f}, {high:.4f}] {best.metric} on {best.images} held-out images"
        f"{distribution}." + "".join(f" {_sentence(line)}" for line in _shown(evidence))
    )


def _shown(evidence: Evidence | None) -> list[str]:
    return [] if evidence is None else evidence_lines(evidence)


def _sentence(line: str) -> str:
    return f"{line[:1].upper()}{line[1:]}."


def plan_verdict(
    name: str, figures: Figures, measured: Measurements, target: TargetResult
) -> bool | str:
    """What was shown of a plan; of one that ran for its figures alone, nothing."""
    if name == "balanced":
        return target.satisfied
    if not any(figures.loss) or name == "exact":
        return True
    return UNPROVEN if figures.loss.mean <= target.max_loss else False


def tag_tables(measured: Measurements) -> list[TableData]:
    """What the balanced plan loses on every kind of prompts, where prompts say their kind."""
    evidence = measured.validation.evidence.get("balanced")
    if evidence is None or not evidence.tags:
        return []
    rows = [
        [tag, f"{loss.mean:+.4f}", f"{loss.low:+.4f} to {loss.high:+.4f}"]
        for tag, loss in evidence.tags.items()
    ]
    return [
        {
            "title": "By kind of prompts",
            "header": ["kind", f"{measured.job.metric} lost", "shown to be within"],
            "rows": rows,
            "caption": "The balanced plan on the inputs of its proof. All intervals hold at once, "
            "in 19 of 20 calibrations at each end.",
        }
    ]
