"""What a target's text means, what it is called, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from detr_export.benchmarks.speed import targets
from detr_export.benchmarks.speed.targets import (
    BACKENDS,
    Target,
    check_targets,
    demo_targets,
    distinct,
    file_bytes,
    find_baseline,
    parse_target,
    require_runnable,
)
from detr_export.runtimes.errors import ArtifactError, BackendError, InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ort:a/model.onnx", [("ort", "a/model.onnx", "ort:model.onnx")]),
        ("openvino:model.onnx", [("openvino", "model.onnx", "openvino:model.onnx")]),
        ("a/model.onnx", [("ort", "a/model.onnx", "ort:model.onnx")]),
        ("demo", [("torch", "demo", "torch:demo")]),
        ("facebook/detr-resnet-50", [("torch", "facebook/detr-resnet-50", "torch:facebook/detr-resnet-50")]),
        ("torch-compile:demo", [("torch-compile", "demo", "torch-compile:demo")]),
        ("/data/detr.pth", [("torch", "/data/detr.pth", "torch:detr.pth")]),
        ("C:\\model.onnx", [("ort", "C:\\model.onnx", "ort:C:\\model.onnx")]),
    ],
)
def test_parse(text: str, expected: list[tuple[str, str, str]]) -> None:
    assert [(item.backend, item.source, item.name) for item in parse_target(text)] == expected


def test_an_onnx_file_is_for_the_gpu_too_where_there_is_one() -> None:
    assert [item.backend for item in parse_target("model.onnx", cuda=True)] == ["ort", "ort-cuda"]
    assert [item.backend for item in parse_target("ort:model.onnx", cuda=True)] == ["ort"]
    assert [item.backend for item in parse_target("demo", cuda=True)] == ["torch"]


def test_a_file_whose_name_has_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run:3.onnx").touch()
    assert parse_target("run:3.onnx") == [Target("ort", "run:3.onnx", "ort:run:3.onnx")]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("tensorflow:a.onnx", InputError, "there is no backend 'tensorflow'; expected one of torch, torch-compile, ort"),
        ("openvino:", InputError, "openvino: names no model; expected openvino:FILE.onnx"),
        ("torch:", InputError, "expected torch:CHECKPOINT"),
    ],
)
def test_refused_text(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        parse_target(text)
    assert message in str(raised.value)


def test_the_targets_that_can_be_read_go_on() -> None:
    found, errors = check_targets(["ort:a.onnx", "nope:b", "demo"])
    assert [item.name for item in found] == ["ort:a.onnx", "torch:demo"]
    assert [text for text, _ in errors] == ["nope:b"]


def test_names_are_distinct() -> None:
    found = distinct(
        [*parse_target("a/m.onnx"), *parse_target("b/m.onnx"), *parse_target("c.onnx"), *parse_target("c.onnx")]
    )
    assert [item.name for item in found] == ["ort:a/m.onnx", "ort:b/m.onnx", "ort:c.onnx", "ort:c.onnx#2"]


@pytest.mark.parametrize("wanted", ["ort:m.onnx", "ort:a/m.onnx", "a/m.onnx", "ort"])
def test_baseline(wanted: str) -> None:
    chosen = distinct([*parse_target("demo"), *parse_target("a/m.onnx")])
    assert find_baseline(wanted, chosen).name == "ort:m.onnx"


@pytest.mark.parametrize(
    ("wanted", "message"), [("openvino", "is none of the targets"), ("ort", "is several of the targets")]
)
def test_refused_baseline(wanted: str, message: str) -> None:
    chosen = distinct([*parse_target("a.onnx"), *parse_target("b.onnx")])
    with pytest.raises(InputError, match=message):
        find_baseline(wanted, chosen)


@pytest.mark.parametrize("text", ["ort:nope.onnx", "openvino:nope.onnx", "transformers:nope"])
def test_a_model_that_is_not_there(text: str) -> None:
    with pytest.raises(ArtifactError, match="nope"):
        require_runnable(parse_target(text)[0])


def test_a_hub_id_is_left_to_its_reader() -> None:
    require_runnable(parse_target("torch:nobody/nothing")[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_that_is_not_installed(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = f"{BACKENDS[backend].package} is not installed; run: pip install 'detr-export[{BACKENDS[backend].extra}]'"
    with pytest.raises(BackendError) as raised:
        require_runnable(Target(backend, "a", "a"))
    assert str(raised.value) == message


def test_torch_compile_wants_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(BackendError, match="needs a C\\+\\+ compiler"):
        require_runnable(parse_target("torch-compile:demo")[0])


def test_the_demo_is_measured_in_all_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*absent: str, compiler: bool = True) -> list[str]:
        def find_spec(name: str) -> Any:
            return None if name in absent else object()

        monkeypatch.setattr(importlib.util, "find_spec", find_spec)
        monkeypatch.setattr(targets, "has_compiler", lambda: compiler)
        return [item.backend for item in demo_targets("demo", Path("d"), Path("d.onnx"))]

    assert found() == ["torch", "torch-compile", "ort", "openvino", "transformers"]
    assert found("openvino", "transformers") == ["torch", "torch-compile", "ort"]
    assert found(compiler=False) == ["torch", "ort", "openvino", "transformers"]


def test_file_bytes(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    (tmp_path / "config.json").write_bytes(b"{}")
    assert file_bytes(str(tmp_path)) == 5
    assert file_bytes(str(tmp_path / "config.json")) == 2
    (tmp_path / "a.onnx").write_bytes(b"abc")
    assert file_bytes(str(tmp_path / "a.onnx")) == 3
    (tmp_path / "a.masks.onnx").write_bytes(b"d")
    assert file_bytes(str(tmp_path / "a.onnx")) == 4
    assert file_bytes("facebook/detr-resnet-50") is None


@pytest.mark.parametrize("name", ["a.engine", "a.plan", "a.trt", "tensorrt:a.engine"])
def test_engines_are_for_tensorrt(name: str) -> None:
    (target,) = parse_target(name, cuda=True)
    assert (target.backend, target.onnx) == ("tensorrt", None)
    assert target.name == f"tensorrt:{name.rpartition(':')[2]}"
