"""What a failed build says: which node of the graph, and which module of PyTorch it comes from."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from detr_export.engines.build import build_engine
from detr_export.engines.failures import located
from detr_export.engines.options import EngineOptions
from detr_export.graphs.modules import module_of
from detr_export.runtimes.backends.tensorrt.profiles import EngineProfile
from detr_export.runtimes.errors import ArtifactError, BackendError
from tests.tensorrt_double import Knobs
from tests.tensorrt_double.fixtures import OLDEST, Install

QUICK = EngineOptions(profiles=(EngineProfile((1, 64, 64), (1, 64, 96), (2, 80, 96)),), verify=False)


def traced_product(file: Path) -> onnx.NodeProto:
    """A product of a graph, of a known module."""
    return next(
        node
        for node in onnx.load(str(file)).graph.node
        if node.op_type in ("MatMul", "Gemm") and "encoder.layers.1" in (module_of(node) or "")
    )


def test_the_parsers_node_and_its_module(tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    node = traced_product(tiny_onnx)
    tensorrt.parse_error_node = node.name
    tensorrt.parse_error = f"Invalid Node - {node.name}\nit is\n wrong\n[checkMacros.cpp::catchCudaError::250] no driver"
    with pytest.raises(ArtifactError) as error:
        build_engine(tiny_onnx, tmp_path / "a.engine", QUICK)
    expected = f"does not read tiny.onnx: {node.op_type} {node.name}, traced in {module_of(node)}: it is wrong"
    assert str(error.value).endswith(expected)


def test_an_operator_that_the_parser_does_not_have(tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    tensorrt.parse_error_node, tensorrt.parse_error = traced_product(tiny_onnx).name, "false"
    with pytest.raises(ArtifactError, match=r"encoder\.layers\.1.*: unsupported node$"):
        build_engine(tiny_onnx, tmp_path / "a.engine", QUICK)


def test_8_names_its_node_in_the_text_alone(install_tensorrt: Install, tiny_onnx_17: Path, tmp_path: Path) -> None:
    node = next(node for node in onnx.load(str(tiny_onnx_17)).graph.node if node.op_type == "MatMul")
    install_tensorrt(OLDEST).parse_error = f"In node {node.name}: wrong"
    with pytest.raises(ArtifactError, match=rf": In node {node.name}: wrong \(MatMul {node.name}\)"):
        build_engine(tiny_onnx_17, tmp_path / "a.engine", QUICK)


def test_the_builders_node_and_its_module(tensorrt: Knobs, tiny_onnx: Path, tmp_path: Path) -> None:
    node = traced_product(tiny_onnx)
    tensorrt.build_error = f"Cannot compile operation '{node.name}' for Turing (SM75)"
    with pytest.raises(BackendError) as error:
        build_engine(tiny_onnx, tmp_path / "a.engine", QUICK)
    assert str(error.value).endswith(f"for Turing (SM75) ({node.op_type} {node.name}, traced in {module_of(node)})")


def test_a_reason_without_a_node_stays_as_it_is(tiny_onnx: Path) -> None:
    assert located("out of memory", onnx.load(str(tiny_onnx))) == "out of memory"
