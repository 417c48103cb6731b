"""The arithmetic of the peaks on clocks of our own; no time is asserted."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from detr_export.benchmarks.cost import machine_peak
from detr_export.runtimes.errors import BackendError, InputError


def answers(*seconds: float) -> Callable[[], float]:
    waiting: Iterator[float] = iter(seconds)
    return lambda: next(waiting)


def test_the_fastest_run_counts_but_not_the_first() -> None:
    assert machine_peak.fastest(answers(0.1, 0.5, 0.3, 0.4), seconds=1.1) == 0.3


def test_there_are_two_runs_at_least_and_none_after_the_time_is_spent() -> None:
    assert machine_peak.fastest(answers(9.0, 7.0), seconds=1e-6) == 7.0  # a third one would raise StopIteration


def test_a_clock_that_stands_still_divides_by_something() -> None:
    assert machine_peak.fastest(answers(0.0, 0.0), seconds=0.0) > 0


def test_a_rate_is_work_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 10.0, 12.0])
    monkeypatch.setattr(machine_peak.time, "perf_counter", lambda: next(clock))
    assert machine_peak.best_rate(lambda: None, work=6.0, seconds=1.0) == 3.0


@pytest.mark.parametrize("library", ["torch", "threadpoolctl", "onnxruntime"])
def test_a_library_multiplies_with_the_threads_asked_for_and_gets_its_own_back(library: str) -> None:
    pytest.importorskip(library)
    before = torch.get_num_threads()
    with machine_peak._product(library, 1) as make:
        result = make(8)()
        assert np.asarray(result).shape == (8, 8)
        assert library != "torch" or torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_peaks_are_the_best_of_all_sizes_and_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter(np.arange(1, 100) * 1e9)
    monkeypatch.setattr(machine_peak, "best_rate", lambda *_: next(rates))
    libraries = [name for name in ("torch", "threadpoolctl", "onnxruntime") if importlib.util.find_spec(name)]
    assert machine_peak.gemm_peak_gflop_per_s(1) == len(libraries) * len(machine_peak.SIZES)


def test_peaks_are_kept_by_device_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = iter([100.0, 120.0, 110.0]), {"fp32": 1e3, "tf32": 8e3, "fp16": 16e3}
    monkeypatch.setattr(machine_peak, "gemm_peak_gflop_per_s", lambda threads: next(cpu))
    monkeypatch.setattr(machine_peak, "cuda_gemm_peak_gflop_per_s", lambda precision, device: gpu[precision])
    peaks = machine_peak.Peaks(1)
    assert peaks.of("cpu", "fp32") is None
    for _ in range(3):
        peaks.measure("cpu", "fp32")
    for precision in ("fp32", "tf32", "fp16", "int8"):
        peaks.measure("cuda", precision)
    peaks.measure("cpu", "fp16")
    assert peaks.of("cpu", "fp32") == 120.0
    assert {name: peaks.of("cuda", name) for name in gpu} == gpu
    # There is no product in these to compare with.
    assert peaks.of("cuda", "int8") is None
    assert peaks.of("cpu", "fp16") is None


def test_without_a_gpu_there_is_no_peak_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    peaks = machine_peak.Peaks(1)
    peaks.measure("cuda", "fp32")
    assert peaks.of("cuda", "fp32") is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: machine_peak.gemm_peak_gflop_per_s(0), "threads is 0; expected more than 0"),
        (lambda: machine_peak.gemm_peak_gflop_per_s(1, seconds=float("nan")), "seconds is nan"),
        (lambda: machine_peak.gemm_peak_gflop_per_s(1, seconds=-1), "seconds is -1; expected more than 0"),
        (lambda: machine_peak.cuda_gemm_peak_gflop_per_s("bf16"), "precision is 'bf16'; expected one of fp32, tf32, fp16"),
    ],
)
def test_arguments_out_of_range_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_a_missing_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for device in ("cuda", "cuda:1", "cpu"):
        with pytest.raises(BackendError, match=f"device is '{device}', but PyTorch sees 0 CUDA devices"):
            machine_peak.cuda_gemm_peak_gflop_per_s(device=device)


def test_without_a_library_that_sets_threads_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_peak.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"threadpoolctl is not installed; run: pip install 'detr-export\[bench\]'"):
        machine_peak.gemm_peak_gflop_per_s(1)
    with pytest.raises(BackendError, match=r"torch is not installed; run: pip install 'detr-export\[export\]'"):
        machine_peak.cuda_gemm_peak_gflop_per_s()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", machine_peak.CUDA_PRECISIONS)
def test_a_gpu_multiplies(precision: str) -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    assert machine_peak.cuda_gemm_peak_gflop_per_s(precision, seconds=0.1) > 0
    assert torch.backends.cuda.matmul.allow_tf32 == before
