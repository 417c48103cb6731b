"""The interface of TensorRT and of TensorRT-RTX, and all the differences between 8.5, 10, 11 and RTX.

Both are a `Library`; no other file asks for a version. In the files that call TensorRT, its objects always have these names:
builder, cache, config, context, engine, inspector, layer, network, parser, parser_error, profile, runtime, tensor; and its
module is `trt`. By them the contract test finds every attribute that is used, and looks it up in the real bindings.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Optional

from detr_export.runtimes.backends.cuda.memory import CudaDevice
from detr_export.runtimes.backends.tensorrt.rtx_library import import_tensorrt_rtx
from detr_export.runtimes.errors import BackendError, missing_extra

TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt_rtx"  # the libraries, as sidecars name them
TITLES = {TENSORRT: "TensorRT", TENSORRT_RTX: "TensorRT-RTX"}  # and as messages do
OLDEST, OLDEST_10 = (8, 5), (10, 1)  # 10.0 cannot share memory between execution contexts
_LOGGER = logging.getLogger("detr_export.tensorrt")
_KEPT_ERRORS = 3
# The parser says this of every int64 input and output, and means that a caller must not use int32. The session uses int64.
_EXPECTED = re.compile(r"Make sure (input|output) \S+ has Int64 binding")
_LEVELS = {"VERBOSE": logging.DEBUG, "INFO": logging.DEBUG, "WARNING": logging.WARNING}  # all others are errors
_MAGIC_RTX = b"vtrt"  # the first bytes of RTX's plans; those of TensorRT are "ftrt"
_CAPABILITY = re.compile(r"SM(\d+)(\d)")  # SM89 is 8.9, SM120 is 12.0
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

ComputeCapability = tuple[int, int]


class Log:
    """Passes a library's messages to `logging`, and keeps the last errors: they say why a call returns None."""

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=_KEPT_ERRORS)
        self._records: list[list[str]] = []

    def add(self, severity: str, message: str) -> None:
        """Takes a message. TensorRT calls this from any of its threads."""
        level = _LEVELS.get(severity, logging.ERROR)
        if level == logging.ERROR:
            self.errors.append(" ".join(message.split()))
        for record in self._records:
            record.append(message)
        # While something is recorded, an error is held back: a call that fails says it in its exception.
        shown = logging.DEBUG if _EXPECTED.search(message) or (self._records and level == logging.ERROR) else level
        _LOGGER.log(shown, "%s", message)

    def cause(self) -> str:
        """The errors since the last call of `cause`, for the end of a message."""
        seen = "; ".join(self.errors)
        self.errors.clear()
        return seen or "TensorRT gave no reason"

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[str]]:
        """A list that gets every message of the block, also those that are only for a detailed log.

        Errors from before the block are forgotten. If the block succeeds, those that happened in it were none that stop a
        build, and are passed on as warnings.
        """
        record: list[str] = []
        self.errors.clear()
        self._records.append(record)
        try:
            yield record
        finally:
            self._records = [other for other in self._records if other is not record]
        while self.errors:
            _LOGGER.warning("%s", self.errors.popleft())


class Generation:
    """TensorRT from 10.1 on.

    Args:
        trt: the module.
    """

    export_opset = 18  # opset of ONNX files for it; the usual one of detr-export
    shares_profiles = True  # several execution contexts may use one profile at a time
    cancels_builds = True
    has_timing_cache = True
    refused: Mapping[str, str] = {}  # options of a build that it does not have, and why

    def __init__(self, trt: Any) -> None:
        self.trt = trt

    def failed_node(self, parser_error: Any) -> str:
        """The name of the ONNX node that the parser failed at; empty where it does not say it."""
        return str(parser_error.node_name())

    def create_network(self, builder: Any) -> Any:
        """A network with the precision of the ONNX graph. 11 has no other kind; 10 needs the flag."""
        return builder.create_network(1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))

    def prepare_parser(self, parser: Any, version_compatible: bool) -> None:
        """Sets what the ONNX parser has to know of the engine."""

    def set_precision(self, config: Any, network: Any, precision: str) -> None:
        """Turns TF32 off, which is on by default and less precise than fp32. The graph says the rest."""
        config.clear_flag(self.trt.BuilderFlag.TF32)

    def context_bytes(self, engine: Any, profile: int) -> int:
        """Bytes of device memory that one execution in a profile needs, beside inputs, outputs and weights."""
        return int(engine.get_device_memory_size_for_profile_v2(profile))

    def create_context(self, engine: Any) -> Any:
        """An execution context, which is given memory by `set_memory`; None if TensorRT cannot make one."""
        return engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)

    def set_memory(self, context: Any, address: int, nbytes: int) -> None:
        """Gives a context, whose profile is set, the device memory that it computes in."""
        context.set_device_memory(address, nbytes)

    def register_plugins(self, logger: Any) -> None:
        """Makes TensorRT's own plugins known, where engines need them."""

    def allow_host_code(self, runtime: Any) -> None:
        """Allows an engine to bring its own lean runtime, as version-compatible engines do."""
        runtime.engine_host_code_allowed = True

    def make_version_compatible(self, config: Any) -> None:
        config.set_flag(self.trt.BuilderFlag.VERSION_COMPATIBLE)

    def make_hardware_compatible(self, config: Any) -> None:
        config.hardware_compatibility_level = self.trt.HardwareCompatibilityLevel.AMPERE_PLUS

    def set_optimization_level(self, config: Any, level: int) -> None:
        config.builder_optimization_level = level

    def set_aux_streams(self, config: Any, count: int) -> None:
        config.max_aux_streams = count

    def compute_capabilities(self) -> tuple[ComputeCapability, ...]:
        """What a build can name as its targets; it then needs no GPU. None where it builds on its GPU for its GPU."""
        return ()

    def set_targets(self, config: Any, targets: Sequence[ComputeCapability]) -> None:
        """Names the compute capabilities to build for; a TensorRT that has no such choice builds for its own GPU."""

    def watch(self, config: Any, report: Callable[[str, int, int], None], go_on: Callable[[], bool]) -> Any:
        """Reports each phase, its steps so far and in all, and stops the build when `go_on` says False. Keep the result."""

        trt = self.trt

        class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined]
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

    def failed_node(self, parser_error: Any) -> str:
        return ""

    def create_network(self, builder: Any) -> Any:
        return builder.create_network(1 << int(self.trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))

    def prepare_parser(self, parser: Any, version_compatible: bool) -> None:
        """A version-compatible engine has no plugins, and InstanceNormalization is one, unless it is told otherwise."""
        if version_compatible:
            self._require_8_6("--version-compatible")
            parser.set_flag(self.trt.OnnxParserFlag.NATIVE_INSTANCENORM)

    def set_precision(self, config: Any, network: Any, precision: str) -> None:
        """In 8 a flag allows fp16 everywhere, so each layer that the graph keeps in fp32 is pinned to it.

        Computations of shapes, which the CPU does, cannot be pinned: with OBEY_PRECISION_CONSTRAINTS the build would fail.
        """
        config.clear_flag(self.trt.BuilderFlag.TF32)
        if precision == "int8":
            config.set_flag(self.trt.BuilderFlag.INT8)
        if precision == "fp32":
            return
        config.set_flag(self.trt.BuilderFlag.FP16)
        config.set_flag(self.trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            tensors = [layer.get_input(0), layer.get_output(0)] if layer.num_inputs and layer.num_outputs else []
            if tensors and all(tensor is not None and self._can_be_pinned(tensor) for tensor in tensors):
                layer.precision = self.trt.DataType.FLOAT
                layer.set_output_type(0, self.trt.DataType.FLOAT)

    def _can_be_pinned(self, tensor: Any) -> bool:
        return bool(tensor.dtype == self.trt.DataType.FLOAT and not tensor.is_shape_tensor)

    def context_bytes(self, engine: Any, profile: int) -> int:
        return int(engine.device_memory_size)  # of the largest profile

    def create_context(self, engine: Any) -> Any:
        return engine.create_execution_context_without_device_memory()

    def set_memory(self, context: Any, address: int, nbytes: int) -> None:
        context.device_memory = address

    def register_plugins(self, logger: Any) -> None:
        """InstanceNormalization is one. If this fails, TensorRT logs it, and an engine that needs one does not load."""
        self.trt.init_libnvinfer_plugins(logger, "")

    def watch(self, config: Any, report: Callable[[str, int, int], None], go_on: Callable[[], bool]) -> Any:
        return None

    def allow_host_code(self, runtime: Any) -> None:
        self._require_8_6("an engine that is version-compatible")
        super().allow_host_code(runtime)

    def make_version_compatible(self, config: Any) -> None:
        self._require_8_6("--version-compatible")
        super().make_version_compatible(config)

    def make_hardware_compatible(self, config: Any) -> None:
        self._require_8_6("--hardware-compatible")
        super().make_hardware_compatible(config)

    def set_optimization_level(self, config: Any, level: int) -> None:
        self._require_8_6("--optimization-level")
        super().set_optimization_level(config, level)

    def set_aux_streams(self, config: Any, count: int) -> None:
        self._require_8_6("--aux-streams")
        super().set_aux_streams(config, count)

    def _require_8_6(self, what: str) -> None:
        if numbers(self.trt.__version__) < (8, 6):
            raise BackendError(f"{what} needs TensorRT 8.6 or later, and this is {self.trt.__version__}; leave it out")


class GenerationRtx(Generation):
    """TensorRT-RTX, which has the interface of TensorRT 11. It compiles ahead of time, and needs no GPU for it."""

    has_timing_cache = False
    refused: Mapping[str, str] = {
        "--optimization-level": "its builder measures nothing, and all levels give the same kernels",
        "--version-compatible": "an engine runs on the version that built it alone",
        "--hardware-compatible": "name the GPUs with --compute-capability",
        "--timing-cache": "its builder measures nothing",
    }

    def create_network(self, builder: Any) -> Any:
        return builder.create_network(0)  # always with the precision of the ONNX graph

    def compute_capabilities(self) -> tuple[ComputeCapability, ...]:
        found = [_CAPABILITY.fullmatch(name) for name in dir(self.trt.ComputeCapability)]
        return tuple(sorted((int(match[1]), int(match[2])) for match in found if match))

    def set_targets(self, config: Any, targets: Sequence[ComputeCapability]) -> None:
        config.num_compute_capabilities = len(targets)
        for index, (major, minor) in enumerate(targets):
            capability = getattr(self.trt.ComputeCapability, f"SM{major}{minor}")
            if not config.set_compute_capability(capability, index):
                raise BackendError(f"TensorRT-RTX {self.trt.__version__} does not build for {major}.{minor}; leave it out")


class Library:
    """TensorRT or TensorRT-RTX: its module, its log, and what differs between its versions.

    Args:
        name: `TENSORRT` or `TENSORRT_RTX`.
        trt: its module.
        generation: of the module.
    """

    def __init__(self, name: str, trt: Any, generation: Generation) -> None:
        self.name, self.title, self.trt, self.generation = name, TITLES[name], trt, generation
        self.package = "tensorrt" if name == TENSORRT else "tensorrt-rtx"  # what pip calls it
        self.version = str(trt.__version__)  # in full, such as "11.4.0.106"
        self.reads_as = self.version if name == TENSORRT else "11"  # the TensorRT whose parser reads what this one reads
        self.log = Log()
        self.logger = _logger(trt, self.log)  # one for the process, because TensorRT keeps the first that it gets

    def __str__(self) -> str:
        return f"{self.title} {self.version}"

    def load_engine(self, plan: bytes, host_code: bool) -> tuple[Any, Any]:
        """Deserialises a plan. A plan is executable code, so check its origin first.

        Args:
            plan: the content of the engine file.
            host_code: whether the engine is version-compatible, which means that it also brings code for the CPU.

        Returns:
            The runtime and the engine. The runtime has to live as long as the engine.

        Raises:
            BackendError: the library refuses the plan; the message has its reason.
        """
        with self.log.recording():
            self.generation.register_plugins(self.logger)
            runtime = self.trt.Runtime(self.logger)
            if host_code:
                self.generation.allow_host_code(runtime)
            engine = runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise BackendError(f"{self} does not load the engine: {self.log.cause()}; build it on this machine")
        return runtime, engine

    def tensor_names(self, engine: Any, inputs: bool) -> list[str]:
        """The names of the inputs or of the outputs, in the engine's order."""
        wanted = self.trt.TensorIOMode.INPUT if inputs else self.trt.TensorIOMode.OUTPUT
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return [name for name in names if engine.get_tensor_mode(name) == wanted]

    def engine_layers(self, engine: Any, device: CudaDevice) -> list[list[Any]]:
        """What the engine inspector says of each layer: a dict, or only its name if the engine has no details.

        It shows formats only of an execution context whose shapes are set, so each profile gets one, at its optimum shapes.
        It has no memory: nothing runs in it.

        Args:
            engine: the deserialised engine.
            device: where it was deserialised; it has to be active.

        Returns:
            A list for each profile. TensorRT may list the layers of other profiles among them; their names say which.

        Raises:
            BackendError: no context can be made for a profile; the message has the reason.
        """
        found = []
        stream = device.create_stream()  # choosing a profile is work of a stream
        try:
            for index in range(engine.num_optimization_profiles):
                context = self.generation.create_context(engine)
                if context is None:
                    raise BackendError(
                        f"{self.title} makes no execution context: {self.log.cause()}; free memory of the GPU"
                    )
                context.set_optimization_profile_async(index, stream.handle)
                for name in self.tensor_names(engine, inputs=True):
                    _, optimum, _ = engine.get_tensor_profile_shape(name, index)
                    context.set_input_shape(name, tuple(optimum))
                inspector = engine.create_engine_inspector()
                inspector.execution_context = context
                document = json.loads(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON))
                found.append(list(document["Layers"] if isinstance(document, dict) else document))
                device.synchronize(stream)
                del inspector, context  # before 10, no two contexts may be of one profile
        finally:
            device.destroy_stream(stream)
        return found


@functools.cache
def tensorrt() -> Library:
    """The installed TensorRT.

    Raises:
        BackendError: it is not installed, or too old; the message says what to install.
    """
    try:
        import tensorrt as trt
    except ImportError as error:
        raise missing_extra("tensorrt", "trt") from error
    version = numbers(trt.__version__)
    if version < OLDEST or (9, 0) <= version < OLDEST_10:
        raise BackendError(f"TensorRT is {trt.__version__}; expected 8.5, 8.6, or 10.1 and later: pip install -U tensorrt")
    generation = Generation8(trt) if version[0] == 8 else Generation(trt)
    return Library(TENSORRT, trt, generation)


@functools.cache
def tensorrt_rtx() -> Library:
    """The installed TensorRT-RTX.

    Raises:
        BackendError: it is not installed, or its parts are of different versions; the message says what to install.
    """
    trt = import_tensorrt_rtx()
    return Library(TENSORRT_RTX, trt, GenerationRtx(trt))


def library_named(name: str) -> Library:
    """The library that a sidecar names: `TENSORRT` or `TENSORRT_RTX`.

    Raises:
        BackendError: it is not installed, or there is none of that name.
    """
    known = {TENSORRT: tensorrt, TENSORRT_RTX: tensorrt_rtx}
    if name not in known:
        raise BackendError(f"the engine is for the library {name!r}; expected {' or '.join(known)}: update detr-export")
    return known[name]()


def library_of_plan(plan: bytes) -> Library:
    """The library that built a plan, as its first bytes say. It is for plans that have no sidecar.

    Raises:
        BackendError: it is not installed.
    """
    return tensorrt_rtx() if plan.startswith(_MAGIC_RTX) else tensorrt()


def capability_text(capability: ComputeCapability) -> str:
    """A compute capability as NVIDIA writes it, such as 8.9."""
    return f"{capability[0]}.{capability[1]}"


def numbers(version: str) -> tuple[int, int]:
    """Major and minor number."""
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


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


def _logger(trt: Any, log: Log) -> Any:
    """The logger that a module takes."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            log.add(severity.name, msg)

    return Logger()
