"""An end-to-end graph: the processor, the model and post-processing in one, from bytes of an image to boxes in pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import onnx
from onnx import TensorProto, helper

from detr_export.checkpoints.reading import Checkpoint
from detr_export.graphs.editing import replace_nodes
from detr_export.graphs.end_to_end.building import Nodes
from detr_export.graphs.end_to_end.pixels import add_pixels
from detr_export.graphs.end_to_end.results import add_results
from detr_export.graphs.end_to_end.sizes import LARGEST_SIDE, resized
from detr_export.graphs.options import ExportOptions
from detr_export.runtimes.errors import ArtifactError, first_line
from detr_export.runtimes.metadata import BGR, IMAGE, MATMUL, OPERATOR, RGB, EndToEnd, Metadata
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.processing.sizes import as_size

_BEFORE, _AFTER = "processor", "results"  # what names of the added nodes begin with
_BILINEAR = 2  # Pillow's number
_OPERATOR_OPSET = 18  # the first Resize that is antialiased


IMAGE_RANGES = {"batch": (1, None), "height": (1, LARGEST_SIDE), "width": (1, LARGEST_SIDE)}


def end_to_end_of(checkpoint: Checkpoint, options: ExportOptions) -> EndToEnd | None:
    """What the options ask for, None if it is no end-to-end graph.

    Raises:
        ArtifactError: an option contradicts another, or a setting of the processor is none that a graph follows.
    """
    if not options.end_to_end:
        if options.color != RGB or options.resize != MATMUL or options.top_k is not None:
            raise ArtifactError("color, resize and top_k are of an end-to-end file; add --end-to-end")
        return None
    for name, value, known in (("color", options.color, (RGB, BGR)), ("resize", options.resize, (MATMUL, OPERATOR))):
        if value not in known:
            raise ArtifactError(f"{name} is {value!r}; expected {' or '.join(known)}")
    if options.input != "float" or options.attentions or options.fp16_io or not options.pixel_mask:
        raise ArtifactError(
            "an end-to-end file maps images to boxes; leave --input, --no-mask, --with-attentions and --fp16-io out"
        )
    if options.resize == OPERATOR and options.opset < _OPERATOR_OPSET:
        raise ArtifactError(f"ONNX resizes with antialiasing from opset {_OPERATOR_OPSET} on; use --resize matmul")
    queries = checkpoint.config.num_queries
    top_k = queries if options.top_k is None else options.top_k
    if not 1 <= top_k <= queries:
        raise ArtifactError(f"top_k is {top_k}; expected 1 to {queries}, the number of the model's queries")
    _check_settings(checkpoint)
    return EndToEnd(options.color, options.resize, top_k)


def compose(model: onnx.ModelProto, processor: DetrImageProcessor, options: EndToEnd) -> onnx.ModelProto:
    """The graph of a DETR with the processor before it and post-processing behind it.

    Args:
        model: it maps `pixel_values` float32 (B, 3, H, W) to `logits`, `pred_boxes` and maybe `pred_masks`, in float32.
        processor: its settings.
        options: how.

    Returns:
        A model that maps `image` uint8 (batch, height, width, 3) to `scores` (batch, K), `labels` (batch, K), `boxes`
        (batch, K, 4) and, where the model draws masks, `masks` (batch, K, mask_height, mask_width), see `add_results`.

    Raises:
        ArtifactError: the result is not valid ONNX.
    """
    draws_masks = "pred_masks" in {value.name for value in model.graph.output}
    before, after = Nodes(_BEFORE), Nodes(_AFTER)
    pixels, height, width = add_pixels(before, before.value("image"), processor, options)
    before.name_output(pixels, "pixel_values")
    results = add_results(after, height, width, options.top_k, draws_masks)
    for name, value in results.items():
        after.name_output(value, name)

    composed = onnx.ModelProto()
    composed.CopyFrom(model)
    graph = composed.graph
    replace_nodes(graph, (*before.nodes, *graph.node, *after.nodes))
    graph.initializer.extend([*before.initializers, *after.initializers])
    for field in ("input", "output", "value_info"):  # names of dimensions there have another meaning now
        graph.ClearField(field)
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "height", "width", 3]))
    more: dict[str, list[int | str]] = {"boxes": [4], "masks": ["mask_height", "mask_width"]}
    for name in results:
        dtype = TensorProto.INT64 if name == "labels" else TensorProto.FLOAT
        shape: list[int | str] = ["batch", options.top_k, *more.get(name, [])]
        graph.output.append(helper.make_tensor_value_info(name, dtype, shape))
    try:
        onnx.checker.check_model(composed)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ArtifactError(f"the end-to-end graph is not valid ONNX: {first_line(error)}") from error
    return composed


def plain_part(model: onnx.ModelProto) -> onnx.ModelProto:
    """The plain graph in an end-to-end one: from `pixel_values` (batch, 3, height, width) to the raw outputs."""
    outputs = ["logits", "pred_boxes", *(["pred_masks"] if "masks" in {value.name for value in model.graph.output} else [])]
    part = _part(model, lambda name: not name.startswith((f"{_BEFORE}/", f"{_AFTER}/")), outputs)
    shape: list[int | str] = ["batch", 3, "height", "width"]
    part.graph.input.append(helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, shape))
    return part


def pixels_part(model: onnx.ModelProto) -> onnx.ModelProto:
    """What an end-to-end graph does before the model: from `image` to `pixel_values`."""
    part = _part(model, lambda name: name.startswith(f"{_BEFORE}/"), ["pixel_values"])
    part.graph.input.extend(model.graph.input)
    return part


def _part(model: onnx.ModelProto, keeps: Callable[[str], bool], outputs: list[str]) -> onnx.ModelProto:
    """Some of a model's nodes, chosen by their names, with the constants that they use and no inputs yet."""
    graph = model.graph
    nodes = [node for node in graph.node if keeps(node.name)]
    used = {name for node in nodes for name in node.input}
    values = [onnx.ValueInfoProto(name=name, type=onnx.TypeProto()) for name in outputs]
    for value in values:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    part = helper.make_graph(nodes, graph.name, [], values, [item for item in graph.initializer if item.name in used])
    return helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)


def described_end_to_end(metadata: Metadata, options: EndToEnd) -> Metadata:
    """The metadata of an end-to-end file, from those of the file that it was made of."""
    return replace(metadata, input=IMAGE, end_to_end=options, ranges=IMAGE_RANGES)


def _check_settings(checkpoint: Checkpoint) -> None:
    processor = checkpoint.processor
    if checkpoint.config.num_channels != 3:
        raise ArtifactError(f"the checkpoint takes images of {checkpoint.config.num_channels} channels, and images are RGB")
    if processor.pad_size is not None:
        raise ArtifactError("the checkpoint's processor pads every image to pad_size, which an end-to-end file does not do")
    if not processor.do_resize:
        return
    scratch = Nodes("scratch")
    resized(
        scratch, scratch.value("height"), scratch.value("width"), as_size(processor.size)
    )  # refuses a size it has no rule for
    if processor.resample != _BILINEAR:
        raise ArtifactError(
            f"the checkpoint's processor resizes with Pillow's filter {processor.resample}; "
            f"an end-to-end file has {_BILINEAR} only, which is bilinear"
        )
