"""Write infinity-2b.yaml and infinity-8b.yaml from the figures StageVAR publishes.

    python -m tools.infinity_profiles

Nothing is measured: the models are built without weights, for their architecture's hash alone.
Source: StageVAR (arXiv 2512.16483), section 4, and the rank table of its released demo.
"""

from __future__ import annotations

import sys
from pathlib import Path

from stagevar_runtime import __version__, write_profile
from stagevar_runtime.families.infinity.sizes import without_weights
from stagevar_runtime.profile import (
    Boundary,
    CreatedBy,
    ModelRef,
    PlanEntry,
    PlanStep,
    Profile,
    ScaleMeasurement,
    Stages,
    TokenOption,
)
from stagevar_runtime.profile.fingerprint import architecture, schedule, schedule_name

PROFILES = Path(__file__).resolve().parent.parent / "profiles"
RANKS = {  # share of the tokens for 96 % of the energy: scale -> one figure a chunk of blocks
    10: (0.01678, 0.13648, 0.21039, 0.25028, 0.25588, 0.19788, 0.157, 0.1909),
    11: (0.0134, 0.11731, 0.18941, 0.222, 0.23464, 0.18278, 0.13391, 0.16311),
    12: (0.00821, 0.0544, 0.08324, 0.06649, 0.05667, 0.02968, 0.03826, 0.05566),
}


def profile(name: str) -> Profile:
    """StageVAR's stages and ranks: as its paper says, and as its released code does."""
    model, tensors = without_weights(name)
    scales = model.scales()
    reduced = [
        PlanStep(
            scale=k,
            guidance="null" if k == 10 else None,
            tokens=TokenOption(keep=ranks, select="projection", restore="cache"),
        )
        for k, ranks in RANKS.items()
    ]
    skipped = [PlanStep(scale=k, run="skip") for k in (11, 12)]
    return Profile(
        created_by=CreatedBy(tool="tools/infinity_profiles.py", version=__version__),
        model=ModelRef(
            family=model.family,
            architecture=architecture(model, tensors),
            schedules={schedule_name(scales): tuple((h, w) for h, w in schedule(scales))},
        ),
        provenance="published",
        stages=Stages(
            structure=Boundary(scale=7, evidence="published: layout settles from 20 to 32"),
            refinement=Boundary(scale=10, evidence="published: detail alone at 40, 48 and 64"),
        ),
        default_plan="stagevar",
        plans={
            "stagevar": PlanEntry(steps=tuple(reduced)),
            "stagevar-released": PlanEntry(steps=(reduced[0], *skipped)),
        },
        measurements=tuple(
            ScaleMeasurement(scale=k, tokens=scales[k].tokens, rank_pca=ranks)
            for k, ranks in RANKS.items()
        ),
    )


def main(folder: Path) -> None:
    """Write both files."""
    for name in ("2b", "8b"):
        write_profile(profile(name), folder / f"infinity-{name}.yaml")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PROFILES)
