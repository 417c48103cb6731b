"""Does an engine compute in the precision that was asked for? Its kernels are compared with the graph they come from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto

from detr_export.engines.kernels import (
    FLOATS,
    computes_products,
    fuses_attention,
    is_opaque,
    node_name,
)
from detr_export.engines.records import Kernel, RecordTensor
from detr_export.graphs.fp16.islands import PRODUCTS
from detr_export.graphs.modules import module_of
from detr_export.runtimes.errors import ArtifactError, AttestationError

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_ELEMENT_TYPES: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
# Values that were just cast from a short type, multiplied in fp32. TensorRT may then read the short values and sum in fp32.
# That gives the same numbers: the product of two fp16 values fits into fp32.
_WIDENED = {"fp16": "fp16-in-fp32", "bf16": "bf16-in-fp32"}
_LOWEST_FIRST = ("int8", *FLOATS)  # a quantised layer may read several types
_NAMED = 3  # how many kernels an error message names


@dataclass(frozen=True)
class NodePrecision:
    """What a convolution or a product of the graph computes in."""

    precision: (
        str  # fp32, fp16, bf16, int8, fp8; fp16-in-fp32 or bf16-in-fp32: fp32, of values just cast from the short type
    )
    convolution: bool
    module: str | None = None  # the PyTorch module that it comes from, if the graph says so


@dataclass(frozen=True)
class Attestation:
    """In which precision the kernels of all profiles compute.

    The keys of the three counts are precisions as in `NodePrecision`. A kernel whose precision is not shown is in none.
    """

    convolutions: Mapping[str, int]
    products: Mapping[str, int]  # matrix products; several that were merged into one kernel count once
    attentions: Mapping[str, int]  # fused ones
    profiles: int  # how many optimization profiles the records are of
    total: int  # convolutions and products of the graph
    unattested: tuple[str, ...]  # names of those that at least one profile does not show: neither passed nor failed

    @property
    def attested(self) -> int:
        """How many of the graph's convolutions and products were seen, in the right precision, in every profile."""
        return self.total - len(self.unattested)

    @property
    def layers(self) -> dict[str, int]:
        """How many kernels compute in each precision."""
        return dict(Counter(self.convolutions) + Counter(self.products) + Counter(self.attentions))

    def summary(self) -> str:
        """For people."""
        if not self.attested:
            return "precision unattested: TensorRT does not show it"
        counts = ", ".join(f"{count} in {name}" for name, count in sorted(self.layers.items()))
        rest = f", {len(self.unattested)} unattested" if self.unattested else ""
        return f"{self.attested} of {self.total} products attested{rest}; kernels: {counts}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        counts = {name: dict(getattr(self, name)) for name in ("convolutions", "products", "attentions")}
        return {**counts, "profiles": self.profiles, "total": self.total, "attested": self.attested}


def graph_precision(model: onnx.ModelProto) -> str:
    """What a graph computes in: "int8" when it holds QuantizeLinear nodes, else the lowest precision of its products.

    The lowest, not the most frequent: an fp16 graph whose transformer stays fp32 has more fp32 products than fp16 ones.

    Raises:
        ArtifactError: the graph has no convolution and no product.
    """
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return "int8"
    found = {node.precision.removesuffix("-in-fp32") for node in node_precisions(model).values()}
    if not found:
        raise ArtifactError("the graph holds no convolution and no matrix product, so it is not a DETR")
    return next(name for name in ("fp16", "bf16", "fp32") if name in found)


def node_precisions(model: onnx.ModelProto) -> dict[str, NodePrecision]:
    """The precision of each convolution and product, by TensorRT's name for the node.

    It is int8 or fp8 where the node's input was just dequantised.
    """
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        types[value.name] = value.type.tensor_type.elem_type
    makers = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for node in model.graph.node:
        if node.op_type in PRODUCTS or node.op_type == "Attention":
            precision = _node_precision(node, types, makers)
            if precision is not None:
                found[node_name(node)] = NodePrecision(precision, node.op_type in _CONVOLUTIONS, module_of(node))
    return found


def attest(kernels: Iterable[Kernel], nodes: Mapping[str, NodePrecision]) -> Attestation:
    """Compares an engine's kernels with the graph's nodes.

    A kernel of several products has to suit all of them. A product that no kernel shows the precision of is unattested:
    TensorRT computed it while building, hides it in a part of the graph of its own, or says "N/A". When that holds for
    all products, the result says `attested == 0`, and the caller decides what that means.

    Args:
        kernels: of all profiles, from `kernels_of_inspector` or `kernels_of_log`.
        nodes: from `node_precisions`.

    Raises:
        AttestationError: a kernel computes in a precision that one of its nodes does not have; or no kernel computes; or
            precisions are shown, and the graph's lower ones are not among them.
    """
    # What each kernel that multiplies computes in.
    kernels = list(kernels)
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("convolutions", "products", "attentions")}
    seen: set[tuple[int | None, str]] = set()
    possible = {"fp32", *(precision for node in nodes.values() for precision in _suiting(node.precision))}
    wrong, computing = [], 0
    for kernel in kernels:
        own = {name: nodes[name] for name in kernel.nodes if name in nodes}
        if not computes_products(kernel):
            computing += is_opaque(kernel)
            continue
        computing += 1
        shown = _kernel_precision(kernel)
        if shown is None:
            continue
        if not own and shown not in possible:
            wrong.append(f"{kernel.name} in {shown}, which no product of the graph is in")
            continue
        unsuited = {name: node for name, node in own.items() if shown not in _suiting(node.precision)}
        if unsuited:
            wrong.append(_describe(kernel, shown, unsuited))
            continue
        precision = shown if shown == "fp32" else _agreed(shown, own)
        counts[_what(kernel, own)][precision] += 1
        seen.update((kernel.profile, name) for name in own)

    # What that means.
    profiles = {kernel.profile for kernel in kernels}
    unattested = tuple(name for name in nodes if any((profile, name) not in seen for profile in profiles))
    result = Attestation(
        dict(counts["convolutions"]),
        dict(counts["products"]),
        dict(counts["attentions"]),
        len(profiles),
        len(nodes),
        unattested,
    )
    _require(result, wrong, computing, nodes)
    return result


def _require(result: Attestation, wrong: list[str], computing: int, nodes: Mapping[str, NodePrecision]) -> None:
    """Raises AttestationError for an engine that is not what was asked for, or does not tell."""
    shown = sum(result.layers.values())
    if wrong:
        raise AttestationError(
            f"the engine is not what was asked for: TensorRT runs {len(wrong)} of {shown + len(wrong)} computing kernels in "
            f"another precision than the graph's, such as {'; '.join(wrong[:_NAMED])}"
        )
    lower = {node.precision for node in nodes.values()} - {"fp32", *_WIDENED.values()}
    found = {name.removesuffix("-in-fp32") for name in result.layers}
    if not computing or (shown and lower and not lower & found):
        raise AttestationError(
            "the engine's precision cannot be attested: TensorRT's records show "
            f"{result.layers or 'no kernel that computes'}, and the graph has "
            f"{dict(Counter(node.precision for node in nodes.values()))}"
        )


def _node_precision(node: onnx.NodeProto, types: Mapping[str, int], makers: Mapping[str, onnx.NodeProto]) -> str | None:
    if _op_type(makers, node.input[0]) == "DequantizeLinear":
        quantised = types.get(makers[node.input[0]].input[0])
        return "fp8" if quantised == TensorProto.FLOAT8E4M3FN else "int8"
    precision = _ELEMENT_TYPES.get(types.get(node.output[0], 0))
    if precision == "fp32" and all(_op_type(makers, name) == "Cast" for name in node.input[:2]):
        sources = {_ELEMENT_TYPES.get(types.get(makers[name].input[0], 0)) for name in node.input[:2]}
        (source, *others) = sources
        return _WIDENED.get(source or "", precision) if not others else precision
    return precision


def _op_type(makers: Mapping[str, onnx.NodeProto], name: str) -> str | None:
    return makers[name].op_type if name in makers else None


def _kernel_precision(kernel: Kernel) -> str | None:
    """The type that a kernel multiplies; None when it is not shown.

    A fused sum or mask may add inputs of other types; then the weights decide, and without weights the lowest type.
    """
    read = _types(kernel.inputs)
    weights = _types(tensor for tensor in kernel.constants if math.prod(tensor.shape or ()) != 1)  # a factor is always fp32
    candidates = (read & weights or read) if len(read) > 1 else read or weights
    return next((name for name in _LOWEST_FIRST if name in candidates), None)


def _types(tensors: Iterable[RecordTensor]) -> set[str]:
    return {tensor.dtype for tensor in tensors if tensor.dtype in _LOWEST_FIRST}


def _suiting(precision: str) -> tuple[str, ...]:
    """What a kernel may show for a node of this precision."""
    short = precision.removesuffix("-in-fp32")
    return (precision,) if short == precision else (short, "fp32")


def _agreed(shown: str, own: Mapping[str, NodePrecision]) -> str:
    """The precision of a kernel that suits all of its nodes: it sums in fp32 where one of them asks for that."""
    widened = _WIDENED.get(shown)
    return widened if widened is not None and any(node.precision == widened for node in own.values()) else shown


def _what(kernel: Kernel, own: Mapping[str, NodePrecision]) -> str:
    if fuses_attention(kernel):
        return "attentions"
    if own:
        return "convolutions" if any(node.convolution for node in own.values()) else "products"
    return "convolutions" if "conv" in kernel.kind.lower() or kernel.kind == "correlation" else "products"


def _describe(kernel: Kernel, shown: str, unsuited: Mapping[str, NodePrecision]) -> str:
    """One kernel, for an error message: with modules of PyTorch where they are known, which say more than a node's name."""
    places = sorted({node.module or name for name, node in unsuited.items()})
    wanted = sorted({node.precision for node in unsuited.values()})
    where = "" if places == [kernel.name] else f" ({', '.join(places)})"
    return f"{kernel.name}{where} in {shown} instead of {' or '.join(wanted)}"
