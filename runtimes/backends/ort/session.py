"""ONNX Runtime as a session."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import numpy as np

from detr_export.runtimes.backends.cuda import opening as cuda_opening
from detr_export.runtimes.backends.cuda.arrays import DeviceArray, described, device_view, is_device_array
from detr_export.runtimes.backends.cuda.memory import CudaDevice
from detr_export.runtimes.backends.ort.library import onnxruntime
from detr_export.runtimes.backends.ort.output_arrays import check_output_arrays, require_fitting_shapes
from detr_export.runtimes.backends.ort.providers import (
    add_rtx,
    engine_cache,
    linked_tensorrt,
    provider_list,
    refuse_two_installations,
    require_provider,
    require_right_cumsum,
)
from detr_export.runtimes.backends.tensorrt.end_to_end import profiles_of_file, require_readable
from detr_export.runtimes.backends.tensorrt.profiles import ShapeProfile, shape_profile
from detr_export.runtimes.cpu import require_threads
from detr_export.runtimes.described import read_metadata
from detr_export.runtimes.devices import CPU, CUDA, RTX, TENSORRT, Device, parse_device
from detr_export.runtimes.errors import ArtifactError, BackendError, DetrError, first_line
from detr_export.runtimes.external_data import require_external_data
from detr_export.runtimes.files import sha256_of_files
from detr_export.runtimes.metadata import METADATA_KEY
from detr_export.runtimes.session import DTYPES, UNKNOWN, Session, TensorSpec, check_inputs

_OTHER_NAMES = {"float32": "float", "float64": "double"}
_DTYPES = {f"tensor({_OTHER_NAMES.get(name, name)})": name for name in DTYPES}  # by ONNX Runtime's names
_OPTIMIZATION = {
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_ERRORS_ONLY, _FATAL_ONLY = 3, 4  # onnxruntime's log severities

_alive: weakref.WeakSet[Any] = weakref.WeakSet()  # onnxruntime's sessions of this process


def _keep_for_ever() -> None:
    """In a process that was forked off: onnxruntime ends the process when it frees a session whose threads are not there."""
    for session in list(_alive):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
    _alive.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_for_ever)


class OrtSession(Session):
    """An ONNX file in ONNX Runtime. Several threads may call `run` and `run_into` at the same time.

    Args:
        path: the ONNX file.
        device: `cpu`, `cuda[:N]`, `tensorrt[:N]` or `tensorrt-rtx[:N]`; see `providers`. A device that is not available is
            an error, and never replaced by another.
        threads: CPU threads of one run; None takes ONNX Runtime's default, the number of physical cores.
        graph_optimization: `disabled`, `basic`, `extended` or `all`.
        denormals_as_zero: whether subnormal numbers, with which some CPUs are slow, become zero.
        spinning: whether idle threads wait busily for the next operator. That is faster, except beside the threads of
            another library: PyTorch was seen to take ten times as long, in turns with a spinning session on two cores.
        max_batch: largest batch of the engines that the `tensorrt` devices build; None means 1.

    Raises:
        ArtifactError: the file is missing, damaged or not an ONNX model.
        BackendError: the device is unknown or not available, or two onnxruntime packages are installed in the same place.
    """

    _memory = "cuda"  # ONNX Runtime's name of the memory for inputs and outputs of `run_on_device`

    def __init__(
        self,
        path: str | Path,
        device: str = "cpu",
        threads: Optional[int] = None,
        graph_optimization: str = "all",
        denormals_as_zero: bool = False,
        spinning: bool = True,
        max_batch: Optional[int] = None,
    ) -> None:
        file = Path(path)
        require_external_data(file, "ONNX Runtime")
        refuse_two_installations()

        # The device
        place = parse_device(device)
        place.require((CPU, CUDA, TENSORRT, RTX), "ONNX Runtime")
        require_provider(place)
        if max_batch is not None and not place.builds_engines:
            raise BackendError(f"max_batch is for the tensorrt devices, which build engines; leave it out with {device!r}")

        # ONNX Runtime's options
        options = onnxruntime.SessionOptions()
        # An error is raised, and need not be printed as well; but why a GPU's provider did not start is only printed.
        options.log_severity_level = _FATAL_ONLY if place.kind == CPU else _ERRORS_ONLY
        require_threads(threads)
        if threads is not None:
            options.intra_op_num_threads = threads
        if graph_optimization not in _OPTIMIZATION:
            raise BackendError(f"graph_optimization is {graph_optimization!r}; expected one of {', '.join(_OPTIMIZATION)}")
        options.graph_optimization_level = _OPTIMIZATION[graph_optimization]
        # CPUs without VNNI add products of bytes in 16 bits, and large sums are cut off there. ONNX Runtime then takes the
        # slower and exact way; other CPUs and files without int8 are not concerned.
        options.add_session_config_entry("session.x64quantprecision", "1")
        if not spinning:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if denormals_as_zero:
            options.add_session_config_entry("session.set_denormal_as_zero", "1")
        if place.kind != CPU and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # finds CUDA and cuDNN in their Python packages

        # The session and what it says of itself
        self._device = place
        self._session = _registered(file, _open(file, options, place, max_batch))
        self.source = str(file)
        self.inputs = tuple(_spec(file, "input", item) for item in self._session.get_inputs())
        self.outputs = tuple(_spec(file, "output", item) for item in self._session.get_outputs())
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        self.metadata = read_metadata(file, text)

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = self._session
        if session is None:
            raise BackendError("the session is closed")
        names = [spec.name for spec in self.outputs]
        try:
            return dict(zip(names, session.run(names, dict(inputs), _quiet())))
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed: {first_line(error)}") from error

    def run_into(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the model once and writes outputs into arrays of the caller. A loop that passes the same ones allocates none.

        Several threads may do so at the same time, each with arrays of its own.

        Args:
            inputs: as in `run`.
            outputs: an array for some or all of `self.outputs`, C-contiguous and writable, with the output's dtype and the
                shape that it has for these inputs. It shares no memory with another array here.

        Returns:
            An array for each of `self.outputs`: the caller's own where one was passed, and a new one otherwise.

        Raises:
            InputError: an input or output does not fit. If its shape does not, the message says which one the model gives.
            BackendError: as in `run`. After any error, what the arrays of `outputs` hold is undefined.
        """
        self.require_own_process()
        check_inputs(self.inputs, inputs, self.metadata)
        check_output_arrays(self.outputs, inputs, outputs)
        session = self._session
        if session is None:
            raise BackendError("the session is closed")
        binding, options = session.io_binding(), _quiet()
        try:
            for name, value in inputs.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
            for spec in self.outputs:
                array = outputs.get(spec.name)
                if array is None:
                    binding.bind_output(spec.name, "cpu")
                else:
                    binding.bind_output(spec.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            session.run_with_iobinding(binding, options)
            binding.synchronize_outputs()
            values = binding.get_outputs()
        except Exception as error:
            if outputs:  # a run that makes its own outputs shows whether a shape was the reason
                require_fitting_shapes(self.outputs, outputs, self._run(inputs))
            raise BackendError(f"ONNX Runtime failed: {first_line(error)}") from error
        names = [spec.name for spec in self.outputs]
        return {name: outputs[name] if name in outputs else value.numpy() for name, value in zip(names, values)}

    @property
    def runtime(self) -> Any:
        """The `onnxruntime.InferenceSession`, for what the contract does not cover. None after the session is closed."""
        return self._session

    def run_on_device(self, inputs: Mapping[str, Any]) -> dict[str, DeviceArray]:
        """Runs the model once. Inputs may lie on the session's device, and outputs stay there.

        Args:
            inputs: as in `run`, or contiguous arrays with DLPack or `__cuda_array_interface__`, of the inputs' dtypes.

        Returns:
            An array for each of `self.outputs`. It is finished, and belongs to the caller; see `DeviceArray`. Where it is
            dropped, the host waits for the work that reads it.

        Raises:
            InputError: a name, dtype, rank, size or memory layout does not fit.
            BackendError: the backend failed, the session is closed, or it is on the CPU.
        """
        self.require_own_process()
        session = self._session
        if session is None:
            raise BackendError("the session is closed")
        if self._device.kind == CPU:
            raise BackendError("the session is on the CPU; open it with device 'cuda', or call run")
        place = (self._memory, self._device.index)
        device = cuda_opening.open_device(self._device.index)
        binding = session.io_binding()
        with device.active():
            # Checks, and waiting for what still writes the inputs: ONNX Runtime has a stream of its own
            stream = device.create_stream()
            try:
                views = {
                    name: device_view(name, value, device, stream)
                    for name, value in inputs.items()
                    if is_device_array(value)
                }
                check_inputs(
                    self.inputs, {**inputs, **{name: described(view) for name, view in views.items()}}, self.metadata
                )
                device.synchronize(stream)
            finally:
                device.destroy_stream(stream)
            # The run, on the inputs where they are
            try:
                for name, value in inputs.items():
                    if name in views:
                        view = views[name]
                        binding.bind_input(name, *place, view.dtype, view.shape, view.address)
                    else:
                        binding.bind_cpu_input(name, np.ascontiguousarray(value))
                for spec in self.outputs:
                    binding.bind_output(spec.name, *place)
                session.run_with_iobinding(binding, _quiet())
                binding.synchronize_outputs()
                values = binding.get_outputs()
            except Exception as error:
                raise BackendError(f"ONNX Runtime failed: {first_line(error)}") from error
        return {spec.name: _device_array(device, value, spec.dtype) for spec, value in zip(self.outputs, values)}

    def close(self) -> None:
        self._session = None


def _open(file: Path, options: Any, device: Device, max_batch: Optional[int]) -> Any:
    """The `onnxruntime.InferenceSession` of a file; one on another device than was asked for is refused."""
    # TensorRT devices need profiles, which come from the file's metadata
    profiles: list[ShapeProfile] = []
    precision, cache, tensorrt = "fp32", Path(), None
    if device.builds_engines:
        with OrtSession(file, spinning=False, graph_optimization="disabled") as plain:
            inputs, metadata = plain.inputs, plain.metadata
        if metadata is None:
            raise ArtifactError(
                f"{file} has no detr-export metadata, and the shapes come from there; export it with: detr-export onnx"
            )
        tensorrt = linked_tensorrt() if device.kind == TENSORRT else None
        require_readable(file, metadata, tensorrt[0] if tensorrt is not None else None)
        _, queries = metadata.ranges.get("queries", (1, None))
        profiles = [shape_profile(profile, inputs, queries) for profile in profiles_of_file(metadata, max_batch or 1)]
        precision, cache = metadata.precision, engine_cache(sha256_of_files([file]))
    if device.kind == TENSORRT:
        require_right_cumsum(file, tensorrt)

    try:
        if device.kind == RTX:
            add_rtx(options, device, profiles, cache)
            return onnxruntime.InferenceSession(str(file), options)
        providers = provider_list(device, profiles, precision, cache, tensorrt)
        session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    except DetrError:
        raise
    except Exception as error:  # onnxruntime's exceptions have no common base class but Exception
        raise ArtifactError(f"{file} cannot be loaded by ONNX Runtime: {first_line(error)}") from error
    if providers[0][0] not in session.get_providers():
        raise BackendError(
            f"ONNX Runtime did not start {providers[0][0]} for device '{device}'; "
            f"{'is TensorRT installed?' if device.kind == TENSORRT else 'is its CUDA and cuDNN installed?'}"
        )
    return session


def _quiet() -> Any:
    """Options of a run: its error is raised, and need not be printed as well."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = _FATAL_ONLY
    return options


def _spec(file: Path, kind: str, item: Any) -> TensorSpec:
    if item.type not in _DTYPES:
        raise ArtifactError(f"{file}: {kind} {item.name} is {item.type}; expected a tensor of {', '.join(DTYPES)}")
    known = (isinstance(size, str) or (isinstance(size, int) and size >= 0) for size in item.shape)
    return TensorSpec(item.name, _DTYPES[item.type], tuple(s if k else UNKNOWN for s, k in zip(item.shape, known)))


def _registered(file: Path, session: Any) -> Any:
    """Notes a session for `_keep_for_ever`, and reads its text once, which need not be text."""
    _alive.add(session)
    try:
        _ = [(item.name, item.type, item.shape) for item in (*session.get_inputs(), *session.get_outputs())]
        _ = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{file} cannot be loaded by ONNX Runtime: a name in it is not UTF-8: {error}") from error
    return session


def _device_array(device: CudaDevice, value: Any, dtype: str) -> DeviceArray:
    """An OrtValue as an array, which keeps it alive."""
    held = [value]

    def release(events: list[Any]) -> None:
        for event in events:  # ONNX Runtime does not know of streams that read its memory
            device.wait_on_host(event)
            device.release_event(event)
        held.clear()

    return DeviceArray(
        device,
        value.data_ptr(),
        tuple(value.shape()),
        np.dtype(dtype),
        None,
        release,
        lambda array: np.array(held[0].numpy()),
    )
