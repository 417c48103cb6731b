"""The doctor: what it finds here, on a machine with the double's GPU, and where things are installed and do not load."""

from __future__ import annotations

import json
from importlib import metadata as distributions

import pytest

from detr_export.runtimes.backends.cuda import opening as cuda_opening
from detr_export.runtimes.backends.ort import providers as ort_providers
from detr_export.runtimes.backends.tensorrt import api as tensorrt_api
from detr_export.runtimes.backends.tensorrt.api import Library
from detr_export.runtimes.doctor import Diagnosis, diagnose, known_issues
from detr_export.runtimes.errors import BackendError
from tests.tensorrt_double.fixtures import NEWEST, OLDEST, RTX, TEN, Install

FP16, CUMSUM = {"4796", "4397"}, {"1034", "4551", "4513"}  # of TensorRT 10 and later, and from 10.8 on


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
        "int8 ONNX files on the CPU": True,
        "ONNX files with OpenVINO": True,
        "ONNX files with CUDA": False,
        "ONNX files with TensorRT": False,
        "TensorRT engines": False,
        "compiling TensorRT-RTX engines": False,
    }
    assert (found.gpu, found.tensorrt, found.issues) == (None, None, ())
    assert found.packages["torch"] == distributions.version("torch")
    assert found.packages["tensorrt"] is None
    assert (
        f"yes ONNX files with OpenVINO (--device openvino): OpenVINO {distributions.version('openvino')}" in found.summary()
    )
    assert "GPU: none" in found.summary()
    assert "no  TensorRT engines" in found.summary()
    assert "pip install 'detr-export[trt]'" in found.summary()
    assert "pip install 'detr-export[rtx]'" in found.summary()
    json.dumps(found.to_dict())


def test_two_onnx_runtimes_work_no_better_than_in_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    version = distributions.version
    monkeypatch.setattr(distributions, "version", lambda name: "1.0" if name == "onnxruntime-gpu" else version(name))
    monkeypatch.setattr(cuda_opening, "open_device", no_gpu)
    found = diagnose()
    onnx = {name: value for name, value in works(found).items() if "ONNX files" in name and "OpenVINO" not in name}
    assert set(onnx.values()) == {False}
    assert "no  ONNX files on the CPU: onnxruntime and onnxruntime-gpu are both installed" in found.summary()


@pytest.mark.parametrize(
    ("version", "capability", "expected"),
    [
        (NEWEST, (9, 0), {"4477", "4813", "4853", *FP16, *CUMSUM}),
        (NEWEST, (12, 0), {"4477", "4813", "4853", "4837", *FP16, *CUMSUM}),
        (TEN, (12, 0), {"4477", "4813", "4853", "4837", *FP16, *CUMSUM}),
        ("10.12.0.36", (9, 0), {"4477", "4853", *FP16, *CUMSUM}),
        ("10.8.0.43", (9, 0), {"4477", *FP16, *CUMSUM}),
        ("10.7.0.23", (8, 9), {"4477", "4333", *FP16}),
        ("10.7.0.23", (8, 6), {"4477", *FP16}),
        (OLDEST, (8, 7), {"3657", "2781"}),
    ],
)
def test_with_a_gpu_it_names_what_goes_wrong_with_it(
    version: str,
    capability: tuple[int, int],
    expected: set[str],
    install_tensorrt: Install,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    knobs = install_tensorrt(version)
    monkeypatch.setattr(ort_providers, "linked_tensorrt", lambda: None)
    knobs.device.compute_capability = capability
    found = diagnose()
    assert works(found)["TensorRT engines"]
    assert (found.gpu, found.compute_capability, found.tensorrt) == ("Test GPU", capability, version)
    assert {item.reference.rpartition("/")[2] for item in found.issues} == expected
    for item in found.issues:
        assert item.reference in found.summary()


@pytest.mark.usefixtures("no_tensorrt")
@pytest.mark.parametrize(
    ("version", "onnxruntime", "present", "absent"),
    [
        ((10, 9), "1.27.0", {"4477", "29779", *CUMSUM}, {"4813", "4853"}),
        ((10, 9), "1.26.1", {"4477", *CUMSUM}, {"29779"}),
        ((10, 7), "1.27.0", {"4477", "29779"}, CUMSUM),
        ((11, 1), "1.30.2", {"4477", "4813", *CUMSUM}, {"29779"}),
        ((8, 6), "1.30.2", {"3657", "2781"}, {"4477", "29779"}),
    ],
)
def test_what_goes_wrong_with_the_tensorrt_of_onnx_runtime(
    version: tuple[int, int], onnxruntime: str, present: set[str], absent: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_opening, "open_device", no_gpu)
    monkeypatch.setattr(ort_providers, "linked_tensorrt", lambda: version)
    monkeypatch.setattr(ort_providers.onnxruntime, "__version__", onnxruntime)
    names = ["TensorrtExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort_providers.onnxruntime, "get_available_providers", lambda: names)
    found = diagnose()
    text = f"{version[0]}.{version[1]}"
    assert (found.tensorrt, found.provider_tensorrt) == (None, text)
    assert f"ONNX Runtime's TensorRT provider runs TensorRT {text}" in found.summary()
    assert f"known to go wrong with TensorRT {text}, on some GPUs:" in found.summary()
    numbers = {item.reference.rpartition("/")[2] for item in found.issues}
    assert present <= numbers
    assert not absent & numbers


def test_two_tensorrts_are_told_apart(install_tensorrt: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install_tensorrt("10.7.0.23")
    monkeypatch.setattr(ort_providers, "linked_tensorrt", lambda: (10, 9))
    monkeypatch.setattr(ort_providers.onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    found = diagnose()
    assert "known to go wrong with TensorRT 10.7.0.23 and 10.9 here:" in found.summary()
    assert {item.reference.rpartition("/")[2] for item in found.issues} >= CUMSUM
    monkeypatch.setattr(ort_providers, "linked_tensorrt", lambda: None)
    assert not {item.reference.rpartition("/")[2] for item in diagnose().issues} & CUMSUM


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
    assert len({item.reference for item in known_issues()}) == len(known_issues()) == 13
