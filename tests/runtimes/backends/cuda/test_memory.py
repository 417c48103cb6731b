"""Choosing between PyCUDA and cuda-python, and what their errors become. What needs a GPU is in docs/tensorrt.md."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from detr_export.runtimes.backends.cuda import cuda_python
from detr_export.runtimes.backends.cuda.memory import Stream, stream_handle
from detr_export.runtimes.backends.cuda.opening import open_device
from detr_export.runtimes.errors import BackendError

Functions = dict[str, Callable[..., tuple[Any, ...]]]


class Runtime(types.ModuleType):
    """cuda-python's runtime with one GPU; functions return (error, values...)."""

    def __init__(self, **changes: Callable[..., tuple[Any, ...]]) -> None:
        super().__init__("cuda.bindings.runtime")
        self.calls: list[tuple[Any, ...]] = []
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
            **changes,
        }
        self.cudaStreamNonBlocking = 1
        self.cudaEventDisableTiming = 2
        self.cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
        self.cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
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
        for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime", "cuda.cudart"):
            monkeypatch.setitem(sys.modules, name, None)
        for name in {place.rpartition(".")[0], "cuda"}:
            package = types.ModuleType(name)
            package.__path__ = []  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, name, package)
        monkeypatch.setitem(sys.modules, place, runtime)
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
        ("cudaSetDevice", 0),
        ("cudaStreamCreateWithFlags", 1),
        ("cudaMemcpyAsync", 4096, data.ctypes.data, 24, 1, 77),
        ("cudaMemcpyAsync", data.ctypes.data, 4096, 24, 2, 77),
        ("cudaStreamSynchronize", 77),
        ("cudaFree", 4096),
    ]


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

    used = set(re.findall(r"\bcuda(?:[A-Z]\w+)", Path(cuda_python.__file__).read_text(encoding="utf-8")))
    comments = {"cudaErrorMemoryAllocation", "cudaErrorInsufficientDriver", "cudaErrorNoDevice"}
    modes = {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost", "cudaStreamCaptureModeThreadLocal"}
    assert len(used) > 20
    assert [name for name in used - comments - modes if not hasattr(runtime, name)] == []
