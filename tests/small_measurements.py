"""Measurements of four scales with known losses, for tests that run no model."""

from __future__ import annotations

from stagevar_probe.measure.costs import Costs
from stagevar_probe.measure.description import JobDescription, JobInputs, ScaleSize
from stagevar_probe.measure.interventions import PUBLISHED, Intervention, SearchSpace
from stagevar_probe.measure.measurements import Measurements
from stagevar_probe.observe.rank import ALPHA, CENTRINGS, RankKey, ratio_name
from stagevar_probe.solve.milp import FULL, SKIP, Choice, Solution
from stagevar_runtime.model.protocol import ModelInfo, ScaleSpec
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.profile import TokenOption

SIDES = (1, 2, 3, 4)
TOKEN_COUNTS = (1, 4, 9, 16)  # 1 of 30 before scale 1, 5 before scale 2
SCALES = tuple(ScaleSpec(k, s, s, s * s) for k, s in enumerate(SIDES))
INFO = ModelInfo("var", 2, 64, 2, (range(0, 1), range(1, 2)), guidance="ramp")
SAMPLING = Sampling(guidance=2.0)
TOKENS = {"half": TokenOption(keep=0.5, select="norm", restore="cache", span="all")}
MENU = SearchSpace(
    {PUBLISHED: None, "constant 3": 3.0},
    {"cond": ("cond", None), "cool": ("cond", 0.6), "null": ("null", None)},
    TOKENS,
)
ARMS = [
    Intervention("constant 3", 0, "constant 3"),
    Intervention("cond from 2", 2, PUBLISHED, "cond"),
    Intervention("null from 2", 2, PUBLISHED, "null"),
    Intervention("joint", 2, "constant 3", "cool"),
    Intervention("half at 3", 3, tokens="half"),
    Intervention("skip from 3", 3, skip=True),
]
MS = {
    **{(k, rows, FULL): float(rows * (k + 1)) for k in range(4) for rows in (1, 2)},
    **{(3, rows, "half"): 2.5 * rows for rows in (1, 2)},
}
JOB = JobDescription(
    checkpoint="m.pth",
    family="var",
    architecture="sha256:" + "a" * 64,
    weights="sha256:" + "b" * 64,
    schedule_name="4x4",
    scales=tuple(ScaleSize(s, s, s * s) for s in SIDES),
    groups=((0, 1), (1, 2)),
    inputs=JobInputs("balanced-labels", "sha256:" + "c" * 64, count=2, held_out=2),
    seed=0,
    batch=2,
    sampling=Sampling(guidance=2.0, top_k=20, top_p=0.95),
    metric="agreement",
    max_loss=0.01,
    dtype="float32",
    hardware={"device": "cpu", "threads": 1},
    version="0.1.0",
)


def measured(**values: list[float]) -> Measurements:
    losses = {
        "exact": [1.0, 0.8],
        "constant 3": [1.0, 0.9],
        "cond from 2": [0.9, 0.8],
        "null from 2": [0.5],  # given up
        "joint": [1.0, 0.76],
        "half at 3": [0.9, 0.88],
        "skip from 3": [0.6, 0.6],
    }
    curve = [[0.1, 0.5, 0.9, 1.0], [0.1, 0.6, 0.9, 1.0]]
    return Measurements(
        job=JOB,
        space=MENU,
        interventions=ARMS,
        smooth=losses | values,
        sensitivity={2: {"cond": [0.1, 0.3]}},
        ranks={
            RankKey(3, g, "cond", c): {
                ratio_name(ALPHA): [0.25, 0.75] if g else [0.5, 0.5],
                "effective_rank": [2.0, 4.0],
                "stable_rank": [1.0, 2.0],
            }
            for g in (1, 0)
            for c in CENTRINGS
        },
        semantic=curve,
        structural=curve,
        costs=Costs(MS, {cell: 0.1 for cell in MS}, 5.0, 2, 3),
    )


def solution(schedule=PUBLISHED, drop=None, skip=None, tokens: dict[int, str] | None = None):
    choices = []
    for k in range(4):
        if skip is not None and skip[0] <= k < skip[1]:
            choices.append(Choice(k, "skip", SKIP, 0, SKIP, 0.0))
            continue
        gone = drop is not None and k >= drop[0]
        guidance, rows = (drop[1], 1) if gone else (FULL, 2)
        choices.append(Choice(k, "full", guidance, rows, (tokens or {}).get(k, FULL), 1.0))
    return Solution(
        tuple(choices), schedule, drop, (skip,) if skip else (), None, 1.0, 2.0, 0.0, 0.1
    )
