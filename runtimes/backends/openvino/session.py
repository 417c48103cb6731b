"""Runs ONNX files with OpenVINO on the CPU.

It computes in float32, whatever the CPU could do: left alone, OpenVINO computes in bfloat16 on the CPUs that have it, and
says nothing. So is an fp16 file run: its values are stored in float16, as in ONNX Runtime on the CPU.
"""

from __future__ import annotations

import functools
import re
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import numpy as np

from detr_export.runtimes.backends.openvino.cache import compile_cached
from detr_export.runtimes.backends.openvino.header import Shape, read_header
from detr_export.runtimes.cpu import require_threads
from detr_export.runtimes.described import read_metadata
from detr_export.runtimes.devices import OPENVINO, parse_device
from detr_export.runtimes.errors import ArtifactError, BackendError, missing_extra
from detr_export.runtimes.external_data import require_external_data
from detr_export.runtimes.metadata import METADATA_KEY
from detr_export.runtimes.session import DTYPES, UNKNOWN, Session, TensorSpec

try:
    import openvino
except ImportError as error:
    raise missing_extra("openvino", "openvino") from error

_CPU = "CPU"  # OpenVINO's name of it
_PRECISION = "INFERENCE_PRECISION_HINT"
_SHORT_NAMES = {"float": "f", "uint": "u", "int": "i"}
_DTYPES = {re.sub("^(float|uint|int)", lambda kind: _SHORT_NAMES[kind[0]], name): name for name in DTYPES}  # by OpenVINO's
_DTYPES["boolean"] = _DTYPES.pop("bool")
_NOISE = ("Exception from ", "Check '", "FrontEnd API failed", "Summary:")  # how lines begin that say where, and not what


class OpenVinoSession(Session):
    """An ONNX file in OpenVINO on the CPU, in float32. Several threads may call `run` at the same time.

    Args:
        path: the ONNX file.
        device: `openvino`.
        threads: CPU threads of one run; None takes OpenVINO's default.
        cache: a folder for compiled models, from which a file opens faster the next time; see `compile_cached`.

    Raises:
        ArtifactError: the file is missing, damaged or not an ONNX model, or has an operator that OpenVINO does not read.
            OpenVINO reads an antialiased Resize, and was seen (2026.4) to ignore that it is one, so it is refused, too.
        BackendError: the device is another one.
        InputError: there are fewer cores than `threads`, or it is below 1.
        OutputError: the cache cannot be written to.
    """

    def __init__(
        self, path: str | Path, device: str = OPENVINO, threads: Optional[int] = None, cache: str | Path | None = None
    ) -> None:
        file = Path(path)
        require_external_data(file, "OpenVINO")
        parse_device(device).require((OPENVINO,), "OpenVINO")
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", _PRECISION: "f32"}
        require_threads(threads)
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads

        # What the file says of itself. This comes first: OpenVINO would try other formats on what is no ONNX file
        header = read_header(file)
        self.metadata = read_metadata(file, header.properties.get(METADATA_KEY))
        if header.antialiased:
            raise ArtifactError(
                f"{file} cannot be loaded by OpenVINO: it ignores the antialias of a Resize, so results would be wrong; "
                "export an end-to-end file with --resize matmul, or use device 'cpu'"
            )
        try:
            if cache is None:
                model = shared_core().compile_model(str(file), _CPU, settings)
            else:
                model = compile_cached(shared_core(), file, settings, cache)
        except RuntimeError as error:
            raise ArtifactError(f"{file} cannot be loaded by OpenVINO: {_reason(error)}") from error
        if model.get_property(_PRECISION) != openvino.Type.f32:
            raise BackendError(f"OpenVINO did not take float32 as its precision but {model.get_property(_PRECISION)}")

        # A tensor may have more names than the file's, so the file says which one is meant
        self.source = str(file)
        self._places = _places(model.inputs, header.inputs)
        self._results = _places(model.outputs, header.outputs)
        self.inputs = tuple(
            _spec(file, "input", name, model.inputs[at], header.inputs[name]) for name, at in self._places.items()
        )
        self.outputs = tuple(
            _spec(file, "output", name, model.outputs[at], header.outputs[name]) for name, at in self._results.items()
        )
        self._model: Optional[Any] = model
        self._idle: deque[Any] = deque()  # requests that no caller uses now; one serves one caller at a time

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        model = self._model
        if model is None:
            raise BackendError("the session is closed")
        try:
            request = self._idle.pop()
        except IndexError:
            request = model.create_infer_request()
        try:
            # Inputs are not copied. Outputs are, since the next run of the request writes over them.
            values = {self._places[name]: array for name, array in inputs.items()}
            found = request.infer(values, share_inputs=True, share_outputs=False)
            given = {name: found[place] for name, place in self._results.items()}
        except RuntimeError as error:
            raise BackendError(f"OpenVINO failed: {_reason(error)}") from error
        if self._model is not None:
            self._idle.append(request)
        return given

    @property
    def runtime(self) -> Any:
        """The `openvino.CompiledModel`, for what the contract does not cover. None after the session is closed."""
        return self._model

    def close(self) -> None:
        self._model = None
        self._idle.clear()


@functools.cache
def shared_core() -> Any:
    """The one `openvino.Core` of this process. It is never freed.

    OpenVINO's CPU gives the thread that it starts in another stack for signals, and takes that back where it is freed. When
    two cores were freed in the order in which they were made, or in another thread, the stack that is left is no memory
    (seen in 2026.4), and the next signal that Python handles, such as Ctrl-C or the end of a child, ends the process.
    """
    return openvino.Core()


def working_version() -> str:
    """The version of OpenVINO, after it has added two numbers on the CPU.

    Raises:
        RuntimeError: it cannot.
    """
    from openvino import opset13 as operators

    x = operators.parameter([1], np.float32)
    model = openvino.Model([operators.add(x, x)], [x])
    found = shared_core().compile_model(model, _CPU, {_PRECISION: "f32"})([np.ones(1, np.float32)])[0]
    if found.tolist() != [2.0]:
        raise RuntimeError(f"1 + 1 is {found.tolist()} on OpenVINO's CPU")
    return str(openvino.__version__).partition("-")[0]


def _places(ports: Any, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Where the inputs or outputs of a file stand in the compiled model, in the file's order."""
    by_name = {name: at for at, port in enumerate(ports) for name in port.names}
    return {name: by_name[name] for name in shapes if name in by_name}


def _spec(file: Path, kind: str, name: str, port: Any, shape: Shape) -> TensorSpec:
    known = port.partial_shape
    if not shape and known.rank.is_static:  # a file need not give the shape of an output
        shape = tuple(UNKNOWN if size.is_dynamic else size.get_length() for size in known)
    found = port.element_type.get_type_name()
    if found not in _DTYPES:
        raise ArtifactError(f"{file}: {kind} {name} is {found}; expected a tensor of {', '.join(DTYPES)}")
    return TensorSpec(name, _DTYPES[found], shape)


def _reason(error: Exception) -> str:
    """What OpenVINO's error says; it begins with the places in the source that it passed."""
    lines = [line.strip().lstrip("- ") for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(_NOISE)) or type(error).__name__
