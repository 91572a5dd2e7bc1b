"""Which finalist stays, and which plan is chosen where nothing can be shown.

pytest tests/probe/calibrate/test_proving.py
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from stagevar_probe.calibrate.proving import FUTILE, Proof
from stagevar_probe.calibrate.racing import Raced, Standing
from stagevar_probe.calibrate.runner import Piece
from stagevar_probe.datasets.inputs import Inputs
from stagevar_probe.solve.candidates import Candidate
from stagevar_probe.validate.run import Observed
from stagevar_runtime.loop.plan import EXACT

MS = {EXACT: 100.0, "gentle": 70.0, "good": 50.0, "wild": 25.0}
SIZE = 16


def piece(worse: float = 0.0, **lost: int) -> Piece:
    """A batch of which the exact path passes all and plans all but so many; ``worse``: what a plan
    loses of its smooth score where it passes."""
    seen = {}
    for name, many in {EXACT: 0, **lost}.items():
        score = [0.0] * many + [1.0] * (SIZE - many)
        none = [0.0] * SIZE
        smooth = [x - worse * (name != EXACT and x > 0) for x in score]
        seen[name] = Observed(score, smooth, [none], none, none, MS[name], MS[name], 0.0, [])
    items = tuple(range(SIZE))
    return Piece(Inputs("made", items, items), seen, 1.0)


def proof(planned: int, *pieces: Piece, race: tuple[Piece, ...] = (), **loss: float) -> Proof:
    """A proof in its middle. ``loss``: by plan what the race thought of it."""
    names = [name for name in MS if name in loss]
    candidates = [Candidate(name, (), MS[name], 0.0) for name in names]
    standings = {n: Standing(loss[n], 0.01, MS[EXACT] / MS[n]) for n in names}
    raced = Raced(candidates, {}, list(race), standings)
    quality: Any = SimpleNamespace(name="scenes", reference=None)
    settings = SimpleNamespace(max_loss=0.01, others=(), also=None)
    materials = SimpleNamespace(quality=quality, proof=SimpleNamespace(tags={}))
    made = Proof(SimpleNamespace(settings=settings, materials=materials), raced)  # type: ignore[arg-type]
    made._fill()
    made.planned, made.pieces = planned, list(pieces)
    return made


def test_a_plan_that_lost_little_stays_where_few_inputs_can_show_nothing() -> None:
    """Two of 96 lost, 280 inputs in all: no plan could be shown to keep .01, and this may."""
    lost = [piece(good=int(i < 2)) for i in range(6)]
    found = proof(280, *lost, good=0.0, gentle=0.0)
    assert [f.name for f in found.finalists] == ["good"]
    found.look()
    assert found.running and found._chance(found.finalists[0]) > FUTILE


def test_a_plan_that_lost_much_makes_room() -> None:
    lost = [piece(good=int(i % 2 == 0)) for i in range(8)]
    found = proof(280, *lost, good=0.0, gentle=0.0)
    found.look()
    assert found.finalists[0].left == "hardly to come out within the budget"
    found._fill()
    assert found.running[0].name == "gentle" and found.running[0].begin == 8 * SIZE


def test_where_proof_is_in_reach_it_is_what_counts() -> None:
    """.0125 lost on 800 of 1,000 will not come out within .01; nothing lost on 64 of 100 may."""
    lost = [piece(good=int(i % 5 == 0)) for i in range(50)]
    shown = proof(1000, *lost, good=0.0)
    assert shown._chance(shown.finalists[0]) < FUTILE
    few = proof(100, *lost[1:5], good=0.0)
    assert few._chance(few.finalists[0]) > 0.5


@pytest.mark.parametrize(
    ("lost", "chosen"),
    [
        ({"good": 0}, "good"),
        ({"good": 2}, "gentle"),  # known of the race alone, and unproven
    ],
)
def test_the_best_plan_is_a_finalist_else_one_that_waited(
    lost: dict[str, int], chosen: str
) -> None:
    race = (piece(good=0, gentle=0, wild=8),) * 3
    found = proof(48, *(piece(**lost) for _ in range(3)), race=race, good=0.0, gentle=0.0)
    found.beside = dict.fromkeys(found.beside)
    found.look(final=True)
    best = found.best()
    assert best is not None and best.name == chosen
    assert best.verdict == "unproven"


def test_a_few_passes_do_not_hide_what_the_smooth_score_says() -> None:
    ran = [piece(worse=0.05, good=0, gentle=0)]
    found = proof(16, *ran, good=0.0)
    found.beside = dict.fromkeys(found.beside)
    found.look(final=True)
    assert found.finalists[0].evidence is not None and found.finalists[0].evidence.keeps
    assert found.best() is None


def test_nothing_is_chosen_where_every_plan_seems_to_lose() -> None:
    race = (piece(good=1, gentle=1),) * 3
    found = proof(48, *(piece(good=2) for _ in range(3)), race=race, good=0.0, gentle=0.0)
    found.beside = dict.fromkeys(found.beside)
    found.look(final=True)
    assert found.best() is None


def test_no_plan_is_slower_than_a_gentler_one() -> None:
    """A race of few inputs thought the faster plan the gentler one."""
    ran = [piece(good=0, wild=0, gentle=0) for _ in range(3)]
    found = proof(48, *ran, good=0.0)
    found.look(final=True)
    wild, gentle = (Candidate(name, (), MS[name], 0.0) for name in ("wild", "gentle"))
    found.beside = {"quality": wild, "fast": gentle}
    assert {n: c and c.name for n, c in found.chosen(found.best()).items()} == dict.fromkeys(
        ("quality", "balanced", "fast"), "good"
    )
    found.beside = {"quality": gentle, "fast": wild}
    names = {n: c and c.name for n, c in found.chosen(found.best()).items()}
    assert names == {"quality": "gentle", "balanced": "good", "fast": "wild"}
