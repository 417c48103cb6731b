"""What the project asks of CUDA: device and pinned memory, streams, events and graphs.

`CudaDevice` is the contract. `cuda_python` and `pycuda` keep it, each with the library of its name, and `opening` chooses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from detr_export.runtimes.errors import BackendError

_MIB = 1 << 20


@dataclass(frozen=True)
class Stream:
    """A queue of work on the device."""

    handle: int  # cudaStream_t
    native: Any = None  # PyCUDA's object, where it is needed


class CudaDevice(ABC):
    """One GPU, ready to use. Its calls need `active()` around them, because CUDA's current device is a thread's.

    Attributes:
        name: as the driver gives it, "NVIDIA H200".
        compute_capability: (9, 0) for that one.
        driver: the newest CUDA version that the driver runs, "13.0".
        captures_graphs: whether `capture` works.
    """

    name: str
    compute_capability: tuple[int, int]
    driver: str
    captures_graphs: bool

    @abstractmethod
    def active(self) -> AbstractContextManager[None]:
        """Makes the device current in this thread."""

    @abstractmethod
    def allocate(self, nbytes: int) -> int:
        """Device memory; returns its address. Raises BackendError when there is not enough."""

    @abstractmethod
    def free(self, address: int) -> None: ...

    @abstractmethod
    def allocate_pinned(self, nbytes: int) -> np.ndarray:
        """Host memory that copies run beside computation from: uint8 (nbytes,)."""

    @abstractmethod
    def free_pinned(self, array: np.ndarray) -> None: ...

    @abstractmethod
    def create_stream(self) -> Stream: ...

    @abstractmethod
    def destroy_stream(self, stream: Stream) -> None: ...

    @abstractmethod
    def adopt_stream(self, stream: Any) -> Stream:
        """The caller's stream: a handle, or an object of torch, CuPy, PyCUDA or cuda.core. It stays the caller's."""

    @abstractmethod
    def synchronize(self, stream: Stream) -> None:
        """Waits until all that was queued is done."""

    @abstractmethod
    def upload(self, address: int, source: np.ndarray, stream: Stream) -> None:
        """Queues a copy from contiguous host memory to the device."""

    @abstractmethod
    def download(self, target: np.ndarray, address: int, stream: Stream) -> None:
        """Queues a copy from the device to contiguous host memory."""

    @abstractmethod
    def record(self, stream: Stream) -> Any:
        """An event that happens when all that was queued by now is done."""

    @abstractmethod
    def wait(self, stream: Stream, event: Any) -> None:
        """What is queued from now on starts after the event; returns at once."""

    @abstractmethod
    def wait_on_host(self, event: Any) -> None:
        """Returns after the event."""

    @abstractmethod
    def release_event(self, event: Any) -> None: ...

    @abstractmethod
    def capture(self, stream: Stream) -> AbstractContextManager[list[Any]]:
        """Records what the block queues instead of running it; the list then holds the graph."""

    @abstractmethod
    def launch(self, graph: Any, stream: Stream) -> None: ...

    @abstractmethod
    def release_graph(self, graph: Any) -> None: ...


def stream_handle(stream: Any) -> int:
    """The cudaStream_t of another library's stream object, or of a handle itself.

    Raises:
        BackendError: it is none of the known kinds.
    """
    if isinstance(stream, Stream):
        return stream.handle
    if isinstance(stream, int):
        return stream
    if hasattr(stream, "__cuda_stream__"):  # the protocol of cuda.core: (version, handle)
        return int(stream.__cuda_stream__()[1])
    for name in ("cuda_stream", "ptr", "handle"):  # torch, CuPy, PyCUDA
        if hasattr(stream, name):
            return int(getattr(stream, name))
    raise BackendError(f"stream is a {type(stream).__name__}; expected a handle, or a stream of torch, CuPy or PyCUDA")


def out_of_memory(nbytes: int, free: int, total: int) -> BackendError:
    """The error for memory that the device does not have; all in bytes."""
    return BackendError(
        f"the GPU has {free // _MIB} of {total // _MIB} MiB free and {-(-nbytes // _MIB)} MiB were needed; "
        "use fewer contexts or cuda_graphs, a smaller batch or profile, or free memory (nvidia-smi shows who holds it)"
    )


def version_text(number: int) -> str:
    """CUDA's 12040 as "12.4"."""
    return f"{number // 1000}.{number % 1000 // 10}"
