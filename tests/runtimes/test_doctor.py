"""The doctor: what it finds here, on a machine with the double's GPU, and where things are installed and do not load."""

from __future__ import annotations

import json
from importlib import metadata as distributions

import pytest

from detr_export.runtimes.backends.cuda import opening as cuda_opening
from detr_export.runtimes.backends.tensorrt import api as tensorrt_api
from detr_export.runtimes.backends.tensorrt.api import Library
from detr_export.runtimes.doctor import Diagnosis, diagnose, known_issues
from detr_export.runtimes.errors import BackendError
from tests.tensorrt_double.fixtures import NEWEST, OLDEST, RTX, TEN, Install


def works(found: Diagnosis) -> dict[str, bool]:
    return {item.name.split(" (")[0]: item.works for item in found.abilities}


def no_gpu(index: int = 0) -> None:
    raise BackendError("no NVIDIA driver is loaded")


@pytest.mark.usefixtures("no_tensorrt")
def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_opening, "open_device", no_gpu)
    found = diagnose()
    assert works(found) == {
        "checkpoints in PyTorch": True,
        "ONNX files on the CPU": True,
        "ONNX files with CUDA": False,
        "ONNX files with TensorRT": False,
        "TensorRT engines": False,
        "compiling TensorRT-RTX engines": False,
    }
    assert (found.gpu, found.tensorrt, found.issues) == (None, None, ())
    assert found.packages["torch"] == distributions.version("torch")
    assert found.packages["tensorrt"] is None
    assert "GPU: none" in found.summary()
    assert "no  TensorRT engines" in found.summary()
    assert "pip install 'detr-export[trt]'" in found.summary()
    assert "pip install 'detr-export[rtx]'" in found.summary()
    json.dumps(found.to_dict())


@pytest.mark.parametrize(
    ("version", "capability", "expected"),
    [
        (NEWEST, (9, 0), {"4477"}),
        (NEWEST, (12, 0), {"4477", "4837"}),
        (TEN, (12, 0), {"4477", "4837"}),
        ("10.7.0.23", (8, 9), {"4477", "4333"}),
        ("10.7.0.23", (8, 6), {"4477"}),
        (OLDEST, (8, 7), {"3657", "2781"}),
    ],
)
def test_with_a_gpu_it_names_what_goes_wrong_with_it(
    version: str, capability: tuple[int, int], expected: set[str], install_tensorrt: Install
) -> None:
    knobs = install_tensorrt(version)
    knobs.device.compute_capability = capability
    found = diagnose()
    assert works(found)["TensorRT engines"]
    assert (found.gpu, found.compute_capability, found.tensorrt) == ("Test GPU", capability, version)
    assert {item.reference.rpartition("/")[2] for item in found.issues} == expected
    for item in found.issues:
        assert item.reference in found.summary()


def test_tensorrt_rtx_compiles_without_a_gpu(install_tensorrt: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install_tensorrt(RTX, rtx=True)
    monkeypatch.setattr(cuda_opening, "open_device", no_gpu)
    found = diagnose()
    assert works(found)["compiling TensorRT-RTX engines"]
    assert (found.tensorrt_rtx, found.gpu) == (RTX, None)
    assert f"(detr-export trt --rtx): TensorRT-RTX {RTX}; running one takes a GPU" in found.summary()


def test_a_tensorrt_that_is_too_old_does_not_work(install_tensorrt: Install) -> None:
    install_tensorrt("8.4.3.1")
    found = diagnose()
    assert not works(found)["TensorRT engines"]
    assert "expected 8.5, 8.6, or 10.1 and later" in found.summary()


def test_what_is_installed_and_does_not_load_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, install_tensorrt: Install
) -> None:
    install_tensorrt()

    def broken(*_: object) -> Library:
        raise OSError("libnvinfer.so.11: cannot open shared object file\nmore")

    monkeypatch.setattr(tensorrt_api, "Library", broken)
    found = diagnose()
    assert not works(found)["TensorRT engines"]
    assert "OSError: libnvinfer.so.11: cannot open shared object file" in found.summary()


def test_every_known_issue_says_where_and_what_to_do() -> None:
    for item in known_issues():
        assert item.reference.startswith("https://github.com/")
        assert item.remedy
        assert set(item.precisions) <= {"fp32", "fp16"}
    assert len({item.reference for item in known_issues()}) == len(known_issues()) == 5
