"""Plans compiled for a toy model of four scales that never runs."""

from typing import Any

import pytest

from stagevar_runtime import Sampling
from stagevar_runtime.errors import ProfileError
from stagevar_runtime.loop.plan import Plan, compile_plan
from stagevar_runtime.model.protocol import ModelInfo, ScaleSpec
from stagevar_runtime.profile import PlanStep

SAMPLING = Sampling(guidance=2.0, top_k=20, top_p=0.95)
SCALES = tuple(ScaleSpec(k, s, s, s * s) for k, s in enumerate((1, 2, 3, 4)))


def info_of(**changes: Any) -> ModelInfo:
    groups = range(0, 1), range(1, 2)
    return ModelInfo("toy", 2, 64, 2, groups, **({"guidance": "ramp"} | changes))


def compiled(*steps: PlanStep, info: ModelInfo | None = None, scales=SCALES) -> Plan:
    return compile_plan(steps, info or info_of(), scales, SAMPLING)


def refused(*steps: PlanStep, info: ModelInfo | None = None, scales=SCALES) -> str:
    with pytest.raises(ProfileError) as caught:
        compiled(*steps, info=info, scales=scales)
    assert "\n" not in str(caught.value)
    return str(caught.value)
