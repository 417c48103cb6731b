"""Arrays on the GPU in other libraries' hands: whose memory it is, until when, and who waits for whom."""

from __future__ import annotations

import gc
import types
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from detr_export.runtimes.backends.cuda.arrays import DeviceArray, device_view
from detr_export.runtimes.backends.cuda.memory import LEGACY_STREAM, Stream
from detr_export.runtimes.errors import BackendError, InputError
from tests.tensorrt_double import HostDevice

DATA = np.arange(12, dtype=np.float32).reshape(3, 4)


class Made:
    """An array on the double's device, which notes when its memory is given back."""

    def __init__(self, device: HostDevice, data: np.ndarray = DATA, writer: Stream | None = None) -> None:
        self.released: list[list[Any]] = []
        with device.active():
            address = device.allocate(data.nbytes)
        device.memory(address, data.nbytes)[:] = data.reshape(-1).view(np.uint8)
        self.array: DeviceArray | None = DeviceArray(
            device, address, data.shape, data.dtype, writer, self.released.append, lambda array: data
        )

    def drop(self) -> None:
        self.array = None
        gc.collect()


@pytest.fixture
def device() -> HostDevice:
    return HostDevice(index=1)


@pytest.fixture
def cpu() -> HostDevice:
    """A device whose memory other libraries take for the CPU's, so that they can read it here."""
    device = HostDevice()
    device.dlpack_kind = 1
    return device


# ---- DLPack: what consumers get -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "int32", "uint8"])
@pytest.mark.parametrize("shape", [(3, 4), (1, 12), (12,), (), (0, 4)])
def test_torch_and_numpy_share_the_memory(dtype: str, shape: tuple[int, ...], cpu: HostDevice) -> None:
    data = np.arange(np.prod(shape, dtype=int), dtype=dtype).reshape(shape)
    made = Made(cpu, data)
    assert made.array is not None
    for found in (torch.from_dlpack(made.array).numpy(), np.from_dlpack(made.array)):  # type: ignore[arg-type]
        assert found.dtype == dtype
        assert np.array_equal(found, data)
        if data.size:
            assert found.ctypes.data == made.array.address


def test_a_consumer_keeps_the_memory(cpu: HostDevice) -> None:
    made = Made(cpu)
    tensor = torch.from_dlpack(made.array)
    view = tensor[1:]
    made.drop()
    del tensor
    gc.collect()
    assert made.released == []
    assert np.array_equal(view.numpy(), DATA[1:])
    del view
    gc.collect()
    assert len(made.released) == 1


def test_a_capsule_that_nobody_takes_gives_the_memory_back(cpu: HostDevice) -> None:
    made = Made(cpu)
    assert made.array is not None

    def fails() -> None:
        assert made.array is not None
        capsule = made.array.__dlpack__()
        raise RuntimeError(f"{type(capsule)} goes while an exception is on its way")

    with pytest.raises(RuntimeError, match="PyCapsule"):
        fails()
    made.drop()
    assert len(made.released) == 1


def test_the_capsule_names_the_gpu(device: HostDevice) -> None:
    made = Made(device)
    assert made.array is not None
    assert made.array.__dlpack_device__() == (2, 1)
    wrapped = types.SimpleNamespace(__dlpack__=made.array.__dlpack__, __dlpack_device__=made.array.__dlpack_device__)
    with device.active():
        view = device_view("x", wrapped, device, device.create_stream())
    assert (view.address, view.shape, view.dtype) == (made.array.address, (3, 4), np.float32)
    made.drop()
    assert made.released == []
    del view, wrapped
    gc.collect()
    assert len(made.released) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"copy": True}, "is shared where it lies; copy it with numpy"),
        ({"dl_device": (1, 0)}, "is shared where it lies"),
        ({"stream": 0}, "stream is 0; expected 1 for the default stream"),
    ],
)
def test_what_dlpack_refuses(arguments: dict[str, Any], message: str, device: HostDevice) -> None:
    array = Made(device).array
    assert array is not None
    with pytest.raises(BufferError, match=message):
        array.__dlpack__(**arguments)
    array.__dlpack__(stream=None, max_version=(1, 0), dl_device=(2, 1), copy=False)  # as torch asks


# ---- who waits for whom -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("consumer", ["named", "default", None, "none"])
def test_a_consumers_stream_waits_for_the_run(consumer: str | None, device: HostDevice) -> None:
    with device.active():
        writer, named = device.create_stream(), device.create_stream()
    made = Made(device, writer=writer)
    assert made.array is not None
    address, result = made.array.address, np.zeros_like(DATA)
    device.enqueue(writer.handle, lambda: np.copyto(device.memory(address, DATA.nbytes), 7))
    handles: dict[str | None, int | None] = {"named": named.handle, "default": 1, "none": -1, None: None}
    made.array.__dlpack__(stream=handles[consumer])
    reader = named if consumer in ("named", "none") else LEGACY_STREAM
    device.download(result, address, reader)
    assert device.counts.host_waits == 0
    with device.active():
        device.synchronize(reader)
    assert (result.view(np.uint8) == 7).all() == (consumer != "none")
    assert not device.events


def test_readers_are_waited_for_before_the_memory_is_used_again(device: HostDevice) -> None:
    """Those that are known: the default stream, the run's, and the ones that consumers named."""
    with device.active():
        writer, named = device.create_stream(), device.create_stream()
    made = Made(device, writer=writer)
    assert made.array is not None
    for stream in (named.handle, named.handle, 1, 2, None, -1):
        made.array.__dlpack__(stream=stream)
    made.drop()
    (events,) = made.released
    assert sorted(event.stream for event in events) == sorted([LEGACY_STREAM.handle, writer.handle, named.handle])


def test_after_a_stream_that_is_gone_the_whole_device_is_waited_for(
    device: HostDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    with device.active():
        gone, other = device.create_stream(), device.create_stream()
    made = Made(device)
    assert made.array is not None
    made.array.__dlpack__(stream=gone.handle)
    done: list[int] = []
    device.enqueue(other.handle, lambda: done.append(1))
    original = device.record

    def record(stream: Stream) -> Any:
        if stream == gone:
            raise BackendError("CUDA failed in cudaEventRecord: invalid resource handle (400)")
        return original(stream)

    monkeypatch.setattr(device, "record", record)
    made.drop()
    assert made.released == [[]]
    assert done
    assert not device.events


def test_memory_that_may_still_be_read_is_not_given_back(device: HostDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise BackendError("CUDA failed: unspecified launch failure (719)")

    made = Made(device)
    monkeypatch.setattr(device, "record", fails)
    monkeypatch.setattr(device, "synchronize_all", fails)
    made.drop()
    assert made.released == []


# ---- other libraries' arrays --------------------------------------------------------------------------------------------


def interface(address: int) -> Any:
    described = {"shape": (3, 4), "typestr": "<f4", "data": (address, False), "version": 3}
    return types.SimpleNamespace(__cuda_array_interface__=described)


def test_arrays_of_another_gpu_are_refused(device: HostDevice) -> None:
    message = (
        r"x lies on GPU 0, and the session runs on GPU 1; copy it there first, or open the session with device 'cuda:0'"
    )
    first = Made(HostDevice(index=0)).array
    assert first is not None
    asked: list[int] = []
    wrapped = types.SimpleNamespace(__dlpack_device__=lambda: (2, 0), __dlpack__=lambda stream: asked.append(stream))
    device.foreign[8192] = 0
    with device.active():
        stream = device.create_stream()
        for value in (first, wrapped, interface(8192)):
            with pytest.raises(InputError, match=message):
                device_view("x", value, device, stream)
        device.foreign[12288] = None  # managed memory
        assert device_view("x", interface(12288), device, stream).address == 12288
    assert asked == []


def test_a_view_keeps_its_array(device: HostDevice) -> None:
    made = Made(device)
    with device.active():
        view = device_view("x", made.array, device, device.create_stream())
    gone = weakref.ref(made.array)
    made.drop()
    assert gone() is not None
    del view
    gc.collect()
    assert gone() is None
