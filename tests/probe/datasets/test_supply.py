"""Inputs without end: fresh draws, split by what they are for.

pytest tests/probe/datasets/test_supply.py
"""

from __future__ import annotations

from stagevar_probe.datasets.inputs import builtin_prompts
from stagevar_probe.datasets.prompts.templates import KINDS, template_prompts
from stagevar_probe.datasets.supply import race_or_proof, split_lines, supply

LINES = [f"prompt {i}" for i in range(400)]


def test_items_come_in_turn_and_every_draw_has_a_seed_of_its_own() -> None:
    labels = supply("labels", range(3), "proof", seed=2)
    first, second = labels.part(0, 4), labels.part(4, 4)
    assert first.items + second.items == (0, 1, 2, 0, 1, 2, 0, 1)
    seeds = first.seeds + second.seeds
    assert len(set(seeds)) == 8 and labels.part(2, 4).seeds == seeds[2:6]


def test_no_seed_serves_two_purposes() -> None:
    drawn = [
        supply("x", (0,), purpose, 0).part(0, 9000).seeds
        for purpose in ("measure", "race", "proof")
    ]
    assert len({seed for seeds in drawn for seed in seeds}) == 27_000


def test_lines_are_split_by_their_text() -> None:
    parts = [set(split_lines(LINES, purpose)) for purpose in ("measure", "race", "proof")]
    assert set.union(*parts) == set(LINES) and sum(map(len, parts)) == 400
    assert min(map(len, parts)) > 50
    again = split_lines([*LINES, *LINES], "race")
    assert set(again) == parts[1] and len(again) == 2 * len(parts[1])


def test_few_lines_serve_all_purposes() -> None:
    assert split_lines(LINES[:20], "race") == split_lines(LINES[:20], "proof") == LINES[:20]
    assert race_or_proof(LINES[:20], "proof") == LINES[:20]


def test_of_held_out_lines_a_quarter_races() -> None:
    race, proof = (race_or_proof(LINES, purpose) for purpose in ("race", "proof"))
    assert not set(race) & set(proof) and len(race) + len(proof) == 400
    assert 60 < len(race) < 140


def test_built_in_prompts_are_many_and_apart() -> None:
    known = {*builtin_prompts(False), *builtin_prompts(True)}
    race, proof = (template_prompts(purpose, 2000, known) for purpose in ("race", "proof"))
    assert len({text for _, text in proof}) >= 1900
    assert not {text for _, text in race} & {text for _, text in proof}
    assert not {text for _, text in (*race, *proof)} & known
    assert [kind for kind, _ in proof[:8]] == list(KINDS)
    assert proof[:50] == template_prompts("proof", 50, known)
    assert len(template_prompts("race", 20_000)) == 20_000  # kinds run out, the supply does not
