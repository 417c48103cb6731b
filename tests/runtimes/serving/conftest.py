"""A DETR that is small enough to be served in a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from detr_export.runtimes import Metadata
from detr_export.runtimes.metadata import METADATA_KEY
from tests import models

QUERIES, CHANNELS, CLASSES = 9, 8, len(models.LABELS) + 1


@pytest.fixture(scope="package")
def small_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file with the inputs, outputs and metadata of a segmentation DETR, and one convolution inside."""
    random = np.random.default_rng(0)
    weights = {
        "kernel": random.normal(size=(CHANNELS, 3, 3, 3)),
        "class_weight": random.normal(size=(CHANNELS, QUERIES * CLASSES)),
        "box_weight": random.normal(size=(CHANNELS, QUERIES * 4)),
        "mask_kernel": random.normal(size=(QUERIES, CHANNELS, 1, 1)),
    }
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    shapes = {"class_shape": [-1, QUERIES, CLASSES], "box_shape": [-1, QUERIES, 4], "axis": [1]}
    initializers += [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in shapes.items()]
    nodes = [
        helper.make_node("Unsqueeze", ["pixel_mask", "axis"], ["mask4"]),
        helper.make_node("Cast", ["mask4"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixel_values", "real"], ["pixels"]),
        helper.make_node("Conv", ["pixels", "kernel"], ["convolved"], strides=[4, 4], pads=[1, 1, 1, 1]),
        helper.make_node("Tanh", ["convolved"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["vector"]),
        helper.make_node("MatMul", ["vector", "class_weight"], ["classes"]),
        helper.make_node("Reshape", ["classes", "class_shape"], ["logits"]),
        helper.make_node("MatMul", ["vector", "box_weight"], ["flat_boxes"]),
        helper.make_node("Reshape", ["flat_boxes", "box_shape"], ["raw_boxes"]),
        helper.make_node("Sigmoid", ["raw_boxes"], ["pred_boxes"]),
        helper.make_node("Conv", ["features", "mask_kernel"], ["pred_masks"]),
    ]
    size = ["batch", "height", "width"]
    inputs = [
        helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [size[0], 3, *size[1:]]),
        helper.make_tensor_value_info("pixel_mask", TensorProto.INT64, size),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", QUERIES, CLASSES]),
        helper.make_tensor_value_info("pred_boxes", TensorProto.FLOAT, ["batch", QUERIES, 4]),
        helper.make_tensor_value_info("pred_masks", TensorProto.FLOAT, ["batch", QUERIES, "rows", "columns"]),
    ]
    graph = helper.make_graph(nodes, "small", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    processor = {"image_processor_type": "DetrImageProcessor", "size": models.SIZE}
    metadata = Metadata("segmentation", models.LABELS, processor, pixel_mask=True)
    helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    file = tmp_path_factory.mktemp("small") / "small.onnx"
    onnx.save_model(model, str(file))
    return file
