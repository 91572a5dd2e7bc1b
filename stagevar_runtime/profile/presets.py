"""Published baselines as plans for any model: ``pipeline.enable("stagevar")``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..errors import ProfileError
from ..model.protocol import Branch, ModelInfo, ScaleSpec
from .schema import PlanStep, TokenOption

Ranks = Mapping[int, Sequence[float]]  # scale → keep ratio of each group


def stagevar(info: ModelInfo, scales: Sequence[ScaleSpec], ranks: Ranks | None) -> list[PlanStep]:
    """StageVAR as its paper says, nothing skipped (arXiv 2512.16483, sections 4.2 and 4.3).

    Refinement is the last three scales of 13, the last two otherwise: the null branch alone,
    random projection to the measured rank, cached features elsewhere. With 13 scales all three are
    reduced, otherwise the last only. ``ranks`` are the ratios at 96 % of the energy; without a
    measurement .15 for every group, the mean of those published for Infinity-2B. Where the null
    branch cannot run alone (STAR), the cond branch is kept; a final stage that is no plain token
    map (HART) is not reduced.
    """
    count = len(scales)
    late = 3 if count == 13 else 2
    reduced = late if count == 13 else 1
    branch: Branch = "null" if info.rows_independent else "cond"
    steps = []
    for k in range(count - late, count):
        tokens = None
        if k >= count - reduced and scales[k].kind == "ar":
            measured = ranks.get(k) if ranks else None
            least = 1 / scales[k].tokens  # what does not differ has rank 0: one token runs
            ratios = tuple(max(rank, least) for rank in measured or (0.15,) * len(info.groups))
            tokens = TokenOption(keep=ratios, select="projection", restore="cache")
        steps.append(PlanStep(scale=k, guidance=branch, tokens=tokens))
    return steps


def stagevar_released(
    info: ModelInfo, scales: Sequence[ScaleSpec], ranks: Ranks | None
) -> list[PlanStep]:
    """StageVAR as its demo runs: of 13 scales the last two are left out altogether."""
    steps = stagevar(info, scales, ranks)
    if len(scales) != 13:
        return steps
    return steps[:-2] + skip(2, scales)


def fastvar(info: ModelInfo, scales: Sequence[ScaleSpec], ranks: Ranks | None) -> list[PlanStep]:
    """FastVAR (arXiv 2503.23367), per block where its code reduces per sub-layer.

    Of K scales the last two are left out; K-4 and K-3 leave 40 and 50 % of the tokens out in the
    blocks between the first 3 and the last 4 of 32. The tokens farthest from the mean run, the
    others add what the blocks added at the scale before (its code always takes the one of 24x24).
    Source: ``Infinity/infinity/models/fastvar_utils.py`` and ``fastvar_basic.py``.
    """
    first, last = round(info.depth * 3 / 32), info.depth - round(info.depth * 4 / 32)
    steps = []
    for k, keep in ((len(scales) - 4, 0.6), (len(scales) - 3, 0.5)):
        if k > 0 and scales[k].kind == "ar" and scales[k].is_map and scales[k - 1].is_map:
            ratios = tuple(keep if first <= i < last else 1.0 for i in range(info.depth))
            option = TokenOption(
                keep=ratios, select="deviation", restore="delta-cache", span="block"
            )
            steps.append(PlanStep(scale=k, tokens=option))
    return steps + skip(2, scales)


def skip(count: int, scales: Sequence[ScaleSpec]) -> list[PlanStep]:
    """Leave out the last ``count`` scales."""
    return [PlanStep(scale=k, run="skip") for k in range(len(scales) - count, len(scales))]


def skip_1(info: ModelInfo, scales: Sequence[ScaleSpec], ranks: Ranks | None) -> list[PlanStep]:
    """Leave out the last scale."""
    return skip(1, scales)


def skip_2(info: ModelInfo, scales: Sequence[ScaleSpec], ranks: Ranks | None) -> list[PlanStep]:
    """Leave out the last two scales."""
    return skip(2, scales)


def cfg_off(info: ModelInfo, scales: Sequence[ScaleSpec], ranks: Ranks | None) -> list[PlanStep]:
    """No guidance on the last three scales: the cond branch alone."""
    return [PlanStep(scale=len(scales) - 3, guidance="cond")]


def switti(info: ModelInfo, scales: Sequence[ScaleSpec], ranks: Ranks | None) -> list[PlanStep]:
    """Switti's (arXiv 2412.01819): the last three scales cond alone, at temperature 0.1.

    Its README's setting for 14 scales (``turn_off_cfg_start_si=11, last_scale_temp=0.1``).
    """
    count = len(scales)
    return [PlanStep(scale=k, guidance="cond", temperature=0.1) for k in range(count - 3, count)]


def fastvar_cfg_off(
    info: ModelInfo, scales: Sequence[ScaleSpec], ranks: Ranks | None
) -> list[PlanStep]:
    """FastVAR with guidance dropped as well, which StageVAR's reviewers asked for."""
    steps = {step.scale: step for step in fastvar(info, scales, ranks)}
    first = len(scales) - 3
    steps[first] = PlanStep(
        scale=first, guidance="cond", tokens=steps[first].tokens if first in steps else None
    )
    return [step for _, step in sorted(steps.items())]


def in_8_bits(
    preset: Callable[[ModelInfo, Sequence[ScaleSpec], Ranks | None], list[PlanStep]] | None,
) -> Callable[[ModelInfo, Sequence[ScaleSpec], Ranks | None], list[PlanStep]]:
    """Another preset (None: the exact path) with int8 products at every scale that runs."""

    def made(info: ModelInfo, scales: Sequence[ScaleSpec], ranks: Ranks | None) -> list[PlanStep]:
        steps = {step.scale: step for step in preset(info, scales, ranks)} if preset else {}
        for k in range(len(scales)):
            step = steps.get(k, PlanStep(scale=k))
            if step.run != "skip":
                steps[k] = step.model_copy(update={"precision": "int8"})
        return [steps[k] for k in sorted(steps)]

    return made


PRESETS: dict[str, Callable[[ModelInfo, Sequence[ScaleSpec], Ranks | None], list[PlanStep]]] = {
    "stagevar": stagevar,
    "stagevar-released": stagevar_released,
    "fastvar": fastvar,
    "fastvar+cfg-off": fastvar_cfg_off,
    "skip-1": skip_1,
    "skip-2": skip_2,
    "cfg-off": cfg_off,
    "switti": switti,
    "int8": in_8_bits(None),
    "cfg-off+int8": in_8_bits(cfg_off),
    "stagevar+int8": in_8_bits(stagevar),
}


def preset(
    name: str, info: ModelInfo, scales: Sequence[ScaleSpec], ranks: Ranks | None = None
) -> list[PlanStep]:
    """The steps of a published baseline on this model.

    Raises:
        ProfileError: unknown name, or a model with too few scales.
    """
    if name not in PRESETS:
        raise ProfileError(f"unknown preset {name!r}, expected one of {', '.join(PRESETS)}")
    if len(scales) < 4:
        raise ProfileError(f"preset {name!r} needs 4 scales, the model has {len(scales)}")
    return PRESETS[name](info, scales, ranks)
