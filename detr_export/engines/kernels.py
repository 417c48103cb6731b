"""What TensorRT made of a graph, as figures: how many kernels, what was fused, what is not in half precision."""

from __future__ import annotations

import math
import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from detr_export.engines.records import Kernel
from detr_export.graphs.fp16.islands import PRODUCTS

FLOATS = ("fp8", "bf16", "fp16", "fp32")
# What the CPU does, and what no kernel is launched for.
_NOT_KERNELS = frozenset(
    {
        *("shape_call", "wait", "signal", "ShapeHostToDevice", "DeviceToShapeHost", "NoOp", "Constant", "ShapeShuffle"),
        *("allocate", "deallocate"),  # memory for what has no largest size before the run
    }
)
_OPAQUE = frozenset({"Myelin"})  # a whole part of the graph in one record of 8.5 and 8.6; its kernels are not shown
_PRODUCT_KINDS = re.compile(r"conv|correlation|gemm|matmul|matrix|fully|mha|runtime_fusion|^fc$", re.IGNORECASE)
_FUSED_ATTENTION = re.compile(r"_f?mha", re.IGNORECASE)  # "_gemm_mha_v2_myl1_27", of the kind "kgen"
# TensorRT's own names list what a kernel does, four letters each: "__myl_ReshTranReshMove_myl1_25". Long lists end in "Etc".
_OPERATIONS = re.compile(r"^__myl_([A-Za-z]+)_myl\d+_\d+$")
_MOVES = frozenset({"Move", "Resh", "Tran", "Slic", "Conc", "Repl", "Gath", "Expa", "Pad"})
_CAST = "Cast"
_MULTIPLIES = frozenset({"Fc", "Gemm", "Conv", "Dot"})
_MOVING_KINDS = frozenset({"Shuffle", "Slice", "Concat", "Gather", "Reformat"})
_BYTES = {"fp32": 4, "int32": 4, "fp16": 2, "bf16": 2, "int64": 8, "fp8": 1, "int8": 1, "uint8": 1, "bool": 1}


@dataclass(frozen=True)
class KernelReport:
    """What one profile of an engine runs."""

    records: int  # all that TensorRT lists, steps of the CPU included
    kernels: int  # what is launched on the GPU
    by_kind: Mapping[str, int]  # records by TensorRT's LayerType
    products: int  # convolutions and matrix products of the graph
    attentions: int  # attentions of the graph: a product, a softmax, a product
    fused_attentions: int  # attentions that one kernel computes
    fp32: int  # kernels that compute, and read and write no other float type than fp32
    casts: int  # kernels that only change types
    copies: int  # kernels that only move, transpose, slice or repeat
    weight_bytes: int  # of all weights that the kernels read; 0 when the records do not show them
    plan_bytes: int | None  # of the engine with all profiles; None: not given

    def summary(self) -> str:
        """For people."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.by_kind.items(), key=lambda item: -item[1]))
        lines = [
            f"{self.kernels} kernels ({self.records} records: {kinds})",
            f"{self.fused_attentions} of {self.attentions} attentions are one kernel each; "
            f"{self.fp32} kernels in fp32, {self.casts} casts, {self.copies} copies",
        ]
        plan = "" if self.plan_bytes is None else f", plan {self.plan_bytes / 1e6:.1f} MB"
        return "\n".join([*lines, f"weights {self.weight_bytes / 1e6:.1f} MB{plan}"])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "by_kind": dict(self.by_kind)}


def kernel_report(
    kernels: Iterable[Kernel], model: onnx.ModelProto, profile: int = 0, plan_bytes: int | None = None
) -> KernelReport:
    """Counts the kernels of one profile.

    Args:
        kernels: from `kernels_of_log` or `kernels_of_inspector`, of any profiles.
        model: the graph that was compiled.
        profile: which of the engine's profiles is counted.
        plan_bytes: size of the engine file.
    """
    own = [kernel for kernel in kernels if kernel.profile in (profile, None)]
    launched = [kernel for kernel in own if is_kernel(kernel)]
    moving = [_moves(kernel) for kernel in launched]
    attentions = attentions_of(model)
    weights = {tensor.name: tensor for kernel in own for tensor in kernel.constants}
    return KernelReport(
        records=len(own),
        kernels=len(launched),
        by_kind=dict(Counter(kernel.kind for kernel in own)),
        products=sum(node.op_type in PRODUCTS for node in model.graph.node),
        attentions=len(attentions),
        fused_attentions=len(fused(attentions, launched)),
        fp32=sum(what is None and _only_fp32(kernel) for kernel, what in zip(launched, moving, strict=True)),
        casts=moving.count("cast"),
        copies=moving.count("copy"),
        weight_bytes=sum(
            math.prod(tensor.shape) * _BYTES.get(tensor.dtype or "", 0)
            for tensor in weights.values()
            if tensor.shape is not None
        ),
        plan_bytes=plan_bytes,
    )


def is_kernel(kernel: Kernel) -> bool:
    """Whether a record is something that runs on the GPU."""
    return kernel.kind not in _NOT_KERNELS


def computes_products(kernel: Kernel) -> bool:
    """Whether a kernel multiplies matrices or convolves; others name such nodes when they prepare their inputs."""
    if is_opaque(kernel):
        return False
    kind = _PRODUCT_KINDS.search(kernel.kind) is not None
    return kind or fuses_attention(kernel) or not _MULTIPLIES.isdisjoint(_operations(kernel))


def fuses_attention(kernel: Kernel) -> bool:
    """Whether a kernel is TensorRT's fused attention: both products and the softmax between them."""
    return any(map(_FUSED_ATTENTION.search, (kernel.name, kernel.tactic, f"_{kernel.kind}")))


def is_opaque(kernel: Kernel) -> bool:
    """Whether a record stands for a whole part of the graph, whose kernels are not shown."""
    return kernel.kind in _OPAQUE


def attentions_of(model: onnx.ModelProto) -> list[tuple[str, ...]]:
    """The attentions of a graph: the names of each one's product of queries and keys, softmax and product with the values.

    An `Attention` node is one of its own. A softmax that no product follows, such as that of a mask head, is none.
    """
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    found: list[tuple[str, ...]] = []
    for node in graph.node:
        if node.op_type == "Attention":
            found.append((node_name(node),))
        if node.op_type == "Softmax":
            before = _nearest_product(node, lambda node: [makers[name] for name in node.input if name in makers])
            after = _nearest_product(node, lambda node: [user for name in node.output for user in users.get(name, ())])
            if before is not None and after is not None:
                found.append((node_name(before), node_name(node), node_name(after)))
    return found


def fused(attentions: Sequence[Collection[str]], kernels: Iterable[Kernel]) -> list[Collection[str]]:
    """The attentions that one kernel computes: it has all of their nodes, or is named so where there is only one node."""
    shown = [(set(kernel.nodes), fuses_attention(kernel)) for kernel in kernels if not is_opaque(kernel)]
    return [
        attention
        for attention in attentions
        if any(nodes.issuperset(attention) and (named or len(attention) > 1) for nodes, named in shown)
    ]


def node_name(node: onnx.NodeProto) -> str:
    """What TensorRT's parser calls a node: by its name, or after its first output if it has none."""
    return node.name or f"node_of_{next(iter(node.output), '')}"


def _nearest_product(
    start: onnx.NodeProto, neighbours: Callable[[onnx.NodeProto], list[onnx.NodeProto]]
) -> onnx.NodeProto | None:
    """The matrix product that is the fewest nodes away; the search does not pass through products."""
    seen: set[str] = set()
    waiting = deque(neighbours(start))
    while waiting:
        node = waiting.popleft()
        if node_name(node) in seen:
            continue
        seen.add(node_name(node))
        if node.op_type in ("MatMul", "Gemm", "Einsum"):
            return node
        if node.op_type not in PRODUCTS:
            waiting.extend(neighbours(node))
    return None


def _operations(kernel: Kernel) -> list[str]:
    """What a kernel does, in TensorRT's short words; empty where its name does not tell."""
    listed = _OPERATIONS.match(kernel.name)
    return re.findall("[A-Z][a-z0-9]*", listed[1]) if listed else []


def _moves(kernel: Kernel) -> str | None:
    """ "copy" or "cast" for a kernel that computes nothing else."""
    words = set(_operations(kernel))
    if kernel.kind not in _MOVING_KINDS and kernel.kind != _CAST and not (words and words <= _MOVES | {_CAST}):
        return None
    shown = [{tensor.dtype for tensor in tensors} for tensors in (kernel.inputs, kernel.outputs)]
    changes = all(shown) and shown[0].isdisjoint(shown[1]) and None not in shown[0] | shown[1]
    return "cast" if _CAST in words or kernel.kind == _CAST or changes else "copy"


def _only_fp32(kernel: Kernel) -> bool:
    floats = {tensor.dtype for tensor in (*kernel.inputs, *kernel.outputs) if tensor.dtype in FLOATS}
    return floats == {"fp32"}
