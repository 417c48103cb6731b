"""How large the values of a graph become on pictures. One picture's samples are in memory at a time."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from detr_export.graphs.int8.histograms import Histogram
from detr_export.runtimes.backends.ort.library import onnxruntime
from detr_export.runtimes.errors import BackendError, VerificationError, first_line

Feeds = Mapping[str, np.ndarray]  # a graph's inputs, by name
_SAMPLES = 1 << 16  # about so many values of each tensor go into its histogram, for each picture
_PREFIX = "watched"


def watch(model: onnx.ModelProto, tensors: Collection[str], feeds: Iterable[Feeds]) -> dict[str, Histogram]:
    """Runs a graph, and collects how large some of its tensors become.

    Args:
        model: any graph of floats.
        tensors: names of float values in it, in float32 or float16.
        feeds: what it is run on, once through; only one is held at a time.

    Raises:
        VerificationError: a value is not finite.
        BackendError: ONNX Runtime cannot run the graph.
    """
    names = list(dict.fromkeys(tensors))
    session = open_graph(_watching(model, names))
    outputs = [f"{_PREFIX}_{kind}_{index}" for index in range(len(names)) for kind in ("low", "high", "sum", "samples")]
    histograms = {name: Histogram() for name in names}
    for given in feeds:
        values = run_graph(session, outputs, given)
        for index, name in enumerate(names):
            low, high, total, samples = values[4 * index : 4 * index + 4]
            if not np.isfinite([low, high, total]).all():
                raise VerificationError(
                    f"the value {name!r} is not finite on a calibration picture; the checkpoint or the picture is damaged"
                )
            histograms[name].add(samples, float(max(-low, high)))
    return histograms


def open_graph(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A graph in ONNX Runtime on the CPU.

    Raises:
        BackendError: it cannot be opened.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.x64quantprecision", "1")  # as `OrtSession` does
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        raise BackendError(f"ONNX Runtime cannot open the graph: {first_line(error)}") from error


def run_graph(session: onnxruntime.InferenceSession, outputs: list[str], feeds: Feeds) -> list[np.ndarray]:
    """The outputs for one feed.

    Raises:
        BackendError: the run failed.
    """
    try:
        found: list[np.ndarray] = session.run(outputs, dict(feeds))
    except Exception as error:
        raise BackendError(f"ONNX Runtime failed: {first_line(error)}") from error
    return found


def _watching(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy with four more outputs for each name: the smallest and largest value, the sum, and samples.

    A sum is finite only if all its values are. ONNX Runtime's minimum and maximum may drop a NaN.
    """
    twin = copy.deepcopy(model)
    graph = twin.graph
    constants = {"all": [-1], "one": 1, "two": 2, "first": [0], "end": [np.iinfo(np.int64).max], "some": _SAMPLES}
    for key, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.int64), f"{_PREFIX}_{key}"))

    def constant(key: str) -> str:
        return f"{_PREFIX}_{key}"

    for index, name in enumerate(names):

        def made(what: str, index: int = index) -> str:
            return f"{_PREFIX}_{what}_{index}"

        graph.node.extend(
            [
                helper.make_node("Cast", [name], [made("float")], to=TensorProto.FLOAT),
                helper.make_node("Reshape", [made("float"), constant("all")], [made("flat")]),
                helper.make_node("ReduceMin", [made("flat")], [made("low")], keepdims=0),
                helper.make_node("ReduceMax", [made("flat")], [made("high")], keepdims=0),
                helper.make_node("ReduceSum", [made("flat")], [made("sum")], keepdims=0),
                # Every n-th value; n is odd, so that the samples do not stand in one column.
                helper.make_node("Size", [name], [made("size")]),
                helper.make_node("Div", [made("size"), constant("some")], [made("share")]),
                helper.make_node("Mod", [made("share"), constant("two")], [made("odd")]),
                helper.make_node("Sub", [constant("one"), made("odd")], [made("even")]),
                helper.make_node("Add", [made("share"), made("even")], [made("scalar_step")]),
                helper.make_node("Reshape", [made("scalar_step"), constant("all")], [made("step")]),
                helper.make_node(
                    "Slice",
                    [made("flat"), constant("first"), constant("end"), constant("first"), made("step")],
                    [made("samples")],
                ),
            ]
        )
        for kind, shape in (("low", []), ("high", []), ("sum", []), ("samples", [None])):
            graph.output.append(helper.make_tensor_value_info(made(kind), TensorProto.FLOAT, shape))
    return twin
