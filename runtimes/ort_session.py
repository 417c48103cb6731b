"""ONNX Runtime behind the session contract."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata as distributions
from pathlib import Path
from typing import Any, Optional

import numpy as np

from runtimes.errors import ArtifactError, BackendError, first_line, missing_extra
from runtimes.metadata import METADATA_KEY, read_metadata
from runtimes.session import UNKNOWN, Session, TensorSpec, parse_device

try:
    import onnxruntime
except ImportError as error:
    raise missing_extra("onnxruntime", "cpu") from error

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
_OPTIMIZATION = {
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_ERRORS_ONLY = 3  # onnxruntime's log severity


class OrtSession(Session):
    """An ONNX file in ONNX Runtime. `run` may be called from several threads at once.

    Args:
        path: the ONNX file.
        device: `cpu`, `cuda` or `cuda:N`. A device that cannot be had is an error, never another one.
        threads: of one run on the CPU; ONNX Runtime's default (the physical cores) when None.
        graph_optimization: `disabled`, `basic`, `extended` or `all`.
        denormals_as_zero: flush subnormal numbers, which some CPUs compute slowly.
        spinning: idle threads wait busily for the next operator. That is faster, except beside another library's threads:
            PyTorch, run in turns with a spinning session on two cores, was seen to take ten times as long.

    Raises:
        ArtifactError: the file is missing, damaged or no ONNX model.
        BackendError: the device is unknown or not available, or two onnxruntime packages are installed over each other.
    """

    def __init__(
        self,
        path: str | Path,
        device: str = "cpu",
        threads: Optional[int] = None,
        graph_optimization: str = "all",
        denormals_as_zero: bool = False,
        spinning: bool = True,
    ) -> None:
        file = Path(path)
        if not file.is_file():
            raise ArtifactError(f"{file} does not exist or is not a file")
        _refuse_two_installations()
        provider = _provider(device)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        if threads is not None:
            if threads < 1:
                raise BackendError(f"threads is {threads}; expected at least 1")
            options.intra_op_num_threads = threads
        if graph_optimization not in _OPTIMIZATION:
            raise BackendError(f"graph_optimization is {graph_optimization!r}; expected one of {', '.join(_OPTIMIZATION)}")
        options.graph_optimization_level = _OPTIMIZATION[graph_optimization]
        if not spinning:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if denormals_as_zero:
            options.add_session_config_entry("session.set_denormal_as_zero", "1")
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=[provider])
        except Exception as error:  # onnxruntime's own exceptions share no base class but Exception
            raise ArtifactError(f"{file} cannot be loaded by ONNX Runtime: {first_line(error)}") from error
        name = provider if isinstance(provider, str) else provider[0]
        if name not in self._session.get_providers():
            self._session = None
            raise BackendError(f"ONNX Runtime did not start {name} for device {device!r}; is its CUDA and cuDNN installed?")
        self.inputs = tuple(_spec(item) for item in self._session.get_inputs())
        self.outputs = tuple(_spec(item) for item in self._session.get_outputs())
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        self.metadata = read_metadata(file, text)

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = self._session
        if session is None:
            raise BackendError("the session is closed")
        names = [spec.name for spec in self.outputs]
        try:
            return dict(zip(names, session.run(names, dict(inputs))))
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed: {first_line(error)}") from error

    @property
    def runtime(self) -> Any:
        """The `onnxruntime.InferenceSession`, for what the contract does not cover; None when the session is closed."""
        return self._session

    def close(self) -> None:
        self._session = None


def _provider(device: str) -> Any:
    kind, index = parse_device(device)
    if kind == "cpu":
        return "CPUExecutionProvider"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise BackendError(
            "this onnxruntime has no CUDA provider; run: pip uninstall -y onnxruntime && pip install 'detr-export[gpu]'"
        )
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # finds CUDA and cuDNN in their wheels
    return ("CUDAExecutionProvider", {"device_id": str(index)})


def _refuse_two_installations() -> None:
    """Both packages write the same files, so which one is in effect depends on the order they were installed in."""
    found = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
    if len(found) > 1:
        raise BackendError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
            "run: pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'detr-export[gpu]' (or [cpu])"
        )


def _installed(distribution: str) -> bool:
    try:
        distributions.version(distribution)
    except distributions.PackageNotFoundError:
        return False
    return True


def _spec(item: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, (int, str)) else UNKNOWN for size in item.shape)
    return TensorSpec(item.name, _DTYPES.get(item.type, item.type), shape)
