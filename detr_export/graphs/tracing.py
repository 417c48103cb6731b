"""From a PyTorch model to an ONNX graph with free batch, height and width."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import onnx
import torch
from torch import Tensor, nn

import detr_export.runtimes.backends.ort.telemetry  # noqa: F401  # before a library imports onnxruntime
from detr_export.checkpoints.reading import Checkpoint
from detr_export.config import DetrConfig
from detr_export.graphs.editing import replace_nodes
from detr_export.graphs.modules import keep_modules
from detr_export.graphs.options import ExportOptions
from detr_export.modeling.deployed import DeployedModel, Uint8Model
from detr_export.runtimes.errors import ArtifactError, first_line
from detr_export.runtimes.mask_head import FEATURE_MASK
from detr_export.runtimes.metadata import UINT8
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.signals import interruption_in

# The traced example. None of its sizes may survive in the file: the verification grid holds none of them.
_BATCH, _HEIGHT, _WIDTH = 2, 256, 320
# What PyTorch deduces behind a backbone of stride 32. Told another range, it traces twice. The graph takes any size.
_LEAST_SIDE = 33  # pixels


class _Positional(nn.Module):
    """Takes and gives tensors by position, as the exporter names them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model(*tensors).values())


def trace(model: DeployedModel, checkpoint: Checkpoint, options: ExportOptions) -> onnx.ModelProto:
    """Traces a model; its inputs and outputs get their names.

    Raises:
        ArtifactError: PyTorch's exporter cannot trace it.
    """
    module, example = _example(model, checkpoint, options)
    names = input_dims(checkpoint.config, options)
    sizes = {"batch": torch.export.Dim("batch")}
    sizes |= {name: torch.export.Dim(name, min=_LEAST_SIDE) for name in ("height", "width")}
    outputs = [*model.output_names, *([FEATURE_MASK] if model.masks_apart and options.pixel_mask else [])]
    proto = export_module(module, example, names, outputs, sizes, options.opset)
    keep_modules(proto, "model.model." if isinstance(module, DeployedModel) else "model.model.model.")
    if options.input == UINT8:
        _measure_after_cast(proto)
    return proto


def export_module(
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: dict[str, tuple[str | int, ...]],
    outputs: list[str],
    sizes: dict[str, Any],
    opset: int,
) -> onnx.ModelProto:
    """Runs PyTorch's exporter.

    Args:
        module: maps tensors to a dict of tensors.
        example: what it is traced with.
        inputs: their names and dimensions, a string for one that varies.
        outputs: their names, in the dict's order.
        sizes: by the name of a dimension, the `torch.export.Dim`.
        opset: of the graph.

    Raises:
        ArtifactError: the exporter cannot trace it.
        KeyboardInterrupt: on Ctrl-C, of which the exporter makes errors of its own.
    """
    from torch._dynamo import config as dynamo  # two seconds that other commands need not spend

    dynamic = tuple(
        {axis: sizes[name] for axis, name in enumerate(shape) if isinstance(name, str)} for shape in inputs.values()
    )
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of operators of packages that are not installed
    # The cache of what operators give costs more than it saves where sizes are free: without it tracing is a fifth faster.
    with torch.no_grad(), dynamo.patch(fake_tensor_cache_enabled=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's notes about itself
        try:
            program = torch.onnx.export(
                _Positional(module),
                example,
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=outputs,
                dynamic_shapes=(dynamic,),
                verbose=False,
            )
        except Exception as error:  # a timm backbone may do what cannot be traced, and torch's errors share no base class
            if interruption_in(error) is not None:  # Ctrl-C came while it traced
                raise KeyboardInterrupt from error
            raise ArtifactError(f"PyTorch cannot export this model: {first_line(error)}") from error
    assert program is not None  # None only when the exporter is given a file
    return program.model_proto


def input_dims(config: DetrConfig, options: ExportOptions) -> dict[str, tuple[str | int, ...]]:
    """The inputs of the file, by name: their dimensions, a string for one that varies."""
    if options.input == UINT8:
        images: tuple[str | int, ...] = ("batch", "height", "width", config.num_channels)
        return {"pixel_values": images, **({"valid_sizes": ("batch", 2)} if options.pixel_mask else {})}
    inputs: dict[str, tuple[str | int, ...]] = {"pixel_values": ("batch", config.num_channels, "height", "width")}
    if options.pixel_mask:
        inputs["pixel_mask"] = ("batch", "height", "width")
    return inputs


def count_layer_norms(config: DetrConfig) -> int:
    """Two in each encoder layer, three in each decoder layer, and those that end the two stacks.

    Only a pre-norm encoder ends in one. The decoder's own runs once more in each layer with auxiliary loss. Around the first
    self-attention all is constant: one norm behind it, or with pre-norm the one before it and the one behind it.
    """
    final = (config.decoder_layers + 1 if config.auxiliary_loss else 1) + config.pre_norm
    return 2 * config.encoder_layers + 3 * config.decoder_layers + final - (2 if config.pre_norm else 1)


def _example(
    model: DeployedModel, checkpoint: Checkpoint, options: ExportOptions
) -> tuple[DeployedModel | Uint8Model, tuple[Tensor, ...]]:
    """The module to trace, and the inputs to trace it with."""
    channels = checkpoint.config.num_channels
    if options.input == UINT8:
        images = torch.zeros((_BATCH, _HEIGHT, _WIDTH, channels), dtype=torch.uint8)
        sizes = torch.tensor([(_HEIGHT, _WIDTH)] * _BATCH)
        return with_scaling(model, checkpoint.processor), (images, sizes) if options.pixel_mask else (images,)
    images = torch.zeros((_BATCH, channels, _HEIGHT, _WIDTH))
    mask = torch.ones((_BATCH, _HEIGHT, _WIDTH), dtype=torch.int64)
    return model, (images, mask) if options.pixel_mask else (images,)


def with_scaling(model: DeployedModel, processor: DetrImageProcessor) -> Uint8Model:
    """The model behind the scaling that a processor's settings ask for."""
    factor = processor.rescale_factor if processor.do_rescale else None
    normalization = (processor.image_mean, processor.image_std) if processor.do_normalize else (None, None)
    return Uint8Model(model, factor, *normalization)


def _measure_after_cast(model: onnx.ModelProto) -> None:
    """Takes the sizes of the images from their float copy: TensorRT reads a uint8 input in a Cast and nowhere else."""
    (cast,) = [node for node in model.graph.node if node.op_type == "Cast" and node.input[0] == "pixel_values"]
    rest = [node for node in model.graph.node if node is not cast]
    for node in rest:
        if node.op_type == "Shape" and node.input[0] == "pixel_values":
            node.input[0] = cast.output[0]
    replace_nodes(model.graph, (cast, *rest))
