"""The stages of a run on a GPU: the copy of the inputs, the launch of the kernels, the kernels, the copy of the outputs.

A session that takes and returns NumPy arrays hides all of that in one time. Here the inputs are copied first, the outputs
stay on the device until they are asked for, and the host waits at the end of each stage, so that the stages can be told
apart. Their sum is a little more than the time of one whole run, in which the host does not wait in between.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from detr_export.runtimes.backends.cuda import opening as cuda_opening

if TYPE_CHECKING:
    from detr_export.runtimes.backends.tensorrt.session import TensorRTSession

STAGES = ("host_to_device_ms", "enqueue_ms", "compute_ms", "device_to_host_ms")


@dataclass(frozen=True)
class Stages:
    """Milliseconds of one run."""

    host_to_device_ms: float
    enqueue_ms: float  # from the first launch until the host was free again
    compute_ms: float  # from the first launch until the device was done; includes `enqueue_ms`
    device_to_host_ms: float

    def astuple(self) -> tuple[float, ...]:
        """In the order of `STAGES`."""
        return astuple(self)


def run_ort_in_stages(
    session: Any, inputs: Mapping[str, np.ndarray], device: str = "cuda", index: int = 0
) -> tuple[dict[str, np.ndarray], Stages]:
    """Runs ONNX Runtime with its inputs and outputs bound to a device.

    Args:
        session: an `onnxruntime.InferenceSession` whose provider is that of the device.
        inputs: an array for each of its inputs.
        device: `cuda`; or `cpu`, where copies and launches cost nothing.
        index: of the device.

    Returns:
        The outputs by name, and the times.
    """
    from detr_export.runtimes.backends.ort.library import onnxruntime

    clock = time.perf_counter
    names = [item.name for item in session.get_outputs()]
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    binding = session.io_binding()

    begin = clock()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, index))
    binding.synchronize_inputs()
    for name in names:
        binding.bind_output(name, device, index)
    copied = clock()
    session.run_with_iobinding(binding, options)
    launched = clock()
    binding.synchronize_outputs()
    done = clock()
    outputs = dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))
    fetched = clock()
    return outputs, Stages(*(1e3 * value for value in (copied - begin, launched - copied, done - copied, fetched - done)))


def run_engine_in_stages(
    session: TensorRTSession, inputs: Mapping[str, np.ndarray], index: int = 0
) -> tuple[dict[str, np.ndarray], Stages]:
    """Runs a TensorRT engine on inputs that were copied before; as `run_ort_in_stages`.

    Args:
        session: the engine. Inputs that it takes in another dtype than its contract says are converted before.
        inputs: an array for each of its inputs.
        index: number of its GPU.
    """
    clock = time.perf_counter
    # Get all memory first, so that only copies and launches are timed.
    device = cuda_opening.open_device(index)
    arrays = {name: np.ascontiguousarray(array, session.device_dtypes[name]) for name, array in inputs.items()}
    with contextlib.ExitStack() as stack:
        stack.enter_context(device.active())
        stream = device.create_stream()
        stack.callback(device.destroy_stream, stream)
        addresses, pinned = {}, {}
        for name, array in arrays.items():
            addresses[name] = device.allocate(array.nbytes)
            stack.callback(device.free, addresses[name])
            pinned[name] = device.allocate_pinned(array.nbytes)
            stack.callback(device.free_pinned, pinned[name])

        # Run, and wait at the end of each stage.
        begin = clock()
        for name, array in arrays.items():  # as the session does it: through memory that the GPU can read by itself
            pinned[name][:] = array.reshape(-1).view(np.uint8)
            device.upload(addresses[name], pinned[name], stream)
        device.synchronize(stream)
        copied = clock()
        views = {name: _OnDevice(addresses[name], array.shape, array.dtype) for name, array in arrays.items()}
        found = session.run_on_device(views, stream.native or stream)
        launched = clock()
        device.synchronize(stream)
        done = clock()
        outputs = {name: array.numpy() for name, array in found.items()}
        fetched = clock()
        del found  # gives the memory back to the session, which reuses it in the order of the stream
        device.synchronize(stream)
    return outputs, Stages(*(1e3 * value for value in (copied - begin, launched - copied, done - copied, fetched - done)))


class PageLockedMemory:
    """Host memory that the GPU reads by itself. Copies from other memory go through such memory of the driver's first.

    Args:
        index: number of the GPU.

    Raises:
        BackendError: there is no GPU, or neither cuda-python nor PyCUDA is installed.
    """

    def __init__(self, index: int = 0) -> None:
        self._device = cuda_opening.open_device(index)
        self._blocks: list[np.ndarray] = []

    def copy(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The same arrays in page-locked memory. They are valid until `free`."""
        copies = {}
        with self._device.active():
            for name, array in arrays.items():
                self._blocks.append(self._device.allocate_pinned(array.nbytes))
                copies[name] = self._blocks[-1].view(array.dtype).reshape(array.shape)
                copies[name][...] = array
        return copies

    def free(self) -> None:
        """Gives all memory back."""
        with self._device.active():
            while self._blocks:
                self._device.free_pinned(self._blocks.pop())


@dataclass(frozen=True)
class _OnDevice:
    """An input that lies on the GPU, as `__cuda_array_interface__` describes it."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        data = (self.address, True)
        return {"shape": self.shape, "typestr": self.dtype.str, "data": data, "strides": None, "version": 3}
