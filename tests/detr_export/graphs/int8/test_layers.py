"""Which layers each scope holds, in models of all kinds, and why some of them stay float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.export import ExportOptions, export_onnx
from detr_export.graphs.int8.layers import Layer, int8_layers, layers_of
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.runtimes.errors import ArtifactError
from detr_export.seeding import seed_weights
from tests import models

IN_EACH_LAYER = ("fc1", "fc2", "self_attn", "self_attn.out_proj")
IMAGE, SEVERAL = "it reads the image", "it is several products in one"


def by_module(found: list[Layer]) -> dict[str, str | None]:
    return {layer.module.removeprefix("detr.model.").removeprefix("detr."): layer.kept for layer in found}


def test_the_scopes_of_a_panoptic_model(float_file: Path) -> None:
    graph = onnx.load(str(float_file)).graph
    backbone, encoder, everything = (by_module(layers_of(graph, name)) for name in ("backbone", "encoder", "all"))
    assert all(name.startswith("backbone.") for name in backbone)
    assert len(backbone) == sum(node.op_type == "Conv" for node in graph.node if "backbone" in str(node.metadata_props))
    assert sorted(set(encoder) - set(backbone)) == [
        "encoder",
        *(
            f"encoder.layers.{index}.{name}"
            for index in (0, 1)
            for name in ("fc1", "fc2", "self_attn", "self_attn.out_proj")
        ),
        "input_projection",
    ]
    assert {name.split(".")[0] for name in set(everything) - set(encoder)} == {
        *("bbox_attention", "bbox_predictor", "class_labels_classifier", "decoder", "mask_head"),
    }


def test_what_stays_float_has_a_reason(segmenter: Path, tmp_path: Path) -> None:
    options = ExportOptions(one_graph=True, verify=False)  # with its masks, which else are in a file of their own
    file = export_onnx(load_checkpoint(segmenter), tmp_path / "a.onnx", options).path
    found = by_module(layers_of(onnx.load(str(file)).graph, "all"))
    kept = {name: reason for name, reason in found.items() if reason is not None}
    reasons = {
        "backbone.conv_encoder.model.embedder.embedder.convolution": IMAGE,
        "encoder": SEVERAL,
        "bbox_predictor.layers.2": "eight bits would place boxes",
        "mask_head.out_lay": "its result is an output of the model",
    }
    assert set(reasons) <= set(kept)
    assert all(str(kept[name]).startswith(reason) for name, reason in reasons.items())
    rest = {name: reason for name, reason in kept.items() if name not in reasons}
    assert {name.split(".")[0] for name in rest} <= {"decoder", "mask_head"}
    assert all("group norm" in str(reason) for name, reason in rest.items() if name.startswith("mask_head."))


def test_no_product_of_an_attention_is_a_layer(float_file: Path) -> None:
    graph = onnx.load(str(float_file)).graph
    constants = {tensor.name for tensor in graph.initializer}
    computed = {node.name for node in graph.node if node.op_type == "MatMul" and constants.isdisjoint(node.input)}
    assert computed
    assert computed.isdisjoint(layer.name for layer in layers_of(graph, "all"))


@pytest.mark.parametrize("changes", [{"backbone": "resnet18"}, {"pre_norm": True}], ids=["timm", "table-transformer"])
def test_other_models(changes: dict[str, Any], tmp_path: Path) -> None:
    made = DetrForObjectDetection(models.config(**changes))
    seed_weights(made)
    made.save_pretrained(tmp_path / "checkpoint")
    file = export_onnx(load_checkpoint(tmp_path / "checkpoint"), tmp_path / "a.onnx", ExportOptions(verify=False)).path
    graph = onnx.load(str(file)).graph
    found = layers_of(graph, "backbone")
    assert [layer.kept for layer in found].count(None) == len(found) - 1
    assert len(found) == sum(node.op_type == "Conv" for node in graph.node)
    encoder = layers_of(graph, "encoder")
    assert len(int8_layers(encoder)) == len(found) - 1 + 1 + 2 * 4


def test_more_layers_can_stay_float(float_file: Path) -> None:
    found = layers_of(onnx.load(str(float_file)).graph, "backbone")
    chosen = int8_layers(found)
    assert int8_layers(found, [chosen[0].module]) == chosen[1:]


def test_what_is_refused(float_file: Path) -> None:
    model = onnx.load(str(float_file))
    with pytest.raises(ArtifactError, match="int8_scope is 'decoder'; expected backbone, encoder, all"):
        layers_of(model.graph, "decoder")
    for node in model.graph.node:
        del node.metadata_props[:]
    with pytest.raises(ArtifactError, match=r"in the scope 'all' .*; its nodes name no modules, export with --opset 18"):
        layers_of(model.graph, "all")


def test_a_graph_without_layers_of_the_scope() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    node.metadata_props.add(key="detr_export.module", value="model.mask_head")
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([node], "g", [value], [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])])
    with pytest.raises(ArtifactError, match=r"the graph has no layer in the scope 'encoder' that can be int8$"):
        layers_of(graph, "encoder")
