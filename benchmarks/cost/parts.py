"""Which part of a DETR a node of its graph belongs to, so that costs and times can be given for each part.

Exporters and optimisers rename nodes, merge them and fold weights into each other. But some weights keep the names that the
checkpoint gave them (`...decoder.layers.0.fc1.bias`), and the data flows one way: backbone, encoder, decoder, heads. So a
node that reads such a weight belongs to the weight's part, and every other node to the first part that depends on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import onnx

from detr_export.runtimes.mask_head import KEYS, PYRAMID, SHARED

# The encoder includes what it starts from: the projection of the feature map, the resized mask, the position encoding.
# "processing" is what an end-to-end file has before and behind the model.
PARTS = ("processing", "backbone", "encoder", "decoder", "mask_head", "heads", "other")

# Names in the hub's checkpoints, then in facebookresearch/detr's. The backbone comes first: its names hold `conv_encoder`.
_WEIGHTS = (
    ("backbone", re.compile(r"(^|\.)backbone\.")),
    ("mask_head", re.compile(r"(^|\.)(mask_head|bbox_attention)\.")),
    ("encoder", re.compile(r"(^|\.)(encoder|input_projection|input_proj)\.")),
    ("decoder", re.compile(r"(^|\.)(decoder|query_position_embeddings|query_embed)\.")),
    ("heads", re.compile(r"(^|\.)(class_labels_classifier|bbox_predictor|class_embed|bbox_embed)\.")),
)
_PROJECTION = re.compile(r"(^|\.)input_proj(ection)?\.")  # what reads the backbone's last feature map
_PROCESSING = re.compile(r"(processor|results)/")  # how `graphs.end_to_end.composing` names its nodes
_OUTPUTS = {
    "cross_attention": "decoder",
    "logits": "heads",
    "pred_boxes": "heads",
    "pred_masks": "mask_head",
    KEYS: "mask_head",
    SHARED: "mask_head",
    **dict.fromkeys(PYRAMID, "mask_head"),  # what a detector gives to it
}
_FLOW = (
    "processing",
    "backbone",
    "encoder",
    "decoder",
    "heads",
    "mask_head",
)  # each uses the parts before it, and none after it
_LAYOUT = re.compile(r"(_nchwc)?(_token_\d+)?$")  # what ONNX Runtime appends to a tensor's name to make a node's
_FREE_CAST = "InsertedPrecisionFreeCast_"  # what it puts before a name where its CPU computes an fp16 graph in fp32


def parts_of(graph: onnx.GraphProto) -> dict[str, str]:
    """The part that computes each tensor.

    Args:
        graph: of a file as it was exported, simplified or not. The values of its weights are not read.

    Returns:
        One of `PARTS` for every output of every node. In a graph that is no DETR's, everything is "other".
    """
    # Each part starts from the nodes that read its weights or write its outputs.
    weights = {tensor.name for tensor in graph.initializer}
    writer = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    named = [_named_part(node, weights) for node in graph.node]
    roots: dict[str, list[int]] = {part: [] for part in _FLOW}
    for index, node in enumerate(graph.node):
        if (part := named[index]) is not None:
            roots[part].append(index)
        if any(_PROJECTION.search(name) for name in _names(node, weights)):
            roots["backbone"] += [writer[name] for name in node.input if name in writer]
    for output, part in _OUTPUTS.items():  # in an end-to-end file they are tensors inside the graph
        if output in writer:
            roots[part].append(writer[output])

    # From there, a part takes every node that its nodes depend on and that no earlier part has taken.
    found: dict[int, str] = {}
    for part in _FLOW:
        waiting = list(roots[part])
        while waiting:
            index = waiting.pop()
            if index in found or named[index] not in (None, part):
                continue
            found[index] = part
            waiting += [writer[name] for name in graph.node[index].input if name in writer]
    return {name: found.get(index, "other") for name, index in writer.items()}


def parts_of_optimized(optimized: onnx.GraphProto, original: Mapping[str, str]) -> dict[str, str]:
    """The part of each node of a graph that ONNX Runtime has rewritten, in which more weights have lost their names.

    Args:
        optimized: what `SessionOptions.optimized_model_filepath` writes.
        original: `parts_of` the graph that it was made from.

    Returns:
        One of `PARTS` by node name. A node that merges several writes the tensor of the last of them, or has its name. A
        node that only changes the layout of a tensor belongs to the node that writes the tensor, or else to its reader.
    """
    parts: dict[str, str] = {}
    of_tensor: dict[str, str] = {}
    for node in optimized.node:
        names = [name.removeprefix(_FREE_CAST) for name in (*node.output, _LAYOUT.sub("", node.name), *node.input)]
        part = next((found for name in names if (found := of_tensor.get(name) or original.get(name))), None)
        if part is not None:
            parts[node.name] = part
            of_tensor.update(dict.fromkeys(filter(None, node.output), part))
    for node in reversed(optimized.node):  # the nodes that are left read only the model's inputs: look at what reads them
        if node.name not in parts:
            readers = (other for other in optimized.node if set(node.output) & set(other.input))
            parts[node.name] = next((parts[other.name] for other in readers if other.name in parts), "other")
    return parts


def _named_part(node: onnx.NodeProto, weights: Iterable[str]) -> str | None:
    if _PROCESSING.match(node.name):
        return "processing"
    for name in _names(node, weights):
        for part, pattern in _WEIGHTS:
            if pattern.search(name):
                return part
    return None


def _names(node: onnx.NodeProto, weights: Iterable[str]) -> list[str]:
    """The weights that a node reads, and its own name, which the TorchScript exporter writes as `/model/encoder/...`."""
    return [*(name for name in node.input if name in weights), node.name.replace("/", ".")]
