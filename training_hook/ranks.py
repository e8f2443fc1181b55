"""The processes of a run: one for each GPU, as torchrun starts them, or one alone.

What is on the devices travels by NCCL. A few integers a step travel between the hosts by gloo:
target tokens, and whether someone asked to stop. Hosts run ahead of their devices, so agreeing
there costs no device a wait, and a rank that died is noticed at the next step. A process that
torchrun did not start makes no process group, and everything here is then the identity.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.progress import console

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is. Every rank calls the same methods in one order."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    group: dist.ProcessGroup | None = None
    """Whom the methods reach: the default group if there is none."""

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what is written once: metrics, manifests, progress."""
        return self.rank == 0

    def gather(self, values: np.ndarray) -> np.ndarray:
        """Returns the values of all ranks on each host, (world_size, *shape)."""
        if self.world_size == 1:
            return values[None]
        mine = torch.from_numpy(np.array(values))
        everyones = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(everyones, mine, group=self.group)
        return torch.stack(everyones).numpy()

    def any(self, flag: bool) -> bool:
        """Returns whether a flag is set on a rank; also the point where ranks meet."""
        return self.any_of(flag)[0]

    def any_of(self, *flags: bool) -> list[bool]:
        """Returns for each flag whether it is set on a rank."""
        return [bool(of_ranks.any()) for of_ranks in self.gather(np.array(flags)).T]

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Joins the rows of all ranks in the order of ranks, on their devices."""
        if self.world_size == 1:
            return rows
        joined = rows.new_empty((self.world_size, *rows.shape))
        dist.all_gather(list(joined), rows.contiguous(), group=self.group)
        return joined.flatten(0, 1)

    def max_(self, values: Tensor) -> None:
        """Replaces values on the devices by the largest of all ranks."""
        if self.world_size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)

    def apart(self) -> "Ranks":
        """Returns the same ranks on hosts only, for a thread that must not mix with the others."""
        if self.world_size == 1:
            return self
        group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        return Ranks(self.rank, self.world_size, self.local_rank, group)


ALONE = Ranks()
"""The ranks of a process that is all of its run."""


def is_first_rank() -> bool:
    """Returns whether this process speaks for its run, joined or not."""
    return os.environ.get("RANK", "0") == "0" or not _started_by_torchrun()


@contextmanager
def join_ranks(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """Yields this process's ranks and its own device; leaves the group at the end.

    Only the first rank shows progress. A group that the caller has made is used and stays. After an
    exception nothing is waited for, because other ranks may never come.

    Args:
        device: "cuda" becomes the GPU of the local rank.

    Raises:
        ValueError: there are more processes on this machine than GPUs.
    """
    if not _started_by_torchrun():
        yield ALONE, device
        return
    rank, world_size, local_rank = (int(os.environ[name]) for name in _VARIABLES)
    if device.type == "cuda":
        found = torch.cuda.device_count()
        if local_rank >= found:
            raise ValueError(
                f"ranks: local rank {local_rank} has no GPU, this machine shows {found}; wanted "
                f"one for each process. Start torchrun with --nproc-per-node {found}"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    made = not dist.is_initialized()
    if made:
        # NVLink multicast fails where the GPUs of a host are shared out; set it to 1 to have it
        os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    console.quiet = rank != 0
    yield Ranks(rank, world_size, local_rank), device
    if made:
        dist.destroy_process_group()


def _started_by_torchrun() -> bool:
    return all(name in os.environ for name in _VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1
