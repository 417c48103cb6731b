"""Tiny ONNX files, made in memory: what they declare, and what they give, is up to the test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Declared = tuple[int, Sequence[int | str | None] | None]  # element type and shape

FLOAT, INT64, UINT8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8
PIXELS: Declared = (FLOAT, ["b", 3, "h", "w"])
DOCUMENT: dict[str, Any] = {
    "format_version": 1,
    "task": "detection",
    "id2label": {"0": "cat", "1": "dog"},
    "processor": {"image_processor_type": "DetrImageProcessor", "size": {"shortest_edge": 32, "longest_edge": 40}},
    "pixel_mask": True,
    "precision": "fp32",
    "input": "float",
    "end_to_end": None,
    "mask_head": None,
    "quantization": None,
    "opset": 18,
    "ranges": {"batch": [1, None], "height": [1, 1600], "width": [1, None]},
    "label_ids_to_fuse": [1],
    "source": {"name": "facebook/detr-resnet-50", "sha256": "0" * 64},
    "tools": {"torch": "2.9.0"},
    "parity": {
        "max_abs_diff": {"logits": 1e-5, "pred_boxes": 1e-6},
        "noise_floor": {"logits": 1e-5, "pred_boxes": 1e-6},
        "tolerance": {"logits": 1e-4, "pred_boxes": 1e-5},
        "spread": {"logits": 1.0, "pred_boxes": 0.1},
        "ratio": {"logits": 1.0, "pred_boxes": 1.0},
        "cases": 9,
        "worst_case": "1x480x640",
        "passed": True,
        "weak": False,
    },
}
END_TO_END = {
    **DOCUMENT,
    "input": "image",
    "end_to_end": {"color": "rgb", "resize": "matmul", "top_k": 4},
    "pixel_mask": False,
}
LOGITS, BOXES = np.zeros((1, 4, 3), np.float32), np.full((1, 4, 4), 0.5, np.float32)


def detr(
    file: Path,
    inputs: Mapping[str, Declared] | None = None,
    outputs: Mapping[str, tuple[np.ndarray, Declared | None]] | None = None,
    metadata: Mapping[str, Any] | str | None = DOCUMENT,
    nodes: Sequence[onnx.NodeProto] = (),
) -> Path:
    """Writes an ONNX file whose outputs are constants.

    Args:
        file: the place.
        inputs: element type and shape of each; None as the shape declares no rank.
        outputs: the value of each, and what is declared of it; None declares what it is.
        metadata: the document of detr-export; None leaves it out.
        nodes: more nodes, before the others.
    """
    inputs = {"pixel_values": PIXELS} if inputs is None else inputs
    outputs = {"logits": (LOGITS, None), "pred_boxes": (BOXES, None)} if outputs is None else outputs
    made, values = list(nodes), []
    for name, (value, declared) in outputs.items():
        constant = numpy_helper.from_array(value, f"{name}_value")
        made.append(helper.make_node("Constant", [], [f"{name}_constant"], value=constant))
        made.append(helper.make_node("Identity", [f"{name}_constant"], [name]))
        kind, shape = declared or (helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        values.append(helper.make_tensor_value_info(name, kind, shape))
    graph = helper.make_graph(
        made, "g", [helper.make_tensor_value_info(name, *declared) for name, declared in inputs.items()], values
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if metadata is not None:
        text = metadata if isinstance(metadata, str) else json.dumps(metadata)
        helper.set_model_props(model, {"detr_export": text})
    file.write_bytes(model.SerializeToString())
    return file
