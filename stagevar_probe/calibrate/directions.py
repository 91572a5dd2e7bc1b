"""Measured directions of features: found once for all processes, used as shipped, and shipped."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.options.low_rank import Bases, low_rank_of
from stagevar_runtime.profile import Profile

from ..files import write_whole
from ..measure.measurements import read_json
from ..observe.pca import BASIS_IMAGES, measure_bases, measured_ranks
from .runner import Runner

logger = logging.getLogger("stagevar_probe")


class Directions:
    """The directions that interventions need: ``ranks`` by scale; none where that is empty."""

    def __init__(self, runner: Runner, ranks: Mapping[int, int]) -> None:
        self.runner, self.ranks = runner, dict(ranks)
        self.bases: Bases | None = None

    @property
    def weights(self) -> str:
        """The hash of the weights that they belong to."""
        return self.runner.pipeline.fingerprint.weights

    def measure(self, images: int = BASIS_IMAGES) -> None:
        """Find them on the first calibration inputs, or read what another process found."""
        if not self.ranks:
            return
        path = self.runner.work.folder / "bases.safetensors"

        def found() -> dict[str, Any]:
            content = self._measured(images).dump(self.weights)
            write_whole(path, content)
            scales = {str(k): rank for k, rank in self.ranks.items()}
            return {"scales": scales, "sha256": hashlib.sha256(content).hexdigest()}

        if self.runner.work.processes.first:
            _forget_damaged(path)
        self.runner.work.once(path.with_suffix(".json").name, found)
        self.use(Bases.load(path, self.weights))

    def try_one(self) -> None:
        """Find them on one image, for a trial that writes nothing."""
        if self.ranks:
            self.use(self._measured(1))

    def _measured(self, images: int) -> Bases:
        runner, materials = self.runner, self.runner.materials
        some = materials.inputs.chunk(0, min(images, runner.settings.batch))
        batch = min(len(some), runner.settings.batch)
        return measure_bases(runner.model, some, materials.sampling, self.ranks, batch)

    def use(self, bases: Bases) -> None:
        """Run the model with these."""
        self.bases = bases
        low_rank_of(self.runner.model).use(bases)

    def write(self, path: Path, profile: Profile) -> None:
        """What the profile's plans need; a file of an earlier profile goes."""
        needed = measured_ranks(plan.steps for plan in profile.plans.values())
        if self.bases is not None and needed:
            write_whole(path, self.bases.cut(needed).dump(self.weights))
        else:
            path.unlink(missing_ok=True)


def _forget_damaged(path: Path) -> None:
    """Have directions of an unfinished job made again, unless they are as they were written."""
    piece = path.with_suffix(".json")
    if not piece.exists():
        return
    try:
        whole = read_json(piece)["piece"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    except (CalibrationError, OSError, KeyError, TypeError):
        whole = False
    if not whole:
        logger.warning("%s is damaged: made again", path.name)
        piece.unlink()
