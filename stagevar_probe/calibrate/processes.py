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

SET = ("RANK", "MASTER_ADDR", "MASTER_PORT")  # by torchrun, beside WORLD_SIZE
ARRIVAL = timedelta(seconds=20)  # processes of one start come within seconds
_stores: list[dist.TCPStore] = []
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
    if _number("WORLD_SIZE", 1) > 1 and torch.cuda.is_available():
        return f"cuda:{_number('LOCAL_RANK', 0) % torch.cuda.device_count()}"
    return None


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun started together; alone without it.

    gloo between CPUs, nccl between GPUs.

    Raises:
        CalibrationError: what torchrun sets is missing or no number, or the others do not come.
    """
    count = _number("WORLD_SIZE", 1)
    if count == 1:
        yield ALONE
        return
    missing = [name for name in SET if not os.environ.get(name)]
    if missing:
        raise CalibrationError(
            f"WORLD_SIZE is {count}, but {', '.join(missing)} is not set: start the processes with "
            "torchrun --nproc-per-node N -m stagevar_probe, or unset WORLD_SIZE"
        )
    _number("RANK", 0)
    _number("MASTER_PORT", 0)
    device = local_device()
    if device is not None:
        torch.cuda.set_device(device)
    _meet(count)
    dist.init_process_group("gloo" if device is None else "nccl", timeout=PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _number(name: str, default: int) -> int:
    """A number that torchrun sets; empty is as unset."""
    said = os.environ.get(name, "").strip()
    if not said:
        return default
    if not said.isdecimal() or len(said) > 6:
        raise CalibrationError(f"{name} is {said!r}, expected a number, as torchrun sets it")
    return int(said)


def _meet(count: int) -> None:
    """See that all processes are there before they wait for each other for hours.

    Raises:
        CalibrationError: one has not come within :data:`ARRIVAL`.
    """
    rank = _number("RANK", 0)
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            _number("MASTER_PORT", 0),
            is_master=rank == 0 and not agent,
            timeout=ARRIVAL,
            wait_for_workers=False,
            multi_tenant=True,
        )
        store.set(f"stagevar/{rank}", "here")
        store.wait([f"stagevar/{other}" for other in range(count)], ARRIVAL)
    except (RuntimeError, ValueError) as error:
        raise CalibrationError(
            f"process {rank} of {count}: the others did not come within "
            f"{ARRIVAL.seconds} s. Start all of them, or unset WORLD_SIZE"
        ) from error
    _stores.append(store)  # it serves the others as long as it lives
