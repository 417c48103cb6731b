"""What the project needs from CUDA: device memory and pinned memory, streams, events and graphs.

`CudaDevice` is the contract. `cuda_python` and `pycuda` fulfil it with the libraries of those names; `opening` chooses one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from detr_export.runtimes.errors import BackendError

_MIB = 1 << 20


@dataclass(frozen=True)
class Stream:
    """A queue of work on the device."""

    handle: int  # cudaStream_t
    native: Any = None  # PyCUDA's object, if PyCUDA is used


# The default stream by its name cudaStreamLegacy; what 0 means depends on how the caller was compiled. Work in it comes
# after all earlier work in the streams that are not non-blocking, and the default streams of threads belong to those.
LEGACY_STREAM = Stream(1)


class CudaDevice(ABC):
    """One GPU, ready to use. Calls need `active()` around them, because each thread has its own current device in CUDA.

    Attributes:
        index: its number.
        name: its name from the driver, such as "NVIDIA H200".
        compute_capability: (9, 0) for that GPU.
        driver: the newest CUDA version that the driver supports, such as "13.0".
        captures_graphs: whether `capture` works.
        dlpack_kind: what DLPack calls its memory, kDLCUDA.
    """

    dlpack_kind = 2
    index: int
    name: str
    compute_capability: tuple[int, int]
    driver: str
    captures_graphs: bool

    @abstractmethod
    def active(self) -> AbstractContextManager[None]:
        """Makes the device current in this thread. Afterwards the caller's device is current again."""

    @abstractmethod
    def allocate(self, nbytes: int) -> int:
        """Allocates device memory and returns its address. Raises BackendError if there is not enough."""

    @abstractmethod
    def free(self, address: int) -> None: ...

    @abstractmethod
    def allocate_pinned(self, nbytes: int) -> np.ndarray:
        """Host memory as uint8 (nbytes,), from which the GPU can copy while it computes."""

    @abstractmethod
    def free_pinned(self, array: np.ndarray) -> None: ...

    @abstractmethod
    def create_stream(self) -> Stream: ...

    @abstractmethod
    def destroy_stream(self, stream: Stream) -> None: ...

    @abstractmethod
    def adopt_stream(self, stream: Any) -> Stream:
        """Makes a Stream of the caller's handle, or object of torch, CuPy, PyCUDA or cuda.core. The caller still owns it."""

    @abstractmethod
    def synchronize(self, stream: Stream) -> None:
        """Waits until all queued work is done."""

    @abstractmethod
    def synchronize_all(self) -> None:
        """Waits for the work of all streams, whoever made them."""

    @abstractmethod
    def gpu_of(self, address: int) -> Optional[int]:
        """The number of the GPU whose memory this is. None if several can read it, or if the library cannot tell."""

    @abstractmethod
    def upload(self, address: int, source: np.ndarray, stream: Stream) -> None:
        """Queues a copy from contiguous host memory to the device."""

    @abstractmethod
    def download(self, target: np.ndarray, address: int, stream: Stream) -> None:
        """Queues a copy from the device to contiguous host memory."""

    @abstractmethod
    def record(self, stream: Stream) -> Any:
        """An event that happens when all work that is queued in the stream now is done."""

    @abstractmethod
    def wait(self, stream: Stream, event: Any) -> None:
        """Makes work that is queued from now on start after the event. Returns at once."""

    @abstractmethod
    def happened(self, event: Any) -> bool:
        """Whether the event has happened. Returns at once."""

    @abstractmethod
    def wait_on_host(self, event: Any) -> None:
        """Waits until the event has happened."""

    @abstractmethod
    def release_event(self, event: Any) -> None:
        """Gives the event back. It may still be ahead, and streams may wait for it."""

    @abstractmethod
    def capture(self, stream: Stream) -> AbstractContextManager[list[Any]]:
        """Records the work that the block queues and does not run it. Afterwards the list holds the graph."""

    @abstractmethod
    def launch(self, graph: Any, stream: Stream) -> None: ...

    @abstractmethod
    def release_graph(self, graph: Any) -> None: ...


def stream_handle(stream: Any) -> int:
    """The cudaStream_t of a stream object of another library, or the handle itself.

    Raises:
        BackendError: the object is not of a known kind.
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
    """The error for memory that the device does not have. All numbers are bytes."""
    return BackendError(
        f"the GPU has {free // _MIB} of {total // _MIB} MiB free and {-(-nbytes // _MIB)} MiB were needed; "
        "use fewer contexts or cuda_graphs, a smaller batch or profile, or free memory (nvidia-smi shows who holds it)"
    )


def version_text(number: int) -> str:
    """CUDA's 12040 as "12.4"."""
    return f"{number // 1000}.{number % 1000 // 10}"
