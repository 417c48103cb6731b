"""Builds ONNX nodes from expressions: `height * 2 + 1` adds the nodes of that sum and stands for its result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import numpy as np
import onnx
from onnx import helper, numpy_helper

Operand = Union["Value", bool, int, float, Sequence[int], np.ndarray]
Attribute = Union[int, float, str, Sequence[int]]


class Value:
    """A tensor of the graph. Arithmetic with it adds nodes; Python's numbers become constants, int64 or float32."""

    def __init__(self, nodes: Nodes, name: str) -> None:
        self.nodes = nodes
        self.name = name

    def __add__(self, other: Operand) -> Value:
        return self.nodes.add("Add", self, other)

    def __sub__(self, other: Operand) -> Value:
        return self.nodes.add("Sub", self, other)

    def __rsub__(self, other: Operand) -> Value:
        return self.nodes.add("Sub", other, self)

    def __mul__(self, other: Operand) -> Value:
        return self.nodes.add("Mul", self, other)

    def __truediv__(self, other: Operand) -> Value:
        return self.nodes.add("Div", self, other)

    def __floordiv__(self, other: Operand) -> Value:
        """Of integers that are not negative, for which ONNX's Div rounds down."""
        return self.nodes.add("Div", self, other)

    def __rfloordiv__(self, other: Operand) -> Value:
        return self.nodes.add("Div", other, self)

    def __mod__(self, other: Operand) -> Value:
        return self.nodes.add("Mod", self, other)

    def __neg__(self) -> Value:
        return self.nodes.add("Neg", self)

    def equals(self, other: Operand) -> Value:
        """Whether values are equal; `==` keeps its meaning in Python."""
        return self.nodes.add("Equal", self, other)

    def __lt__(self, other: Operand) -> Value:
        return self.nodes.add("Less", self, other)

    def __gt__(self, other: Operand) -> Value:
        return self.nodes.add("Greater", self, other)

    def __ge__(self, other: Operand) -> Value:
        return self.nodes.add("GreaterOrEqual", self, other)

    def __and__(self, other: Operand) -> Value:
        return self.nodes.add("And", self, other)

    def __or__(self, other: Operand) -> Value:
        return self.nodes.add("Or", self, other)


class Nodes:
    """A list of nodes that grows, and the constants that they use.

    Args:
        prefix: begins the name of every node, tensor and constant, so that none meets a name of another graph.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def value(self, name: str) -> Value:
        """A tensor that another graph, or an input, gives."""
        return Value(self, name)

    def add(self, op_type: str, *operands: Operand | None, **attributes: Attribute) -> Value:
        """Adds a node with one output and returns that."""
        return self.add_many(op_type, 1, *operands, **attributes)[0]

    def add_many(self, op_type: str, outputs: int, *operands: Operand | None, **attributes: Attribute) -> list[Value]:
        """Adds a node with several outputs and returns them. None stands for an input that is left out."""
        name = f"{self._prefix}/{op_type}_{len(self.nodes)}"
        results = [f"{name}_output_{index}" for index in range(outputs)]
        inputs = ["" if operand is None else self.constant(operand).name for operand in operands]
        self.nodes.append(helper.make_node(op_type, inputs, results, name, **attributes))  # type: ignore[arg-type]
        return [Value(self, result) for result in results]

    def constant(self, operand: Operand) -> Value:
        """A constant."""
        return operand if isinstance(operand, Value) else Value(self, self._constant(operand))

    def where(self, condition: Value, then: Operand, otherwise: Operand) -> Value:
        """`then` where the condition holds, else `otherwise`."""
        return self.add("Where", condition, then, otherwise)

    def cast(self, value: Value, dtype: type) -> Value:
        """The value in another dtype, a type of numpy's."""
        return self.add("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def name_output(self, value: Value, name: str) -> None:
        """Adds an Identity that gives a tensor its name outside."""
        self.nodes.append(helper.make_node("Identity", [value.name], [name], f"{self._prefix}/{name}"))

    def _constant(self, operand: bool | int | float | Sequence[int] | np.ndarray) -> str:
        array = operand if isinstance(operand, np.ndarray) else np.array(operand)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = f"{self._prefix}/constant_{len(self._constants)}"
            self.initializers.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]
