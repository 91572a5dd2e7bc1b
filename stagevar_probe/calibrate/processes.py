"""Several processes, one job: ``torchrun --nproc-per-node N -m stagevar_probe calibrate ...``.

Results travel through files in the job's shared folder; torch.distributed only says when all are
there. So a process that dies takes nothing with it but the piece it was working on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from stagevar_runtime.errors import CalibrationError

PATIENCE = timedelta(days=1)  # pieces of a job may differ by hours; a dead process is noticed


@dataclass(frozen=True)
class Processes:
    """This process among ``count``."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def own(self, number: int) -> bool:
        """Whether piece ``number`` of the work is this process's."""
        return number % self.count == self.rank

    def wait(self) -> None:
        """Until every process is here.

        Raises:
            CalibrationError: one of them is gone.
        """
        if self.count == 1:
            return
        try:
            if dist.get_backend() == "nccl":
                dist.barrier(device_ids=[torch.cuda.current_device()])
            else:
                dist.barrier()
        except RuntimeError as error:
            raise CalibrationError(
                f"process {self.rank} of {self.count}: another process of this job ended. What was "
                "measured is kept: run the same command again to go on"
            ) from error


ALONE = Processes()


def local_device() -> str | None:
    """The device of this process where torchrun started several on a machine with GPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return None


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun started together; alone without it.

    gloo between CPUs, nccl between GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    device = local_device()
    if device is not None:
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device is None else "nccl", timeout=PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
