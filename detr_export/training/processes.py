"""The processes that share a training run: one, or as many as torchrun started."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from detr_export.runtimes.devices import CPU, CUDA, parse_device
from detr_export.runtimes.errors import BackendError, InputError

# Batches come over sockets in a folder that Python makes in the one for temporary files: pymp-12345678/listener-12345678.
_SOCKET = 32  # bytes of that name
_LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107  # bytes of the path of a socket
_LONGEST_WAIT = timedelta(hours=3)  # of one process for another: the first one alone validates


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this one writes the files and talks to the user."""
        return self.rank == 0


def require_room_for_sockets(workers: int) -> None:
    """Refuses a folder for temporary files that leaves no room for the names of sockets: batches would never come.

    Args:
        workers: processes that prepare batches.

    Raises:
        InputError: its path is too long.
    """
    folder = os.fsencode(tempfile.gettempdir())
    most = _LONGEST_SOCKET - _SOCKET
    if workers and os.name == "posix" and len(folder) > most:
        raise InputError(
            f"the path of the folder for temporary files has {len(folder)} bytes; expected at most {most}, or the processes "
            "that prepare batches cannot send them; set TMPDIR to a shorter one, or add --workers 0"
        )


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Joins the other processes of a torchrun, if there are any, and leaves the group at the end.

    Args:
        device: `cpu`, `cuda` or `cuda:N`; under torchrun each process takes the GPU of its own number.

    Raises:
        BackendError: the device is not there.
    """
    wanted = parse_device(device)
    wanted.require((CPU, CUDA), "training")
    kind, index = wanted.kind, wanted.index
    if kind == "cuda" and not torch.cuda.is_available():
        raise BackendError("device is cuda, but this PyTorch sees no GPU; use --device cpu, or install a CUDA build")
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(0, 1, _device(kind, index))
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    own = _device(kind, local)
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=_LONGEST_WAIT)
    try:
        yield Processes(distributed.get_rank(), count, own)
    finally:
        distributed.destroy_process_group()


def mean_over_processes(values: Mapping[str, Tensor]) -> dict[str, float]:
    """The means of scalars over the processes of a distributed run, which all have the same names. They are what the mean
    of the gradients lowers, where one process sees its own images alone."""
    stacked = torch.stack([value.detach().float() for value in values.values()])
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(stacked)
        stacked /= distributed.get_world_size()
    return dict(zip(values, stacked.tolist(), strict=True))


def said_by_first(value: Any, processes: Processes) -> Any:
    """What the first process says; the others wait until it does. Alone, the value itself."""
    if processes.count == 1:
        return value
    said = [value]
    distributed.broadcast_object_list(said, device=processes.device)
    return said[0]


def is_first_process() -> bool:
    """Whether this process, of those that torchrun started or alone, is the one that talks to the user."""
    return os.environ.get("RANK", "0") == "0"


def _device(kind: str, index: int) -> torch.device:
    if kind == "cpu":
        return torch.device("cpu")
    if index >= torch.cuda.device_count():
        raise BackendError(f"device is cuda:{index}, but this PyTorch sees {torch.cuda.device_count()} GPUs")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
