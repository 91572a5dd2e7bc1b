"""Write star-1024.yaml and hart-0.7b.yaml from the figures StageVAR publishes.

    python -m tools.star_hart_profiles

Nothing is measured: the models are built without weights, for their architecture's hash alone.
Two things differ from the paper. STAR keeps the cond branch, not the null one: its null rows
depend on their cond rows (see ``families/star.py``). HART's last scale is not reduced: it ends in
a diffusion stage. HART's configuration is read off its paper and its parameter count, since its
config.json was not at hand: where it differs, this profile will not be found for it.
Source: StageVAR (arXiv 2512.16483), section 4, and the rank table of its released code for STAR.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from stagevar_runtime import __version__, write_profile
from stagevar_runtime.families import hart, star
from stagevar_runtime.families.tokenizers.config import VQVAEConfig
from stagevar_runtime.families.tokenizers.vqvae import VQVAE
from stagevar_runtime.profile import (
    Boundary,
    CreatedBy,
    Expected,
    ModelRef,
    PlanEntry,
    PlanStep,
    Profile,
    ScaleMeasurement,
    Stages,
    TokenOption,
)
from stagevar_runtime.profile.fingerprint import architecture, schedule, schedule_name

SIDES = star.SCHEDULES[1024]
LATE, LAST = 12, 13  # the scales of 48 and 64 cells a side
PROFILES = Path(__file__).resolve().parent.parent / "profiles"
STAR_RANKS = (  # rank for 96 % of the energy at 64x64 over min(tokens, width), block by block
    *(0.01515, 0.02747, 0.06943, 0.10348, 0.17093, 0.18591, 0.1748, 0.16437, 0.15379, 0.15548),
    *(0.16531, 0.18199, 0.19309, 0.19007, 0.17619, 0.16164, 0.14933, 0.1383, 0.13994, 0.1189),
    *(0.1062, 0.08758, 0.07218, 0.06026, 0.05025, 0.04206, 0.03536, 0.0291, 0.02379, 0.01968),
)
Built = tuple[star.STAR | hart.HART, dict[str, torch.Tensor]]


def build_star() -> Built:
    """STAR d30 at 1024 pixels without weights, and its tensors as shapes."""
    config = star.STARConfig(30, 1920, 30, 4096, 32, 1024, 7680, SIDES)
    with torch.device("meta"):
        transformer, tokenizer = star.Transformer(config), VQVAE(VQVAEConfig())
    return star.STAR(config, transformer, tokenizer, torch.bfloat16), transformer.state_dict()


def build_hart() -> Built:
    """HART 0.7b at 1024 pixels without weights, and its tensors as shapes."""
    config = hart.HARTConfig(24, 1536, 24, 4096, 32, 300, 1536, 4096, SIDES, 1024, 6)
    with torch.device("meta"):
        transformer, tokenizer = hart.Transformer(config), VQVAE(VQVAEConfig())
    return hart.HART(config, transformer, tokenizer, torch.bfloat16), transformer.state_dict()


def star_ratios(groups: tuple[range, ...]) -> tuple[float, ...]:
    """The mean of the blocks of each group, as a share of the tokens."""
    share = 1920 / SIDES[-1] ** 2
    return tuple(round(share * sum(STAR_RANKS[b] for b in g) / len(g), 5) for g in groups)


def star_profile() -> Profile:
    """Guidance off on the last two scales, low rank on the last."""
    model, tensors = build_star()
    ratios = star_ratios(model.info.groups)
    tokens = TokenOption(keep=ratios, select="projection", restore="cache")
    steps = (PlanStep(scale=LATE, guidance="cond"), PlanStep(scale=LAST, tokens=tokens))
    expected = Expected(speedup_total=1.74, ms_total=1150.0, batch=1)
    ranks = ScaleMeasurement(scale=LAST, tokens=SIDES[-1] ** 2, rank_pca=ratios)
    return _profile(model, tensors, PlanEntry(steps=steps, expected=expected), (ranks,))


def hart_profile() -> Profile:
    """Guidance off on the last two scales."""
    model, tensors = build_hart()
    return _profile(model, tensors, PlanEntry(steps=(PlanStep(scale=LATE, guidance="null"),)), ())


def _profile(
    model: star.STAR | hart.HART,
    tensors: dict[str, torch.Tensor],
    plan: PlanEntry,
    measurements: tuple[ScaleMeasurement, ...],
) -> Profile:
    scales = model.scales()
    late = Boundary(scale=LATE, evidence="published: detail alone on the last two scales")
    return Profile(
        created_by=CreatedBy(tool="tools/star_hart_profiles.py", version=__version__),
        model=ModelRef(
            family=model.family,
            architecture=architecture(model, tensors),
            schedules={schedule_name(scales): tuple((h, w) for h, w in schedule(scales))},
        ),
        provenance="published",
        stages=Stages(refinement=late),
        default_plan="stagevar",
        plans={"stagevar": plan},
        measurements=measurements,
    )


def main(folder: Path) -> None:
    """Write both files."""
    write_profile(star_profile(), folder / "star-1024.yaml")
    write_profile(hart_profile(), folder / "hart-0.7b.yaml")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PROFILES)
