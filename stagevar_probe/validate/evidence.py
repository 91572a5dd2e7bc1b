"""What the inputs of a proof show of one plan: bounds of its losses, by metric and by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stagevar_runtime.loop.plan import EXACT

from ..datasets.inputs import Inputs
from ..intervals import Interval
from ..measure.validation import BudgetEvidence, Evidence
from .run import Batch, per_image
from .sequential import NORMAL, Control, paired_bounds
from .verdict import UNPROVEN, Budget, together

Seen = Sequence[tuple[Inputs, Batch]]

TIMES = 3.0  # the budget: what a kind of prompts must be shown to lose more than, to be named
LEVEL = 0.05  # chance that any kind is named wrongly


def losses_of(seen: Sequence[Batch], name: str, metric: str | None = None) -> NDArray[np.float64]:
    """Exact minus plan, one value an input. ``metric``: one beside the first."""
    if metric is None:
        return per_image(seen, EXACT, "score") - per_image(seen, name, "score")
    exact, own = ([b[n].beside[metric] for b in seen] for n in (EXACT, name))
    return np.concatenate(exact) - np.concatenate(own)


def losses_by_tag(seen: Seen, name: str, tags: Mapping[str, str]) -> dict[str, NDArray[np.float64]]:
    """The losses of every kind of prompts that has two draws or more."""
    if not tags or not seen:
        return {}
    kinds = np.array([tags.get(str(item), "") for inputs, _ in seen for item in inputs.items])
    losses = losses_of([batch for _, batch in seen], name)
    found = {str(kind): losses[kinds == kind] for kind in np.unique(kinds) if kind}
    return {kind: own for kind, own in found.items() if len(own) > 1}


def evidence_of(
    seen: Seen,
    name: str,
    budgets: Sequence[Budget],
    critical: float,
    control: Control | None = None,
    tags: Mapping[str, str] | None = None,
) -> Evidence:
    """Bounds and verdicts of one plan, under the first metric's budget and those beside it; a
    budget with a tag is one of the draws of that kind.

    ``critical``: standard errors of both ends. ``control``: of the first metric.
    """
    batches = [batch for _, batch in seen]
    kinds = losses_by_tag(seen, name, tags or {})
    found = []
    for i, budget in enumerate(budgets):
        if budget.tag is not None:
            losses = kinds.get(budget.tag, np.zeros(0))
        else:
            losses = losses_of(batches, name, budget.metric if i else None)
        if len(losses) > 1:
            bounds = paired_bounds(losses, (critical, critical), None if i else control)
            found.append(
                BudgetEvidence(
                    budget.metric,
                    budget.max_loss,
                    budget.margin,
                    budget.tag,
                    bounds,
                    budget.verdict(bounds),
                    budget.inputs_needed(bounds, len(losses)),
                )
            )
        else:
            nothing = Interval(0.0, -1.0, 1.0)
            found.append(
                BudgetEvidence(
                    budget.metric, budget.max_loss, budget.margin, budget.tag, nothing, UNPROVEN
                )
            )
    z = NORMAL.inv_cdf(1 - LEVEL / max(1, len(kinds)))
    by_kind = {kind: paired_bounds(losses, (z, z)) for kind, losses in kinds.items()}
    limit = TIMES * budgets[0].max_loss
    return Evidence(
        verdict=together(part.verdict for part in found),
        budgets=tuple(found),
        inputs=sum(len(inputs) for inputs, _ in seen),
        tags=by_kind,
        named=tuple(kind for kind, bounds in by_kind.items() if bounds.low > limit),
    )
