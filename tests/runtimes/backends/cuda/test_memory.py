"""Choosing between PyCUDA and cuda-python, and what their errors become. What needs a GPU is in docs/tensorrt.md."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from detr_export.runtimes.backends.cuda import cuda_python
from detr_export.runtimes.backends.cuda.memory import LEGACY_STREAM, Stream, stream_handle
from detr_export.runtimes.backends.cuda.opening import open_device
from detr_export.runtimes.errors import BackendError

Functions = dict[str, Callable[..., tuple[Any, ...]]]


class Runtime(types.ModuleType):
    """cuda-python's runtime and driver with one GPU; functions return (error, values...)."""

    def __init__(self, **changes: Callable[..., tuple[Any, ...]]) -> None:
        super().__init__("cuda.bindings.runtime")
        self.calls: list[tuple[Any, ...]] = []
        self.contexts: list[Any] = []  # of this thread; the last one is current
        self.functions: Functions = {
            "cudaDriverGetVersion": lambda: (0, 13010),
            "cudaGetDeviceCount": lambda: (0, 1),
            "cudaGetDeviceProperties": lambda index: (0, types.SimpleNamespace(name=b"NVIDIA H200\0\0", major=9, minor=0)),
            "cudaMemGetInfo": lambda: (0, 100 << 20, 1000 << 20),
            "cudaGetErrorString": lambda error: (0, b"an illegal memory access was encountered"),
            "cudaStreamCreateWithFlags": lambda flags: (0, 77),
            "cudaStreamEndCapture": lambda stream: (0, "template"),
            "cudaGraphInstantiate": lambda graph, flags: (0, "graph"),
            "cudaMalloc": lambda nbytes: (0, 4096),
            "cuDeviceGet": lambda index: (0, f"device {index}"),
            "cuDevicePrimaryCtxRetain": lambda device: (0, f"primary context of {device}"),
            "cuCtxPushCurrent": lambda context: (0, self.contexts.append(context))[:1],
            "cuCtxPopCurrent": lambda: (0, self.contexts.pop()),
            "cuGetErrorString": lambda error: (0, b"invalid device context"),
            **changes,
        }
        self.cudaStreamNonBlocking = 1
        self.cudaEventDisableTiming = 2
        self.cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
        self.cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            return self.functions.get(name, lambda *_: (0,))(*arguments)

        return call


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Runtime]:
    """Puts a runtime where cuda-python has its own, from 12.8 on or before."""
    monkeypatch.delitem(sys.modules, "pycuda.driver", raising=False)

    def install(place: str = "cuda.bindings.runtime", **changes: Callable[..., tuple[Any, ...]]) -> Runtime:
        runtime = Runtime(**changes)
        for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime", "cuda.bindings.driver", "cuda.cudart", "cuda.cuda"):
            monkeypatch.setitem(sys.modules, name, None)
        for name in {place.rpartition(".")[0], "cuda"}:
            package = types.ModuleType(name)
            package.__path__ = []  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, name, package)
        monkeypatch.setitem(sys.modules, place, runtime)
        driver = {"cuda.cudart": "cuda.cuda", "cuda.bindings.runtime": "cuda.bindings.driver"}[place]
        monkeypatch.setitem(sys.modules, driver, runtime)
        return runtime

    return install


@pytest.mark.parametrize("place", ["cuda.bindings.runtime", "cuda.cudart"])
def test_opens_a_gpu(place: str, install: Callable[..., Runtime]) -> None:
    install(place)
    device = open_device()
    assert (device.name, device.compute_capability, device.driver) == ("NVIDIA H200", (9, 0), "13.1")
    assert device.captures_graphs


@pytest.mark.parametrize(
    ("changes", "index", "message"),
    [
        (
            {"cudaDriverGetVersion": lambda: (0, 0)},
            0,
            "no NVIDIA driver is loaded; install one and check it with nvidia-smi",
        ),
        ({"cudaGetDeviceCount": lambda: (35, None)}, 0, "no NVIDIA driver is loaded, or it is older than this cuda-python"),
        ({"cudaGetDeviceCount": lambda: (100, None)}, 0, "the NVIDIA driver sees no GPU; check with nvidia-smi"),
        ({}, 1, "there is no GPU 1: 1 found; choose with device 'cuda:N'"),
        (
            {"cudaGetDeviceProperties": lambda index: (700, None)},
            0,
            r"CUDA failed in cudaGetDeviceProperties: an illegal .*\(700",
        ),
    ],
)
def test_what_cannot_be_opened(changes: Functions, index: int, message: str, install: Callable[..., Runtime]) -> None:
    install(**changes)
    with pytest.raises(BackendError, match=message):
        open_device(index)


def test_out_of_memory_says_how_much(install: Callable[..., Runtime]) -> None:
    runtime = install(cudaMalloc=lambda nbytes: (2, None))
    device = open_device()
    with (
        device.active(),
        pytest.raises(BackendError, match="the GPU has 100 of 1000 MiB free and 301 MiB were needed; use fewer"),
    ):
        device.allocate((300 << 20) + 1)
    assert ("cudaGetLastError",) in runtime.calls  # or the next kernel would report it


def test_calls_reach_cuda(install: Callable[..., Runtime]) -> None:
    runtime = install()
    device = open_device()
    runtime.calls.clear()
    data = np.zeros(6, np.float32)
    with device.active():
        stream = device.create_stream()
        device.upload(4096, data, stream)
        device.download(data, 4096, stream)
        device.synchronize(stream)
        device.free(4096)
    assert runtime.calls == [
        ("cuCtxPushCurrent", "primary context of device 0"),
        ("cudaStreamCreateWithFlags", 1),
        ("cudaMemcpyAsync", 4096, data.ctypes.data, 24, 1, 77),
        ("cudaMemcpyAsync", data.ctypes.data, 4096, 24, 2, 77),
        ("cudaStreamSynchronize", 77),
        ("cudaFree", 4096),
        ("cuCtxPopCurrent",),
    ]


def test_the_callers_device_is_current_again(install: Callable[..., Runtime]) -> None:
    """Also a context that is not the primary one, and none at all."""
    runtime = install(cudaGetDeviceCount=lambda: (0, 2))
    device = open_device(1)
    assert runtime.contexts == []
    runtime.contexts.append("the caller's")
    with device.active():
        assert runtime.contexts[-1] == "primary context of device 1"
        with pytest.raises(RuntimeError, match="inside"), device.active():
            raise RuntimeError("inside")
        assert runtime.contexts[-1] == "primary context of device 1"
    assert runtime.contexts == ["the caller's"]
    assert not any(call[0] == "cudaSetDevice" for call in runtime.calls)


def test_a_context_that_cannot_be_used(install: Callable[..., Runtime]) -> None:
    install(cuCtxPushCurrent=lambda context: (201,))
    device = open_device()
    with (
        pytest.raises(BackendError, match=r"CUDA failed in cuCtxPushCurrent: invalid device context \(201\)"),
        device.active(),
    ):
        pytest.fail("it is not active")


@pytest.mark.parametrize(("kind", "gpu"), [(0, None), (1, None), (2, 3), (3, None)])
def test_whose_memory_it_is(kind: int, gpu: int | None, install: Callable[..., Runtime]) -> None:
    """That of the host, and managed memory, can be read by all."""
    install(cudaPointerGetAttributes=lambda address: (0, types.SimpleNamespace(type=kind, device=address // 4096)))
    assert open_device().gpu_of(3 * 4096) == gpu


@pytest.mark.parametrize(("error", "happened"), [(0, True), (600, False)])
def test_an_event_is_asked_without_waiting(error: int, happened: bool, install: Callable[..., Runtime]) -> None:
    runtime = install(cudaEventQuery=lambda event: (error,))
    assert open_device().happened("event") == happened
    assert not any(call[0] == "cudaEventSynchronize" for call in runtime.calls)


def test_an_event_after_an_error(install: Callable[..., Runtime]) -> None:
    install(cudaEventQuery=lambda event: (700,))
    with pytest.raises(BackendError, match=r"CUDA failed in cudaEventQuery: an illegal memory access .*\(700\)"):
        open_device().happened("event")


def test_captures_a_graph(install: Callable[..., Runtime]) -> None:
    runtime = install()
    device = open_device()
    with device.capture(Stream(5)) as captured:
        runtime.calls.clear()
    assert captured == ["graph"]
    assert runtime.calls == [
        ("cudaStreamEndCapture", 5),
        ("cudaGraphInstantiate", "template", 0),
        ("cudaGraphDestroy", "template"),
    ]
    runtime.calls.clear()
    with pytest.raises(RuntimeError, match="inside"), device.capture(Stream(5)):
        raise RuntimeError("inside")
    assert runtime.calls[-1] == ("cudaStreamEndCapture", 5)  # or the stream would stay in its capture


def test_nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime", "cuda.cudart", "pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError, match=r"cuda-python is not installed; run: pip install 'detr-export\[trt\]'"):
        open_device()


# ---- PyCUDA -------------------------------------------------------------------------------------------------------------


class PyCuda(types.ModuleType):
    """pycuda.driver with one device, whose context is pushed and popped."""

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    class Stream:
        handle = 99

        def wait_for_event(self, event: Any) -> None:
            event.calls.append("device waits")

    class Event:
        def __init__(self, flags: int) -> None:
            self.calls: list[Any] = [flags]

        def record(self, stream: Any = None) -> Any:
            self.calls.append(stream)
            return self

        def synchronize(self) -> None:
            self.calls.append("host waits")

    event_flags = types.SimpleNamespace(DISABLE_TIMING=2)

    def __init__(self, current: bool) -> None:
        super().__init__("pycuda.driver")
        self.depth = 0
        outer = self

        class Context:
            @staticmethod
            def get_current() -> Any:
                return outer.context if current else None

            @staticmethod
            def get_device() -> int:
                assert outer.depth, "no context is current"
                return outer.Device(0)

            @staticmethod
            def pop() -> None:
                outer.depth -= 1

            def push(self) -> None:
                outer.depth += 1

        class Device(int):
            def name(self) -> str:
                return "Orin"

            def compute_capability(self) -> tuple[int, int]:
                return (8, 7)

            def retain_primary_context(self) -> Context:
                return Context()

        self.Context, self.Device, self.context = Context, Device, Context()

    def init(self) -> None:
        pass

    def get_driver_version(self) -> int:
        return 11040

    def mem_alloc(self, nbytes: int) -> int:
        raise self.MemoryError("cuMemAlloc failed: out of memory")

    def mem_get_info(self) -> tuple[int, int]:
        return 5 << 20, 8 << 20


def test_a_current_pycuda_context_is_shared(install: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    driver = PyCuda(current=True)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    device = open_device()
    assert (device.name, device.compute_capability, device.driver) == ("Orin", (8, 7), "11.4")
    assert not device.captures_graphs
    with device.active():
        assert driver.depth == 1
        with pytest.raises(BackendError, match="the GPU has 5 of 8 MiB free and 6 MiB were needed"):
            device.allocate(6 << 20)
    assert driver.depth == 0
    with pytest.raises(BackendError, match="PyCUDA captures no CUDA graphs; set cuda_graphs=0"):
        device.capture(Stream(1))
    assert device.adopt_stream(PyCuda.Stream()).handle == 99
    assert device.gpu_of(4096) is None  # PyCUDA cannot tell
    with pytest.raises(BackendError, match=r"stream is a int; with a PyCUDA context, pass a pycuda.driver.Stream"):
        device.adopt_stream(99)
    with pytest.raises(BackendError, match="context is not of GPU 1"):
        open_device(1)


def test_without_a_context_cuda_python_comes_first(install: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    monkeypatch.setitem(sys.modules, "pycuda.driver", PyCuda(current=False))
    assert open_device().name == "NVIDIA H200"


def test_pycuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime", "cuda.cudart"):
        monkeypatch.setitem(sys.modules, name, None)
    package, driver = types.ModuleType("pycuda"), PyCuda(current=False)
    package.driver = driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    assert open_device().name == "Orin"


def test_pycuda_and_other_libraries_streams(install: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no handles. Of the default stream it knows, and in place of another library's stream the host waits."""
    install()
    monkeypatch.setitem(sys.modules, "pycuda.driver", PyCuda(current=True))
    device = open_device()
    ours = device.adopt_stream(PyCuda.Stream())
    assert device.record(LEGACY_STREAM).calls == [2, None]
    event = device.record(ours)
    assert event.calls == [2, ours.native]
    device.wait(ours, event)
    device.wait(Stream(7), event)
    assert event.calls[2:] == ["device waits", "host waits"]
    with pytest.raises(BackendError, match="PyCUDA cannot wait for another library's stream"):
        device.record(Stream(7))


# ---- streams of other libraries -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stream",
    [
        7,
        Stream(7),
        types.SimpleNamespace(cuda_stream=7),
        types.SimpleNamespace(ptr=7),
        types.SimpleNamespace(handle=7),
        types.SimpleNamespace(__cuda_stream__=lambda: (0, 7)),
    ],
    ids=["handle", "ours", "torch", "cupy", "pycuda", "cuda.core"],
)
def test_streams(stream: Any) -> None:
    assert stream_handle(stream) == 7


def test_what_is_no_stream() -> None:
    with pytest.raises(BackendError, match="stream is a str; expected a handle, or a stream of torch, CuPy or PyCUDA"):
        stream_handle("default")


def test_the_real_cuda_python_names_what_is_used_here() -> None:
    """Where it is installed; the calls above go to a stand-in."""
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    import re
    from pathlib import Path

    text = Path(cuda_python.__file__).read_text(encoding="utf-8")
    used = set(re.findall(r"\bcuda(?:[A-Z]\w+)", text))
    comments = {"cudaErrorMemoryAllocation", "cudaErrorInsufficientDriver", "cudaErrorNoDevice", "cudaErrorNotReady"}
    comments |= {"cudaMemoryTypeDevice", "cudaSetDevice"}
    modes = {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost", "cudaStreamCaptureModeThreadLocal"}
    assert len(used) > 20
    assert [name for name in used - comments - modes if not hasattr(runtime, name)] == []
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")
    used = set(re.findall(r"\bcu(?:[A-Z]\w+)", text))
    assert len(used) > 4
    assert [name for name in used if not hasattr(driver, name)] == []
    assert int(runtime.cudaError_t.cudaErrorNotReady) == cuda_python._NOT_READY
    assert int(runtime.cudaMemoryType.cudaMemoryTypeDevice) == cuda_python._DEVICE_MEMORY
    assert LEGACY_STREAM.handle == int(runtime.cudaStreamLegacy)
