"""What this machine can do at best: floating-point operations of a large matrix product, and bytes copied, a second.

Why: "130 GFLOP/s" says little until one knows that the processor reaches 180 in the easiest kernel there is. A model's rate
over this peak is the share of the machine that it uses; a share that is far from 1 while bytes are moved at the copy's rate
says that memory is the limit.

What: float32 products of square matrices of several sizes, by each library at hand (NumPy's BLAS, PyTorch's, ONNX
Runtime's; not each of them knows a processor's widest instructions), the best of all repetitions of all of them: a peak is
what no other program disturbed. It is the machine's on the day, in this process, at this number of threads; it is not the
data sheet's number. Inputs are random, because zeros take less power. The copy is of blocks far larger than the caches; its
bytes are those read and those written, as in the STREAM benchmark.

On a GPU: PyTorch's product in float32, TF32 or float16, timed between events on the device.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from detr_export.runtimes.devices import parse_device
from detr_export.runtimes.errors import BackendError, InputError, missing_extra

if TYPE_CHECKING:
    import torch

SIZES = (384, 768, 1536, 2304)  # rows and columns; 0.6 to 21 MB for three matrices, within and beyond a core's cache
CUDA_SIZES = (2048, 4096, 8192)
CUDA_PRECISIONS = ("fp32", "tf32", "fp16")
_COPY_BYTES = 256 << 20  # several times the largest caches
_LEAST_RUNS = 2  # of every size, however short the time; the first one warms up


def gemm_peak_gflop_per_s(threads: int, seconds: float = 1.0) -> float:
    """The best rate of a float32 matrix product on the CPU, in 1e9 floating-point operations a second.

    Args:
        threads: that the product may use.
        seconds: to spend, about, shared between sizes and libraries. The warm-up and PyTorch's import come on top.

    Raises:
        InputError: an argument is not positive.
        BackendError: none of PyTorch, ONNX Runtime and threadpoolctl is installed, so nothing can set the number of threads.
    """
    _check(threads=threads, seconds=seconds)
    libraries = [name for name in ("torch", "threadpoolctl", "onnxruntime") if importlib.util.find_spec(name) is not None]
    if not libraries:
        raise missing_extra("threadpoolctl", "bench")
    share = seconds / (len(libraries) * len(SIZES))
    rates = []
    for library in libraries:
        with _product(library, threads) as make:
            rates += [best_rate(make(size), 2 * size**3, share) for size in SIZES]
    return max(rates) / 1e9


def copy_gbyte_per_s(threads: int = 1, seconds: float = 0.5) -> float:
    """The best rate of copying memory on the CPU, in 1e9 bytes read or written a second.

    Args:
        threads: each copies a part of its own; one is seldom enough to reach the machine's limit.
        seconds: to spend, about.

    Raises:
        InputError: an argument is not positive.
    """
    _check(threads=threads, seconds=seconds)
    source = np.ones(_COPY_BYTES // 8, dtype=np.float64)  # written to, or its pages would all be the one page of zeros
    target = np.ones_like(source)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:  # numpy releases the interpreter's lock while it copies
        return best_rate(lambda: list(pool.map(lambda part: np.copyto(*part), parts)), 2 * source.nbytes, seconds) / 1e9


def cuda_gemm_peak_gflop_per_s(precision: str = "fp32", device: str = "cuda", seconds: float = 1.0) -> float:
    """The best rate of a matrix product on a GPU, in 1e9 floating-point operations a second.

    Args:
        precision: `fp32`; `tf32`, which is float32 with 10 bits of mantissa in the product, and what ONNX Runtime's CUDA
            provider uses for float32 models unless it is told otherwise; or `fp16`.
        device: `cuda` or `cuda:N`.
        seconds: to spend, about.

    Raises:
        InputError: the precision is none of these, or `seconds` is not positive.
        BackendError: PyTorch or the device is missing.
    """
    _check(seconds=seconds)
    if precision not in CUDA_PRECISIONS:
        raise InputError(f"precision is {precision!r}; expected one of {', '.join(CUDA_PRECISIONS)}")
    wanted = parse_device(device)
    if importlib.util.find_spec("torch") is None:
        raise missing_extra("torch", "export")
    import torch

    if wanted.kind != "cuda" or wanted.index >= torch.cuda.device_count():
        raise BackendError(f"device is {device!r}, but PyTorch sees {torch.cuda.device_count()} CUDA devices")
    place = torch.device("cuda", wanted.index)
    dtype = torch.float16 if precision == "fp16" else torch.float32
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        rates = [
            2 * size**3 / fastest(_product_on_device(size, place, dtype), seconds / len(CUDA_SIZES)) for size in CUDA_SIZES
        ]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return max(rates) / 1e9


def best_rate(run: Callable[[], object], work: float, seconds: float) -> float:
    """Work a second of the fastest of the runs that fit into `seconds`; the first one is a warm-up."""

    def timed() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return work / fastest(timed, seconds)


def fastest(measure: Callable[[], float], seconds: float) -> float:
    """The least of what `measure` returns, called until its results add up to `seconds`; the first one is a warm-up."""
    least, spent, runs = float("inf"), 0.0, 0
    while runs < _LEAST_RUNS or spent < seconds:
        took = max(measure(), 1e-9)  # a clock may stand still
        if runs:
            least, spent = min(least, took), spent + took
        runs += 1
    return least


def _product_on_device(size: int, place: torch.device, dtype: torch.dtype) -> Callable[[], float]:
    """What runs a product on a GPU and returns how many seconds the device took."""
    import torch

    left, right = (torch.randn((size, size), device=place, dtype=dtype) for _ in range(2))
    result = torch.empty_like(left)
    stream = torch.cuda.current_stream(place)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def run() -> float:
        start.record(stream)
        torch.mm(left, right, out=result)
        end.record(stream)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3  # it is in milliseconds

    return run


@contextlib.contextmanager
def _product(library: str, threads: int) -> Iterator[Callable[[int], Callable[[], object]]]:
    """Yields what makes a product of two matrices of some size, and limits the library to some threads until it ends."""
    if library == "torch":
        import torch

        def by_torch(size: int) -> Callable[[], object]:
            left, right = (torch.rand((size, size)) for _ in range(2))
            result = torch.empty((size, size))
            return lambda: torch.mm(left, right, out=result)

        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.inference_mode():
                yield by_torch
        finally:
            torch.set_num_threads(before)
        return
    if library == "onnxruntime":
        yield lambda size: _product_by_onnxruntime(size, threads)
        return
    limits = importlib.import_module("threadpoolctl").threadpool_limits

    def by_numpy(size: int) -> Callable[[], object]:
        left, right = np.random.default_rng(0).random((2, size, size), dtype=np.float32)
        result = np.empty_like(left)
        return lambda: np.matmul(left, right, out=result)

    with limits(threads):
        yield by_numpy


def _product_by_onnxruntime(size: int, threads: int) -> Callable[[], object]:
    import onnxruntime
    from onnx import TensorProto, helper

    names = ("left", "right", "product")
    left, right, product = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, size]) for name in names)
    graph = helper.make_graph([helper.make_node("MatMul", names[:2], names[2:])], "product", [left, right], [product])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    operands = np.random.default_rng(0).random((2, size, size), dtype=np.float32)
    inputs = {"left": operands[0], "right": operands[1]}
    return lambda: session.run(None, inputs)[0]


def _check(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise InputError(f"{name} is {value}; expected more than 0")
