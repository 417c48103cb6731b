"""What this machine can do at best: floating-point operations per second of a large matrix product.

Why: "130 GFLOP/s" says little until one knows that the processor reaches 180 in the easiest kernel there is. A model's rate
divided by this peak is the share of the machine that it uses.

What: float32 products of square matrices of several sizes, by each installed library (NumPy's BLAS, PyTorch's, ONNX
Runtime's; not each of them uses a processor's widest instructions). The best of all repetitions counts, because that is the
one that no other program disturbed. The result holds for this machine on this day, in this process, with this number of
threads; it is not the number of the data sheet. Inputs are random, because zeros take less power.

On a GPU: PyTorch's product in float32, TF32 or float16, timed between events on the device.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from detr_export.runtimes.devices import parse_device
from detr_export.runtimes.errors import BackendError, InputError, missing_extra

if TYPE_CHECKING:
    import torch

SIZES = (384, 768, 1536, 2304)  # rows and columns; 0.6 to 21 MB for three matrices, within and beyond a core's cache
CUDA_SIZES = (2048, 4096, 8192)
CUDA_PRECISIONS = ("fp32", "tf32", "fp16")
_LEAST_RUNS = 2  # of every size, however short the time; the first one warms up


class Peaks:
    """The best rates of a matrix product that were seen on each device, in each precision.

    Args:
        threads: that a product on the CPU may use.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._found: dict[tuple[str, str], float] = {}

    def measure(self, device: str, precision: str) -> None:
        """Measures once more; the better of two measurements counts. What cannot be measured here stays unknown."""
        found = 0.0
        if device == "cpu" and precision == "fp32":  # nobody's CPU product in float16 is a peak to compare with
            found = gemm_peak_gflop_per_s(self._threads)
        elif device != "cpu" and precision in CUDA_PRECISIONS:
            with contextlib.suppress(BackendError):  # PyTorch is not installed, or without CUDA
                found = cuda_gemm_peak_gflop_per_s(precision, device)
        if found:
            self._found[device, precision] = max(found, self._found.get((device, precision), 0.0))

    def of(self, device: str, precision: str) -> float | None:
        """1e9 floating-point operations a second; None where no peak was measured."""
        return self._found.get((device, precision))


def gemm_peak_gflop_per_s(threads: int, seconds: float = 1.0) -> float:
    """The best rate of a float32 matrix product on the CPU, in 1e9 floating-point operations a second.

    Args:
        threads: that the product may use.
        seconds: how long to measure, about, for all sizes and libraries together. The warm-up and PyTorch's import take
            extra time.

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


def cuda_gemm_peak_gflop_per_s(precision: str = "fp32", device: str = "cuda", seconds: float = 1.0) -> float:
    """The best rate of a matrix product on a GPU, in 1e9 floating-point operations a second.

    Args:
        precision: `fp32`, `fp16`, or `tf32`. TF32 is float32 with 10 bits of mantissa in the product; ONNX Runtime's CUDA
            provider uses it for float32 models by default.
        device: `cuda` or `cuda:N`.
        seconds: how long to measure, about.

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
    """Work per second of the fastest run among those that fit into `seconds`; the first run is a warm-up."""

    def timed() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return work / fastest(timed, seconds)


def fastest(measure: Callable[[], float], seconds: float) -> float:
    """The smallest result of `measure`, called until its results add up to `seconds`; the first call is a warm-up."""
    least, spent, runs = float("inf"), 0.0, 0
    while runs < _LEAST_RUNS or spent < seconds:
        took = max(measure(), 1e-9)  # a clock may stand still
        if runs:
            least, spent = min(least, took), spent + took
        runs += 1
    return least


def _product_on_device(size: int, place: torch.device, dtype: torch.dtype) -> Callable[[], float]:
    """A function that runs a product on a GPU and returns how many seconds the device took."""
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
    """Yields a function that makes the product of two matrices of a size. Until the end, the library has these threads."""
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

    # What is left is "threadpoolctl", which limits NumPy's BLAS.
    limits = importlib.import_module("threadpoolctl").threadpool_limits

    def by_numpy(size: int) -> Callable[[], object]:
        left, right = np.random.default_rng(0).random((2, size, size), dtype=np.float32)
        result = np.empty_like(left)
        return lambda: np.matmul(left, right, out=result)

    with limits(threads):
        yield by_numpy


def _product_by_onnxruntime(size: int, threads: int) -> Callable[[], object]:
    from onnx import TensorProto, helper

    from detr_export.runtimes.backends.ort.library import onnxruntime

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
