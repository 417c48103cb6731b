"""The modules of PyTorch that nodes come from: noted while tracing, and still there in the file."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.export import ExportOptions, export_onnx
from detr_export.graphs.fp16.casting import to_fp16
from detr_export.graphs.modules import module_of

EXPECTED = {
    "model.backbone.conv_encoder.model.embedder.embedder.convolution",
    "model.input_projection",
    "model.encoder.layers.1.self_attn",
    "model.decoder.layers.0.encoder_attn.out_proj",
    "class_labels_classifier",
    "bbox_predictor.layers.2",
}
PRODUCTS = ("Conv", "MatMul")


def modules(model: onnx.ModelProto) -> dict[str, str | None]:
    return {node.name: module_of(node) for node in model.graph.node if node.op_type in PRODUCTS}


@pytest.mark.parametrize(
    "options",
    [
        ExportOptions(verify=False),
        ExportOptions(verify=False, simplify=False),
        ExportOptions(verify=False, input="uint8"),
    ],
    ids=["simplified", "as traced", "uint8"],
)
def test_a_file_names_the_module_of_every_product(options: ExportOptions, tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "a.onnx", options).path
    model = onnx.load(str(file))
    found = modules(model)
    assert None not in found.values()
    assert set(found.values()) >= EXPECTED
    assert {item.key for node in model.graph.node for item in node.metadata_props} == {"detr_export.module"}
    assert str(Path(__file__).parents[3]).encode() not in file.read_bytes()  # the exporter notes its program's paths


def test_casting_keeps_the_modules(tiny_onnx: Path) -> None:
    model = onnx.load(str(tiny_onnx))
    typed, _ = to_fp16(model)
    onnx.checker.check_model(typed)
    assert modules(typed) == modules(model)


def test_a_graph_without_modules(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """PyTorch's exporter loses them on the way to opset 17."""
    file = export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "a.onnx", ExportOptions(verify=False, opset=17)).path
    assert set(modules(onnx.load(str(file))).values()) == {None}
