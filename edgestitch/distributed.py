"""Several processes that calibrate one network, as `torchrun` starts them."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Workers:
    """This process among those that work together; alone it is the first of one."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def share(self, number: int) -> range:
        """Which of `number` things are this process's."""
        return range(self.rank, number, self.size)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by its sum over all processes."""
        if self.size > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)

    def any(self, here: bool, device: torch.device) -> bool:
        """Whether it is so in one process at least; every process gets the same answer."""
        if self.size == 1:
            return here
        count = torch.tensor(int(here), device=device)
        self.add([count])
        return bool(count)

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.size > 1:
            distributed.barrier()


ALONE = Workers()


def started_by_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def first_process() -> bool:
    """Whether this process is the one that prints."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def workers(device: torch.device) -> Iterator[Workers]:
    """The processes that `torchrun` started, connected while the context lasts; else `ALONE`."""
    if not started_by_torchrun():
        yield ALONE
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Workers(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process, where `torchrun` started several on one machine."""
    if device.type == "cuda" and device.index is None and started_by_torchrun():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device
