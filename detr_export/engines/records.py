"""What TensorRT says of the kernels that it compiled, from the builder's log and from the engine inspector, in one form.

At detailed profiling verbosity the builder of TensorRT 11 and TensorRT-RTX logs one line a kernel:
`Name: A, LayerType: B, Inputs: [ { Name: x, Dimensions: [1,8], ..., Datatype: Half, ... }], ..., Metadata: [ONNX Layer: n]`.
10 writes `Format/Datatype: Half` in place of `Datatype: Half, Format: ...`. The inspector gives the same fields as JSON.
Convolutions of 8.5 to 10 show `Weights` instead of `Constants`, and may write whole sentences, such as "Channel major FP16
format where channel % 8 == 0". Without an execution context whose shapes are set, these read "N/A due to dynamic shapes".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

# What begins a value. A name may hold a comma or a bracket, so a line is cut only where one of these follows.
_FIELDS = re.compile(
    r", (?=(?:LayerType|Inputs|Constants|Outputs|Weights|Bias|ParameterType|TacticName|TacticValue|StreamId|Metadata): ?)"
)
_TENSOR_FIELDS = re.compile(r", (?=(?:Location|Dimensions|Strides|StrideOrder|Datatype|Format|Format/Datatype): )")
_TENSOR = re.compile(r"\{ (Name: .*?)\}(?=, \{ Name: |\]\s*$)")
_WEIGHTS = re.compile(r'"Type": "(?P<Type>\w+)", "Count": (?P<Count>\d+)')
# The first that a text shows. "Half" and "Float" are also the last words of layouts, so numbers come first.
_DTYPES = (
    ("uint8", re.compile(r"uint8", re.IGNORECASE)),
    ("int8", re.compile(r"int8", re.IGNORECASE)),
    ("int32", re.compile(r"int32", re.IGNORECASE)),
    ("int64", re.compile(r"int64", re.IGNORECASE)),
    ("bool", re.compile(r"\bbool", re.IGNORECASE)),
    ("fp8", re.compile(r"\bfp8|float8|e4m3|e5m2", re.IGNORECASE)),
    ("bf16", re.compile(r"\bbf16|bfloat", re.IGNORECASE)),
    ("fp16", re.compile(r"\bfp16|\bhalf|float16", re.IGNORECASE)),
    ("fp32", re.compile(r"\bfp32|\bfloat(32)?\b", re.IGNORECASE)),
)
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\s*(?:\[ONNX Layer: |$))")
_SEPARATORS = re.compile("[\x1e\x1f]")  # stand between the nodes of a convolution in 8.6 and 10
_PROFILE = re.compile(r" \[profile (\d+)\]")
# Graphs of the compiler inside TensorRT are numbered; so are the kernels of each.
_GRAPH = re.compile(r"_myl(\d+)_\d+$")


@dataclass(frozen=True)
class RecordTensor:
    """What a kernel reads or writes."""

    name: str
    dtype: str | None  # fp32, fp16, bf16, fp8, int8, uint8, int32, int64 or bool; None: not shown
    shape: tuple[int, ...] | None  # -1 for a dimension that varies; None: not shown


@dataclass(frozen=True)
class Kernel:
    """One record: a kernel, or a step that the CPU takes, such as a computation of shapes."""

    name: str
    kind: str  # TensorRT's LayerType
    inputs: tuple[RecordTensor, ...]
    constants: tuple[RecordTensor, ...]  # weights, biases and scales
    outputs: tuple[RecordTensor, ...]
    nodes: tuple[str, ...]  # names of the ONNX nodes that it computes a part of, in TensorRT's order
    tactic: str  # name of the implementation; its number where it has no name; may be empty
    profile: int | None  # number of the optimization profile that it was compiled for; None: not shown


def kernels_of_log(messages: Iterable[str]) -> list[Kernel]:
    """The records in a log of the builder, of all profiles. A log without records gives an empty list.

    A line that was cut before its outputs is left out: which precision it has cannot be said.

    Args:
        messages: of the builder, in order; a message may hold many lines, and other text before a record.
    """
    found = []
    for message in messages:
        for line in message.split("\n"):  # not splitlines, which also cuts at the separators of nodes
            start = line.find("Name: ")
            if start >= 0 and ", LayerType: " in line:
                fields = _split(line[start:], _FIELDS)
                if "Outputs" in fields:
                    found.append(_kernel({**fields, **{key: _tensor_fields(fields.get(key, "")) for key in _LISTS}}))
    return _with_profiles(found)


def kernels_of_inspector(layers: Sequence[Any], profile: int | None = None) -> list[Kernel]:
    """The records in the inspector's "Layers". A layer of which only the name is there gives none.

    Args:
        layers: dicts, or names where the engine was built without details.
        profile: number of the profile that the inspector was asked about. Layers that say that they are of another one are
            left out. None keeps all.
    """
    found = _with_profiles([_kernel(layer) for layer in layers if isinstance(layer, Mapping)])
    if profile is None:
        return found
    if not any(kernel.profile for kernel in found):  # nothing tells profiles apart, so this is the one that was asked about
        return [replace(kernel, profile=profile) for kernel in found]
    return [kernel for kernel in found if kernel.profile == profile]


_LISTS = ("Inputs", "Constants", "Outputs")


def dtype_of(text: str) -> str | None:
    """TensorRT's word for a type, or its sentence on a format, as one of `RecordTensor.dtype`; None if it shows none."""
    return next((name for name, words in _DTYPES if words.search(text)), None)


def _split(text: str, fields: re.Pattern[str]) -> dict[str, str]:
    pairs = (part.partition(":") for part in fields.split(text))
    return {key: value.strip() for key, _, value in pairs}


def _tensor_fields(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for written in _TENSOR.findall(text):
        fields: dict[str, Any] = _split(written, _TENSOR_FIELDS)
        if "Dimensions" in fields:
            fields["Dimensions"] = [int(size) for size in re.findall(r"-?\d+", fields["Dimensions"])]
        found.append(fields)
    return found


def _kernel(layer: Mapping[str, Any]) -> Kernel:
    """From the fields of a record; the profile is not known yet, and marks of profiles are still in the names."""
    name, kind = str(layer.get("Name", "")), str(layer.get("LayerType", ""))
    inputs, constants, outputs = (tuple(map(_tensor, _dicts(layer.get(key)))) for key in _LISTS)
    tactic = str(layer.get("TacticName") or layer.get("TacticValue") or "")
    weights = tuple(_weights(layer))
    nodes = _nodes_of_name(name, kind) if layer.get("Metadata") is None else _nodes_of_metadata(str(layer["Metadata"]))
    return Kernel(name, kind, inputs, (*constants, *weights), outputs, tuple(dict.fromkeys(nodes)), tactic, None)


def _dicts(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, (list, tuple)) else []


def _tensor(fields: Mapping[str, Any]) -> RecordTensor:
    text = next((str(fields[key]) for key in ("Datatype", "Format/Datatype", "Format") if fields.get(key)), "")
    dimensions = fields.get("Dimensions")
    shape = tuple(map(int, dimensions)) if isinstance(dimensions, (list, tuple)) else None
    return RecordTensor(str(fields.get("Name", "")), dtype_of(text), shape)


def _weights(layer: Mapping[str, Any]) -> Iterator[RecordTensor]:
    """The weights and the bias of a convolution of 8.5 to 10: their type and number, without a shape."""
    for key in ("Weights", "Bias"):
        value = layer.get(key)
        if isinstance(value, str):
            shown = _WEIGHTS.search(value)
            value = shown.groupdict() if shown else None
        if isinstance(value, Mapping) and int(value.get("Count") or 0):
            yield RecordTensor(f"{layer.get('Name')} {key}", dtype_of(str(value.get("Type", ""))), (int(value["Count"]),))


def _nodes_of_metadata(text: str) -> list[str]:
    return [node for part in _SEPARATORS.split(text) for node in _NODE.findall(part)]


def _nodes_of_name(name: str, kind: str) -> list[str]:
    """8.5 has no metadata, and joins its nodes in the layer's name."""
    plain = _PROFILE.sub("", name)
    if kind == "Reformat" or plain.startswith(("__", "{")):  # the name tells where a copy goes, or was made up by TensorRT
        return []
    return _GRAPH.sub("", plain).split("+") if _GRAPH.search(plain) else plain.split(" + ")


def _with_profiles(kernels: list[Kernel]) -> list[Kernel]:
    """Finds out each kernel's profile, and takes the marks of profiles out of the names.

    TensorRT marks the names of what belongs to a later profile with "[profile 1]". Names of its own making have no mark, so
    a kernel of a graph (`_myl3_17` is kernel 17 of graph 3) takes the mark of any other kernel or tensor of that graph.
    """
    own = [_mark(kernel) for kernel in kernels]
    graphs = [_GRAPH.search(kernel.name) for kernel in kernels]
    by_graph = {graph[1]: mark for graph, mark in zip(graphs, own, strict=True) if graph is not None and mark is not None}
    found = []
    for kernel, graph, mark in zip(kernels, graphs, own, strict=True):
        if mark is None and graph is not None:
            mark = by_graph.get(graph[1])
        found.append(_unmarked(kernel, mark or 0))
    return found


def _mark(kernel: Kernel) -> int | None:
    texts = (kernel.name, *(tensor.name for tensor in (*kernel.inputs, *kernel.constants, *kernel.outputs)))
    shown = next(filter(None, map(_PROFILE.search, texts)), None)
    return int(shown[1]) if shown is not None else None


def _unmarked(kernel: Kernel, profile: int) -> Kernel:
    if profile == 0:
        return replace(kernel, profile=0)

    def plain(tensors: tuple[RecordTensor, ...]) -> tuple[RecordTensor, ...]:
        return tuple(replace(tensor, name=_PROFILE.sub("", tensor.name)) for tensor in tensors)

    return Kernel(
        _PROFILE.sub("", kernel.name),
        kernel.kind,
        plain(kernel.inputs),
        plain(kernel.constants),
        plain(kernel.outputs),
        tuple(_PROFILE.sub("", node) for node in kernel.nodes),
        kernel.tactic,
        profile,
    )
