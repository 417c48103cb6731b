"""TensorRT's interface, and all the differences between 8.5, 10 and 11. No other file asks for TensorRT's version.

In the files that call TensorRT, its objects always have these names: builder, cache, config, context, engine, inspector,
layer, network, parser, parser_error, profile, runtime, tensor. By them the contract test finds every attribute that is used,
and looks it up in the real bindings.
"""

from __future__ import annotations

import json
import logging
import re
from collections import deque
from collections.abc import Callable
from typing import Any, Optional

from detr_export.runtimes.backends.cuda.memory import CudaDevice
from detr_export.runtimes.errors import BackendError, missing_extra

try:
    import tensorrt as trt
except ImportError as error:
    raise missing_extra("tensorrt", "trt") from error

_LOGGER = logging.getLogger("detr_export.tensorrt")
OLDEST, OLDEST_10 = (8, 5), (10, 1)  # 10.0 cannot share memory between execution contexts
_KEPT_ERRORS = 3
# TensorRT has `nptype` for this, but in 8.5 it does not work with today's numpy.
_NUMPY_NAMES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}


class Log(trt.ILogger):
    """Passes TensorRT's messages to `logging`, and keeps the last errors: they say why a call returns None."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: deque[str] = deque(maxlen=_KEPT_ERRORS)
        self._levels = {"VERBOSE": logging.DEBUG, "INFO": logging.DEBUG, "WARNING": logging.WARNING}

    def log(self, severity: Any, msg: str) -> None:
        """TensorRT calls this from any of its threads."""
        level = self._levels.get(severity.name, logging.ERROR)
        if level == logging.ERROR:
            self.errors.append(" ".join(msg.split()))
        _LOGGER.log(level, "%s", msg)

    def cause(self) -> str:
        """The errors since the last call of `cause`, for the end of a message."""
        seen = "; ".join(self.errors)
        self.errors.clear()
        return seen or "TensorRT gave no reason"


log = Log()  # one for the process, because TensorRT keeps the first that it gets


def version() -> tuple[int, int]:
    """Major and minor number."""
    major, minor = re.findall(r"\d+", trt.__version__)[:2]
    return int(major), int(minor)


def require_supported() -> None:
    """Refuses a TensorRT that is too old for this project.

    Raises:
        BackendError: names its version and those that are supported.
    """
    if version() < OLDEST or (9, 0) <= version() < OLDEST_10:
        raise BackendError(f"TensorRT is {trt.__version__}; expected 8.5, 8.6, or 10.1 and later: pip install -U tensorrt")


def full_version() -> str:
    """The version as the library gives it, such as "11.4.0.106"."""
    return str(trt.__version__)


class Generation:
    """TensorRT from 10.1 on."""

    export_opset = 18  # opset of ONNX files for it; the usual one of detr-export
    shares_profiles = True  # several execution contexts may use one profile at a time
    cancels_builds = True

    def create_network(self, builder: Any) -> Any:
        """A network with the precision of the ONNX graph. 11 has no other kind; 10 needs the flag."""
        return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))

    def set_precision(self, config: Any, network: Any, precision: str) -> None:
        """Turns TF32 off, which is on by default and less precise than fp32. The graph says the rest."""
        config.clear_flag(trt.BuilderFlag.TF32)

    def context_bytes(self, engine: Any, profile: int) -> int:
        """Bytes of device memory that one execution in a profile needs, beside inputs, outputs and weights."""
        return int(engine.get_device_memory_size_for_profile_v2(profile))

    def create_context(self, engine: Any) -> Any:
        """An execution context, which is given memory by `set_memory`; None if TensorRT cannot make one."""
        return engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)

    def set_memory(self, context: Any, address: int, nbytes: int) -> None:
        """Gives a context, whose profile is set, the device memory that it computes in."""
        context.set_device_memory(address, nbytes)

    def register_plugins(self) -> None:
        """Makes TensorRT's own plugins known, where engines need them."""

    def allow_host_code(self, runtime: Any) -> None:
        """Allows an engine to bring its own lean runtime, as version-compatible engines do."""
        runtime.engine_host_code_allowed = True

    def make_version_compatible(self, config: Any) -> None:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)

    def make_hardware_compatible(self, config: Any) -> None:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS

    def set_optimization_level(self, config: Any, level: int) -> None:
        config.builder_optimization_level = level

    def set_aux_streams(self, config: Any, count: int) -> None:
        config.max_aux_streams = count

    def watch(self, config: Any, report: Callable[[str, int, int], None], go_on: Callable[[], bool]) -> Any:
        """Reports each phase, its steps so far and in all, and stops the build when `go_on` says False. Keep the result."""

        class Monitor(trt.IProgressMonitor):
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)
                self.steps: dict[str, int] = {}

            def phase_start(self, phase_name: str, parent_phase: Optional[str], num_steps: int) -> None:
                self.steps[phase_name] = num_steps

            def step_complete(self, phase_name: str, step: int) -> bool:
                report(phase_name, step + 1, self.steps.get(phase_name, step + 1))
                return go_on()

            def phase_finish(self, phase_name: str) -> None:
                self.steps.pop(phase_name, None)

        monitor = Monitor()
        config.progress_monitor = monitor
        return monitor


class Generation8(Generation):
    """TensorRT 8.5 and 8.6."""

    export_opset = 17  # the newest that 8.5 reads
    shares_profiles = False
    cancels_builds = False

    def create_network(self, builder: Any) -> Any:
        return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))

    def set_precision(self, config: Any, network: Any, precision: str) -> None:
        """In 8 a flag allows fp16 everywhere, so each layer that the graph keeps in fp32 is pinned to it."""
        config.clear_flag(trt.BuilderFlag.TF32)
        if precision == "int8":
            config.set_flag(trt.BuilderFlag.INT8)
        if precision == "fp32":
            return
        config.set_flag(trt.BuilderFlag.FP16)
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            tensors = [layer.get_input(0), layer.get_output(0)] if layer.num_inputs and layer.num_outputs else []
            if tensors and all(tensor is not None and tensor.dtype == trt.DataType.FLOAT for tensor in tensors):
                layer.precision = trt.DataType.FLOAT
                layer.set_output_type(0, trt.DataType.FLOAT)

    def context_bytes(self, engine: Any, profile: int) -> int:
        return int(engine.device_memory_size)  # of the largest profile

    def create_context(self, engine: Any) -> Any:
        return engine.create_execution_context_without_device_memory()

    def set_memory(self, context: Any, address: int, nbytes: int) -> None:
        context.device_memory = address

    def register_plugins(self) -> None:
        """InstanceNormalization is one. If this fails, TensorRT logs it, and an engine that needs one does not load."""
        trt.init_libnvinfer_plugins(log, "")

    def watch(self, config: Any, report: Callable[[str, int, int], None], go_on: Callable[[], bool]) -> Any:
        return None

    def allow_host_code(self, runtime: Any) -> None:
        _require_8_6("an engine that is version-compatible")
        super().allow_host_code(runtime)

    def make_version_compatible(self, config: Any) -> None:
        _require_8_6("--version-compatible")
        super().make_version_compatible(config)

    def make_hardware_compatible(self, config: Any) -> None:
        _require_8_6("--hardware-compatible")
        super().make_hardware_compatible(config)

    def set_optimization_level(self, config: Any, level: int) -> None:
        _require_8_6("--optimization-level")
        super().set_optimization_level(config, level)

    def set_aux_streams(self, config: Any, count: int) -> None:
        _require_8_6("--aux-streams")
        super().set_aux_streams(config, count)


def _require_8_6(what: str) -> None:
    if version() < (8, 6):
        raise BackendError(f"{what} needs TensorRT 8.6 or later, and this is {trt.__version__}; leave it out")


def generation() -> Generation:
    """The generation of the installed TensorRT."""
    return Generation8() if version()[0] == 8 else Generation()


def load_engine(plan: bytes, host_code: bool) -> tuple[Any, Any]:
    """Deserialises a plan. A plan is executable code, so check its origin first.

    Args:
        plan: the content of the engine file.
        host_code: whether the engine is version-compatible, which means that it also brings code for the CPU.

    Returns:
        The runtime and the engine. The runtime has to live as long as the engine.

    Raises:
        BackendError: TensorRT refuses the plan; the message has TensorRT's reason.
    """
    generation().register_plugins()
    runtime = trt.Runtime(log)
    if host_code:
        generation().allow_host_code(runtime)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError(f"TensorRT {trt.__version__} does not load the engine: {log.cause()}; build it on this machine")
    return runtime, engine


def tensor_names(engine: Any, inputs: bool) -> list[str]:
    """The names of the inputs or of the outputs, in the engine's order."""
    wanted = trt.TensorIOMode.INPUT if inputs else trt.TensorIOMode.OUTPUT
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return [name for name in names if engine.get_tensor_mode(name) == wanted]


def numpy_dtype(engine: Any, name: str) -> str:
    """The name that numpy has for the dtype of a tensor.

    Raises:
        BackendError: numpy does not have this dtype.
    """
    dtype = engine.get_tensor_dtype(name).name
    if dtype not in _NUMPY_NAMES:
        raise BackendError(
            f"{name} is {dtype} in the engine, which numpy does not have; build it with fp32 inputs and outputs"
        )
    return _NUMPY_NAMES[dtype]


def engine_layers(engine: Any, device: CudaDevice) -> list[list[Any]]:
    """What the engine inspector says of each layer: a dict, or only its name if the engine has no details.

    It shows formats only of an execution context whose shapes are set, so each profile gets one, at its optimum shapes. It
    has no memory: nothing runs in it.

    Args:
        engine: the deserialised engine.
        device: where it was deserialised; it has to be active.

    Returns:
        A list for each profile. TensorRT may list the layers of other profiles among them; their names say which.

    Raises:
        BackendError: TensorRT makes no context for a profile; the message has TensorRT's reason.
    """
    found = []
    stream = device.create_stream()  # choosing a profile is work of a stream
    try:
        for index in range(engine.num_optimization_profiles):
            context = generation().create_context(engine)
            if context is None:
                raise BackendError(f"TensorRT makes no execution context: {log.cause()}; free memory of the GPU")
            context.set_optimization_profile_async(index, stream.handle)
            for name in tensor_names(engine, inputs=True):
                _, optimum, _ = engine.get_tensor_profile_shape(name, index)
                context.set_input_shape(name, tuple(optimum))
            inspector = engine.create_engine_inspector()
            inspector.execution_context = context
            document = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
            found.append(list(document["Layers"] if isinstance(document, dict) else document))
            device.synchronize(stream)
            del inspector, context  # before 10, no two contexts may be of one profile
    finally:
        device.destroy_stream(stream)
    return found
