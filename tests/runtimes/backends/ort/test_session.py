"""ONNX Runtime's session: devices, options, closing, damage, and several threads."""

from __future__ import annotations

from importlib import metadata as distributions
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.cpu import available_cores
from detr_export.runtimes.errors import BackendError
from detr_export.verification.cases import Case, make_inputs

INPUTS = make_inputs(Case(70, 90, ((70, 90), (50, 61))), 3, True, seed=4)


@pytest.mark.parametrize(
    "options",
    [{"threads": 1}, {"threads": available_cores()}, {"denormals_as_zero": True}]
    + [{"graph_optimization": level} for level in ("disabled", "basic", "extended", "all")],
    ids=str,
)
def test_options_keep_the_numbers(options: dict, tiny_onnx: Path) -> None:
    with OrtSession(tiny_onnx) as plain, OrtSession(tiny_onnx, **options) as session:
        given, expected = session.run(INPUTS), plain.run(INPUTS)
        for name in expected:
            assert np.abs(given[name] - expected[name]).max() <= 1e-4


@pytest.mark.parametrize("threads", [1, available_cores()])
def test_threads_reach_onnxruntime(threads: int, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = onnxruntime.InferenceSession

    def record(path: str, options: onnxruntime.SessionOptions, **kwargs: object) -> onnxruntime.InferenceSession:
        seen.append(options.intra_op_num_threads)
        return original(path, options, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    OrtSession(tiny_onnx, threads=threads).close()
    assert seen == [threads]


# ---- devices ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["tpu", "cpu:", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "CUDA", "", "gpu"])
def test_refuses_devices(device: str, tiny_onnx: Path) -> None:
    with pytest.raises(BackendError, match=rf"device is '{device}'; expected cpu, cuda\[:N\], tensorrt"):
        OrtSession(tiny_onnx, device)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_cuda_without_its_provider(device: str, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match=r"this onnxruntime has no CUDA provider; run: .*detr-export\[gpu\]"):
        OrtSession(tiny_onnx, device)


def test_cuda_that_does_not_start_is_never_the_cpu(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fallen:
        """What ONNX Runtime gives when the CUDA provider fails to load: a session on the CPU."""

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **kwargs: Fallen())
    with pytest.raises(BackendError, match="did not start CUDAExecutionProvider for device 'cuda:1'"):
        OrtSession(tiny_onnx, "cuda:1")


def test_two_distributions_are_refused(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributions, "version", lambda name: "1.0")
    with pytest.raises(BackendError, match="onnxruntime and onnxruntime-gpu are both installed and overwrite each other"):
        OrtSession(tiny_onnx)


@pytest.mark.parametrize("only", ["onnxruntime", "onnxruntime-gpu"])
def test_one_distribution_is_fine(only: str, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name != only:
            raise distributions.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(distributions, "version", version)
    OrtSession(tiny_onnx).close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"graph_optimization": "most"}, "graph_optimization is 'most'; expected one of disabled, basic, extended, all"),
    ],
)
def test_refuses_options(options: dict, message: str, tiny_onnx: Path) -> None:
    with pytest.raises(BackendError, match=message):
        OrtSession(tiny_onnx, **options)
