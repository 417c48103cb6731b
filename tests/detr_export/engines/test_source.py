"""From a checkpoint to an engine: the graph of every step of the fallback, in a form that each TensorRT reads."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from detr_export.engines import source as engine_source
from detr_export.engines.build import build_with_fallback
from detr_export.engines.ladder import LADDER, step_after, steps
from detr_export.engines.options import EngineOptions
from detr_export.engines.source import make_graph
from detr_export.graphs.inspection import inspect_onnx
from detr_export.graphs.options import DEFAULT_OPSET
from detr_export.graphs.tensorrt import readable_graph
from detr_export.runtimes.backends.tensorrt.profiles import EngineProfile
from detr_export.runtimes.errors import ArtifactError
from tests.tensorrt_double import Knobs
from tests.tensorrt_double.fixtures import OLDEST, Install

SMALL = EngineProfile((1, 64, 64), (1, 64, 96), (2, 80, 96))


def fp16_elements(file: Path) -> int:
    model = onnx.load(str(file))
    return sum(len(item.raw_data) // 2 for item in model.graph.initializer if item.data_type == TensorProto.FLOAT16)


def test_the_ladder() -> None:
    names = {
        (fp16, fallback): [step.name for step in steps(fp16, fallback)]
        for fp16 in (False, True)
        for fallback in (False, True)
    }
    assert names[False, False] == names[False, True] == ["fp32"]
    assert names[True, False] == ["fp16"]
    assert names[True, True] == ["fp16", "fp32-attention", "fp32-transformer", "fp32"]
    assert [step_after(name) for name in ("fp32", "int8")] == [None, None]
    assert step_after("fp16") is LADDER[1]


def test_each_step_keeps_more_in_fp32(tensorrt: Knobs, tiny_checkpoint: Path, tmp_path: Path) -> None:
    files = [make_graph(str(tiny_checkpoint), step.name, tmp_path) for step in LADDER]
    assert [inspect_onnx(file).metadata.precision for file in files] == ["fp16", "fp16", "fp16", "fp32"]  # type: ignore[union-attr]
    fp16, attention, transformer, full = (fp16_elements(file) for file in files)
    assert fp16 == attention > 1.3 * transformer > full == 0
    again = files[0].stat().st_mtime_ns
    assert make_graph(str(tiny_checkpoint), "fp16", tmp_path) == files[0]
    assert files[0].stat().st_mtime_ns == again  # made once


@pytest.mark.parametrize("version", ["newest", "oldest"])
def test_fp16_engine_of_a_checkpoint(version: str, install_tensorrt: Install, tiny_checkpoint: Path, tmp_path: Path) -> None:
    if version == "oldest":
        install_tensorrt(OLDEST)
    else:
        install_tensorrt()
    (tmp_path / "graphs").mkdir()
    result = build_with_fallback(
        lambda step: make_graph(str(tiny_checkpoint), step.name, tmp_path / "graphs"),
        tmp_path / "tiny.engine",
        EngineOptions(profiles=(SMALL,)),
        tried=steps(fp16=True, fallback=True),
    )
    assert result.sidecar.precision == "fp16"
    assert result.sidecar.fallback is None
    assert result.parity is not None
    assert result.parity.passed
    assert result.sidecar.layers["fp16"] > 10
    assert result.sidecar.metadata.opset == (17 if version == "oldest" else 18)


@pytest.mark.usefixtures("no_tensorrt")
def test_without_a_library_it_is_the_usual_opset() -> None:
    assert engine_source._opset("tensorrt") == engine_source._opset("tensorrt_rtx") == DEFAULT_OPSET


def test_files_are_taken_as_they_are(tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    assert make_graph(str(tiny_onnx), "fp32", tmp_path) == tiny_onnx
    with pytest.raises(ArtifactError, match="is fp32; export its checkpoint with"):
        make_graph(str(tiny_onnx), "fp16", tmp_path)
    with pytest.raises(ArtifactError, match="fp32-attention cannot be made from"):
        make_graph(str(tiny_onnx), "fp32-attention", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_is_rewritten_for_8_alone(tiny_onnx: Path) -> None:
    model = onnx.load(str(tiny_onnx))
    assert readable_graph(model, "11.4.0.106") is model
    assert readable_graph(model, "10.16.1") is model
    with pytest.raises(ArtifactError, match=r"has opset 18, and TensorRT 8\.5 reads 17 at most"):
        readable_graph(model, "8.6.1")
    with pytest.raises(ArtifactError, match=r"no list of what TensorRT 9\.1 reads"):
        readable_graph(model, "9.1")
