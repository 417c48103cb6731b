"""Where the time of a run goes: by operator and by part of the model, as ONNX Runtime's own profiler measures it.

Why: the share of each part says what is worth making faster, and where another size or batch will hurt.

What: a few runs are profiled after a warm-up, with ONNX Runtime's usual optimisations. So the operators are those that it
really runs, among them merged ones (`FusedConv`, `SkipLayerNormalization`) and its own changes of layout (`ReorderInput`).
The parts of such a graph are found through the tensors that it still shares with the file. The times are those of the nodes.
The time between two nodes, and the profiler's own cost, are not in them.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from detr_export.benchmarks.cost.parts import PARTS, parts_of, parts_of_optimized
from detr_export.graphs.reading import load_graph
from detr_export.runtimes.backends.ort.library import onnxruntime
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.described import processor_of
from detr_export.runtimes.errors import ArtifactError, BackendError, InputError, first_line
from detr_export.runtimes.mask_head import TwoGraphSession, require_mask_head
from detr_export.runtimes.processing.sizes import as_size, output_size
from detr_export.runtimes.session import Session, check_inputs, is_end_to_end
from detr_export.runtimes.temporary import temporary_folder
from detr_export.verification.cases import Case, make_images, make_inputs

_WARM_UP_RUNS = 2
_NODE_SUFFIX = "_kernel_time"
_ERRORS_ONLY = 3  # onnxruntime's log severity


def profile_ort(
    path: Path, height: int, width: int, batch: int, threads: int, runs: int = 3, of_picture: bool = False
) -> dict[str, Any]:
    """Profiles an ONNX file on the CPU, with the masks of all queries.

    (On a GPU the profiler measures the launches of the kernels, not the kernels.)

    Args:
        path: a DETR that takes batches of this size.
        height, width: of the batch, in pixels.
        batch: images, without padding.
        threads: of one run.
        runs: how many runs are profiled, after a warm-up that is left out.
        of_picture: whether the size is that of the pictures; a plain file then runs at the size that they are resized to.
            An end-to-end file always takes the pictures.

    Returns:
        `variant` (the file's name), `height`, `width`, `batch`;
        `operators`, the longest first: `operator`, `calls` and `total_ms` of one run (the mean of all), and its `share`;
        `parts`: the share of each of `parts.PARTS`. "other" is what belongs to no known part.

    Raises:
        ArtifactError: the file is missing, damaged or not a DETR.
        InputError: the file does not take this size, or an argument is not positive.
        BackendError: ONNX Runtime failed.
    """
    for name, count in (("height", height), ("width", width), ("batch", batch), ("threads", threads), ("runs", runs)):
        if count < 1:
            raise InputError(f"{name} is {count}; expected at least 1")
    events: list[Mapping[str, Any]] = []
    parts: dict[str, str] = {}
    with temporary_folder() as folder, contextlib.ExitStack() as stack:
        graphs = [stack.enter_context(_ProfiledGraph(path, folder / "model", threads))]
        inputs = _inputs(path, graphs[0], (height, width, batch), of_picture)
        session: Session = graphs[0]
        if session.metadata is not None and session.metadata.mask_head is not None:
            beside = require_mask_head(path, session.metadata.mask_head)
            graphs.append(stack.enter_context(_ProfiledGraph(beside, folder / "mask_head", threads)))
            session = TwoGraphSession(*graphs)
        for _ in range(_WARM_UP_RUNS + runs):
            session.run(inputs)
        for graph in graphs:
            found, named = graph.end()
            turns = len(_starts(found)) // (_WARM_UP_RUNS + runs)  # a mask head runs for some queries at a time
            events += node_events(found, _WARM_UP_RUNS * turns)
            parts |= named
    return {
        "variant": path.name,
        "height": height,
        "width": width,
        "batch": batch,
        **summarize(events, parts, runs),
    }


def node_events(events: Iterable[Mapping[str, Any]], warm_up_runs: int) -> list[Mapping[str, Any]]:
    """The nodes' events of all runs except the warm-up.

    Args:
        events: of ONNX Runtime's profile, in which `ts` and `dur` are microseconds.
        warm_up_runs: how many runs to leave out.

    Raises:
        BackendError: there are no later runs.
    """
    events = list(events)
    starts = _starts(events)
    if len(starts) <= warm_up_runs:
        raise BackendError(f"ONNX Runtime's profile holds {len(starts)} runs; expected more than {warm_up_runs}")
    begin = starts[warm_up_runs]
    return [
        event for event in events if event["cat"] == "Node" and event["name"].endswith(_NODE_SUFFIX) and event["ts"] >= begin
    ]


def summarize(events: Sequence[Mapping[str, Any]], parts: Mapping[str, str], runs: int) -> dict[str, Any]:
    """`operators` and `parts` of `profile_ort`.

    Args:
        events: the nodes' events of all runs.
        parts: the part of each node by its name; a node that is missing is "other".
        runs: how many runs there were.
    """
    calls: Counter[str] = Counter()
    by_operator: Counter[str] = Counter()
    by_part: Counter[str] = Counter()
    for event in events:
        operator, name = event["args"]["op_name"], event["name"].removesuffix(_NODE_SUFFIX)
        calls[operator] += 1
        by_operator[operator] += event["dur"]
        by_part[parts.get(name, "other")] += event["dur"]
    total = max(1, by_operator.total())  # every node may have taken less than a microsecond
    return {
        "operators": [
            {
                "operator": operator,
                "calls": round(calls[operator] / runs),
                "total_ms": microseconds / 1e3 / runs,
                "share": microseconds / total,
            }
            for operator, microseconds in by_operator.most_common()
        ],
        "parts": {part: by_part[part] / total for part in PARTS},
    }


def _name_nodes(graph: onnx.GraphProto, events: Iterable[Mapping[str, Any]]) -> None:
    """Gives nodes without a name the ones that the profile has for them. They run in the order of the graph.

    (ONNX Runtime writes a few operators as functions, such as Relu in fp16, and puts nodes without names in their place.)
    """
    known = {node.name for node in graph.node}
    ran: dict[str, dict[str, None]] = {}
    for event in node_events(events, 0):
        name = event["name"].removesuffix(_NODE_SUFFIX)
        if name not in known:
            ran.setdefault(event["args"]["op_name"], {})[name] = None
    names = {operator: iter(found) for operator, found in ran.items()}
    for node in graph.node:
        if not node.name:
            node.name = next(names.get(node.op_type, iter(())), "")


def _starts(events: Iterable[Mapping[str, Any]]) -> list[float]:
    """When each run began, microseconds."""
    return sorted(event["ts"] for event in events if event["cat"] == "Session" and event["name"] == "model_run")


def _inputs(path: Path, session: Session, size: tuple[int, int, int], of_picture: bool) -> dict[str, np.ndarray]:
    """What the file, which is open, is run on."""
    height, width, batch = size
    pixels = next((spec for spec in session.inputs if spec.name == "pixel_values"), None)
    if not is_end_to_end(session) and of_picture and session.metadata is not None:
        height, width = output_size(height, width, as_size(processor_of(session.metadata).size))
    case = Case(height, width, ((height, width),) * batch)
    if is_end_to_end(session):
        inputs = {"image": make_images(case, seed=0)["pixel_values"]}
    elif pixels is not None and pixels.dtype == "uint8":
        inputs = make_images(case, seed=0)
    elif pixels is not None and isinstance(pixels.shape[1], int):
        inputs = make_inputs(case, pixels.shape[1], pixel_mask=True, seed=0)
    else:
        raise ArtifactError(f"{path} is not a DETR: it has no input pixel_values; give a file of detr-export onnx")
    inputs = {spec.name: inputs[spec.name] for spec in session.inputs if spec.name in inputs}
    check_inputs(session.inputs, inputs, session.metadata)
    return inputs


class _ProfiledGraph(Session):
    """An ONNX file under ONNX Runtime's profiler.

    Args:
        path: the file.
        folder: for the profile, and for the graph as it was run; it is made.
        threads: of one run.
    """

    def __init__(self, path: Path, folder: Path, threads: int) -> None:
        # The project's own session comes first: its checks say better than ONNX Runtime's what a file takes.
        with OrtSession(path, threads=threads) as described:
            self.inputs, self.outputs, self.metadata = described.inputs, described.outputs, described.metadata
        folder.mkdir()
        self._path, self._folder = path, folder
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        with _reporting():
            self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [spec.name for spec in self.outputs]
        with _reporting():
            return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))

    def end(self) -> tuple[list[Mapping[str, Any]], dict[str, str]]:
        """Its events, and the part of each of its nodes. Names begin with the folder's, so that graphs can be told apart."""
        with _reporting():
            events = json.loads(Path(self._session.end_profiling()).read_text())
        optimized = _graph(self._folder / "optimized.onnx")
        _name_nodes(optimized, events)
        parts = parts_of_optimized(optimized, parts_of(_graph(self._path)))
        mine = f"{self._folder.name}/"
        named = [{**event, "name": mine + event["name"]} if event["cat"] == "Node" else event for event in events]
        return named, {mine + name: part for name, part in parts.items()}

    def close(self) -> None:
        self._session = None


@contextlib.contextmanager
def _reporting() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime's own exceptions share no base class but Exception
        raise BackendError(f"ONNX Runtime failed under its profiler: {first_line(error)}") from error


def _graph(path: Path) -> onnx.GraphProto:
    return load_graph(path, weights=False).graph
