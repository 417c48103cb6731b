"""The graph of a mask head, which draws the masks of chosen queries from what the detector's graph gives."""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx
import torch
from torch import Tensor

from detr_export.checkpoints.reading import Checkpoint
from detr_export.graphs.checks import dims_of
from detr_export.graphs.modules import keep_modules
from detr_export.graphs.options import ExportOptions
from detr_export.graphs.tracing import export_module
from detr_export.modeling.deployed import DeployedModel
from detr_export.modeling.deployed_masks import DeployedMaskHead
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.runtimes.mask_head import INPUTS, MASKS, PYRAMID, QUERY_STATES

# The traced example: images, and how many of their queries. Sides are multiples of every stride, and so tell them.
_BATCH, _HEIGHT, _WIDTH, _QUERIES = 2, 128, 192, 3

Dims = dict[str, tuple[str | int, ...]]


def trace_mask_head(model: DeployedModel, checkpoint: Checkpoint, options: ExportOptions) -> onnx.ModelProto:
    """Traces the mask head of a segmentation model.

    Args:
        model: the detector, with masks apart.
        checkpoint: what it is of.
        options: how it is exported.

    Raises:
        ArtifactError: PyTorch's exporter cannot trace it.
    """
    assert isinstance(model.model, DetrForSegmentation)
    example = _example(model, checkpoint.config.num_channels, options.pixel_mask)
    inputs = {name: _dims(tensor, name) for name, tensor in example.items()}
    # A dimension is an identifier while it is traced, and gets its name afterwards.
    names = {name for dims in inputs.values() for name in dims if isinstance(name, str)}
    sizes = {name: torch.export.Dim(re.sub(r"\W+", "_", name).strip("_")) for name in names}
    proto = export_module(DeployedMaskHead(model.model), tuple(example.values()), inputs, [MASKS], sizes, options.opset)
    keep_modules(proto, "model.model.")
    for value in proto.graph.input:
        _name_dims(value, inputs[value.name])
    _name_dims(proto.graph.output[0], ("batch", "queries", *inputs[PYRAMID[-1]][2:]))
    return proto


def mask_head_dims(proto: onnx.ModelProto) -> Dims:
    """The inputs of a mask head by name: their dimensions, a string for one that varies.

    Those of feature maps are named after what they are of the image: "ceil(height/32)".
    """
    return {value.name: dims_of(value) for value in proto.graph.input}


def name_shared_outputs(detector: onnx.ModelProto, inputs: Mapping[str, tuple[str | int, ...]]) -> None:
    """Gives a detector's outputs the dimensions that the mask head has for them; all queries are among them."""
    for value in detector.graph.output:
        if value.name in inputs:
            old = value.type.tensor_type.shape.dim
            dims = inputs[value.name]
            if value.name == QUERY_STATES:
                dims = (dims[0], old[1].dim_value, dims[2])
            _name_dims(value, dims)


def _example(model: DeployedModel, channels: int, pixel_mask: bool) -> dict[str, Tensor]:
    images = torch.zeros((_BATCH, channels, _HEIGHT, _WIDTH))
    mask = torch.ones((_BATCH, _HEIGHT, _WIDTH), dtype=torch.int64) if pixel_mask else None
    with torch.no_grad():
        outputs = model(images, mask)
    outputs[QUERY_STATES] = outputs[QUERY_STATES][:, :_QUERIES]
    return {name: outputs[name].contiguous() for name in INPUTS if name in outputs}


def _dims(tensor: Tensor, name: str) -> tuple[str | int, ...]:
    if name == QUERY_STATES:
        return ("batch", "queries", tensor.shape[2])
    height, width = tensor.shape[-2:]
    sides = (f"ceil(height/{_HEIGHT // height})", f"ceil(width/{_WIDTH // width})")
    return ("batch", *tensor.shape[1:-2], *sides)


def _name_dims(value: onnx.ValueInfoProto, names: tuple[str | int, ...]) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for name in names:
        dim = shape.dim.add()
        if isinstance(name, str):
            dim.dim_param = name
        else:
            dim.dim_value = name
