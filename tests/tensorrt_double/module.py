"""The module `tensorrt`, in the form of one of its versions."""

from __future__ import annotations

import base64
import enum
import gc
import importlib.machinery
import json
import math
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tests.tensorrt_double.host_device import HostDevice
from tests.tensorrt_double.records import Asked, inspector_layers, log_message

_ALIGNMENT = 256  # of a tensor's address
_STEPS = 5  # of a build
MAGIC_RTX = b"vtrt"  # begins the plans of TensorRT-RTX


@dataclass
class Knobs:
    """What a test may set, and what it may look at."""

    device: HostDevice = field(default_factory=HostDevice)
    compute_precision: str | None = (
        None  # data type that convolutions and products show, such as "HALF"; the graph's if None
    )
    detailed: bool = True  # whether the inspector gives more than names
    on_step: Callable[[int], None] = lambda step: None  # called during a build
    parse_error: str | None = None
    parse_error_node: str = ""
    build_error: str | None = None
    wrong_by: float = 0.0  # added to what an engine with fp16 convolutions computes
    refuses_contexts: bool = False
    refuses_profiles: bool = False
    refuses_runs: bool = False
    builds: list[dict[str, Any]] = field(default_factory=list)  # the settings of each
    contexts: int = 0  # ever made
    plugins: bool = False  # whether they were registered
    timing_caches: list[bytes] = field(default_factory=list)  # given to builds


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class DataType(enum.IntEnum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, INT64 = range(7)


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class ProfilingVerbosity(enum.Enum):
    LAYER_NAMES_ONLY, DETAILED, NONE = range(3)


class LayerInformationFormat(enum.Enum):
    ONELINE, JSON = range(2)


_ELEMENT_TYPES = {
    onnx.TensorProto.FLOAT: DataType.FLOAT,
    onnx.TensorProto.FLOAT16: DataType.HALF,
    onnx.TensorProto.INT64: DataType.INT64,
    onnx.TensorProto.INT32: DataType.INT32,
    onnx.TensorProto.UINT8: DataType.UINT8,
    onnx.TensorProto.BOOL: DataType.BOOL,
    onnx.TensorProto.INT8: DataType.INT8,
}
_NUMPY = {
    DataType.FLOAT: np.float32,
    DataType.HALF: np.float16,
    DataType.INT64: np.int64,
    DataType.INT32: np.int32,
    DataType.UINT8: np.uint8,
    DataType.BOOL: np.bool_,
    DataType.INT8: np.int8,
}


def fake_tensorrt(version: str, knobs: Knobs, rtx: bool = False) -> types.ModuleType:
    """The module of a version, of TensorRT or TensorRT-RTX; engines of one version are not read by another."""
    major = 11 if rtx else int(version.split(".")[0])  # of the interface
    module: Any = types.ModuleType("tensorrt_rtx" if rtx else "tensorrt")
    module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
    module.__version__ = version

    class ILogger:
        def __init__(self) -> None:
            pass

    ILogger.Severity = Severity  # type: ignore[attr-defined]

    class Runtime:
        def __init__(self, logger: Any) -> None:
            module._logger = self.logger = logger
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
            magic = MAGIC_RTX if rtx else b""
            try:
                plan = json.loads(serialized_engine.removeprefix(magic) if serialized_engine.startswith(magic) else b"")
            except ValueError:
                self.logger.log(Severity.ERROR, "Magic tag does not match")
                return None
            if plan["version"] != version:
                self.logger.log(Severity.ERROR, f"Version tag does not match: {plan['version']}, {version}")
                return None
            if plan["settings"].get("version_compatible") and not self.engine_host_code_allowed:
                self.logger.log(Severity.ERROR, "engine host code is not allowed")
                return None
            engine = ICudaEngine(plan)
            if (
                major < 10
                and not knobs.plugins
                and any(node.op_type == "InstanceNormalization" for node in engine._model.graph.node)
            ):
                self.logger.log(Severity.ERROR, "getPluginCreator could not find plugin: InstanceNormalization_TRT")
                return None
            return engine

    class ICudaEngine:
        def __init__(self, plan: dict[str, Any]) -> None:
            self._plan = plan
            content = base64.b64decode(plan["onnx"])
            self._model = onnx.load_model_from_string(content)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            graph = self._model.graph
            self._values = {value.name: value for value in (*graph.input, *graph.output)}
            self._inputs = [value.name for value in graph.input]
            self._names = [*self._inputs, *(value.name for value in graph.output)]
            self._contexts: weakref.WeakSet[IExecutionContext] = weakref.WeakSet()

        @property
        def num_io_tensors(self) -> int:
            return len(self._names)

        @property
        def num_optimization_profiles(self) -> int:
            return len(self._plan["profiles"])

        def get_tensor_name(self, index: int) -> str:
            return self._names[index]

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> DataType:
            dtype = _ELEMENT_TYPES[self._values[name].type.tensor_type.elem_type]
            return DataType.INT32 if major < 10 and dtype == DataType.INT64 else dtype

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(dim.dim_value or -1 for dim in self._values[name].type.tensor_type.shape.dim)

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
            return [tuple(shape) for shape in self._plan["profiles"][profile_index][name]]

        def create_engine_inspector(self) -> Any:
            return EngineInspector(self)

    def context_bytes(self: Any, profile_index: int) -> int:
        """Of activations: a byte for every four that the largest inputs have."""
        return sum(math.prod(shapes[2]) for shapes in self._plan["profiles"][profile_index].values()) // 4

    def largest_context_bytes(self: Any) -> int:
        return max(context_bytes(self, index) for index in range(self.num_optimization_profiles))

    if major < 10:
        ICudaEngine.device_memory_size = property(largest_context_bytes)  # type: ignore[attr-defined]

        def create_execution_context_without_device_memory(self: Any) -> Any:
            return _new_context(self)

        ICudaEngine.create_execution_context_without_device_memory = (  # type: ignore[attr-defined]
            create_execution_context_without_device_memory
        )
    else:
        ICudaEngine.get_device_memory_size_for_profile_v2 = context_bytes  # type: ignore[attr-defined]

        class ExecutionContextAllocationStrategy(enum.Enum):
            STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)

        module.ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy

        def create_execution_context(self: Any, strategy: Any) -> Any:
            assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
            return _new_context(self)

        ICudaEngine.create_execution_context = create_execution_context  # type: ignore[attr-defined]

    def _new_context(engine: ICudaEngine) -> Any:
        if knobs.refuses_contexts:
            module._log(Severity.ERROR, "Cuda Runtime (out of memory)")
            return None
        knobs.contexts += 1
        return IExecutionContext(engine)

    class IExecutionContext:
        def __init__(self, engine: ICudaEngine) -> None:
            self.engine = engine
            self._profile: int | None = None
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}
            self._memory: tuple[int, int] = (0, 0)  # address and size
            self._state = 0  # counts changes
            engine._contexts.add(self)

        def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
            knobs.device.queue(stream_handle)  # or there is no such stream
            refused = knobs.refuses_profiles or profile_index >= self.engine.num_optimization_profiles
            if major < 10:
                gc.collect()
                if any(other._profile == profile_index for other in self.engine._contexts if other is not self):
                    module._log(Severity.ERROR, f"Profile {profile_index} has been chosen for another execution context")
                    refused = True
            if refused:
                raise RuntimeError("Error in set optimization profile async.")
            self._profile, self._shapes = profile_index, {}
            self._state += 1
            return True

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            assert self._profile is not None, "a shape is set before its profile"
            low, _, high = self.engine.get_tensor_profile_shape(name, self._profile)
            if not all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
                module._log(Severity.ERROR, f"{name}: {shape} is outside of profile {self._profile}")
                return False
            self._shapes[name] = tuple(shape)
            self._state += 1
            return True

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            if name in self._shapes:
                return self._shapes[name]
            assert set(self._shapes) == set(self.engine._inputs), "an output's shape is asked for before the inputs have one"
            return _output_shape(self.engine, name, self._shapes)

        def set_tensor_address(self, name: str, memory: int) -> bool:
            if name not in self.engine._names or memory % _ALIGNMENT:
                module._log(Severity.ERROR, f"{name} at {memory:#x}")
                return False
            self._addresses[name] = memory
            self._state += 1
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            if knobs.refuses_runs:
                module._log(Severity.ERROR, "Cuda Runtime (launch failure)")
                return False
            assert self._profile is not None
            memory, size = self._memory
            needed = context_bytes(self.engine, self._profile) if major >= 10 else largest_context_bytes(self.engine)
            if memory not in knobs.device.blocks or (major >= 10 and size < needed):
                module._log(Severity.ERROR, "no device memory was set, or not enough")
                return False
            if set(self._addresses) != set(self.engine._names) or set(self._shapes) != set(self.engine._inputs):
                module._log(Severity.ERROR, "not all shapes and addresses were set")
                return False
            state, shapes, addresses = self._state, dict(self._shapes), dict(self._addresses)
            captured = stream_handle in knobs.device.capturing

            def compute() -> None:
                assert not captured or self._state == state, "a context was changed after its graph was captured"
                knobs.device.memory(memory, needed)[:] = 0xAA  # the activations
                feeds = {}
                for name in self.engine._inputs:
                    dtype = np.dtype(_NUMPY[self.engine.get_tensor_dtype(name)])
                    data = knobs.device.memory(addresses[name], math.prod(shapes[name]) * dtype.itemsize)
                    wanted = _NUMPY[_ELEMENT_TYPES[self.engine._values[name].type.tensor_type.elem_type]]
                    feeds[name] = data.view(dtype).reshape(shapes[name]).astype(wanted)
                names = self.engine._names[len(self.engine._inputs) :]
                for name, value in zip(names, self.engine._session.run(names, feeds), strict=True):
                    value = value + value.dtype.type(self.engine._plan["wrong_by"])
                    data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
                    np.copyto(knobs.device.memory(addresses[name], data.nbytes), data)

            knobs.device.enqueue(stream_handle, compute)
            return True

    if major < 10:

        def set_device_memory_8(self: Any, memory: int) -> None:
            self._memory = (memory, 0)
            self._state += 1

        IExecutionContext.device_memory = property(None, set_device_memory_8)  # type: ignore[attr-defined]
    else:

        def set_device_memory(self: Any, memory: int, size: int) -> None:
            self._memory = (memory, size)
            self._state += 1

        IExecutionContext.set_device_memory = set_device_memory  # type: ignore[attr-defined]

    class EngineInspector:
        def __init__(self, engine: ICudaEngine) -> None:
            self._engine = engine
            self.execution_context: IExecutionContext | None = None

        def get_engine_information(self, format: LayerInformationFormat) -> str:
            assert format == LayerInformationFormat.JSON
            engine, context = self._engine, self.execution_context
            asked = Asked(
                engine._model, _names(engine._model), major, engine.num_optimization_profiles, knobs.compute_precision
            )
            shapes_set = context is not None and set(context._shapes) == set(engine._inputs)
            layers: list[Any] = inspector_layers(asked, context._profile if context is not None and shapes_set else None)
            if not knobs.detailed or not engine._plan["settings"]["detailed"]:
                layers = [layer["Name"] for layer in layers]
            return json.dumps({"Layers": layers, "Bindings": engine._names})

    class IHostMemory(bytes):
        @property
        def nbytes(self) -> int:
            return len(self)

    class IOptimizationProfile:
        def __init__(self) -> None:
            self._shapes: dict[str, list[list[int]]] = {}

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            if not all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True)):
                raise ValueError("inconsistent shapes")
            self._shapes[input] = [list(min), list(opt), list(max)]

    class ITimingCache:
        def __init__(self, content: bytes) -> None:
            self._content = content

        def serialize(self) -> IHostMemory:
            return IHostMemory(self._content)

        def combine(self, input_cache: Any, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            self._content = b"".join(sorted({*self._content.splitlines(True), *input_cache._content.splitlines(True)}))
            return True

    class BuilderFlag(enum.IntEnum):
        TF32 = 0
        VERSION_COMPATIBLE = 1

    if major < 11:

        class BuilderFlag(enum.IntEnum):  # type: ignore[no-redef]
            FP16 = 0
            INT8 = 1
            TF32 = 2
            OBEY_PRECISION_CONSTRAINTS = 3
            VERSION_COMPATIBLE = 4

    class HardwareCompatibilityLevel(enum.Enum):
        NONE, AMPERE_PLUS = range(2)

    class IBuilderConfig:
        def __init__(self) -> None:
            self._flags = {BuilderFlag.TF32}
            self._profiles: list[IOptimizationProfile] = []
            self._cache: ITimingCache | None = None
            self._workspace: int | None = None
            self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
            if not version.startswith("8.5"):
                self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
                self.builder_optimization_level = 3
                self.max_aux_streams: int | None = None
            if major >= 10:
                self.progress_monitor: Any = None
            if rtx:
                self.num_compute_capabilities = 0
                self._targets: dict[int, str] = {}

        def set_flag(self, flag: BuilderFlag) -> None:
            self._flags.add(flag)

        def clear_flag(self, flag: BuilderFlag) -> None:
            self._flags.discard(flag)

        def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
            self._workspace = pool_size

        def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
            self._profiles.append(profile)
            return len(self._profiles) - 1

        def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
            assert not rtx, "it warns that it does nothing"
            if serialized_timing_cache and not serialized_timing_cache.startswith(b"tactic"):
                module._log(Severity.ERROR, "the timing cache is damaged")
                return None
            return ITimingCache(serialized_timing_cache)

        def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            knobs.timing_caches.append(cache._content)
            self._cache = cache
            return True

        def get_timing_cache(self) -> ITimingCache | None:
            return self._cache

    if rtx:

        def set_compute_capability(self: Any, compute_capability: Any, index: int) -> bool:
            assert index < self.num_compute_capabilities
            self._targets[index] = compute_capability.name
            return True

        IBuilderConfig.set_compute_capability = set_compute_capability  # type: ignore[attr-defined]
        module.ComputeCapability = enum.Enum(
            "ComputeCapability", ["NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121"]
        )

    flags = {"EXPLICIT_BATCH": 0} if major < 10 else {"STRONGLY_TYPED": 1}
    NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", flags)  # type: ignore[misc]

    class ILayer:
        def __init__(self, tensors: tuple[Any, Any]) -> None:
            self._tensors = tensors
            self.num_inputs = self.num_outputs = 1
            if major < 11:
                self.precision: Any = None
                self._output_type: Any = None

        def get_input(self, index: int) -> Any:
            return self._tensors[0]

        def get_output(self, index: int) -> Any:
            return self._tensors[1]

    if major < 11:

        def set_output_type(self: Any, index: int, dtype: DataType) -> None:
            self._output_type = dtype

        ILayer.set_output_type = set_output_type  # type: ignore[attr-defined]

    class INetworkDefinition:
        def __init__(self, flags: int) -> None:
            self._flags = flags
            self._onnx = b""
            self._layers: list[ILayer] = []
            self._flagged: set[str] = set()  # by the parser

        @property
        def num_layers(self) -> int:
            return len(self._layers)

        def get_layer(self, index: int) -> ILayer:
            return self._layers[index]

    OnnxParserFlag = enum.Enum("OnnxParserFlag", ["NATIVE_INSTANCENORM"])
    ErrorCode = enum.Enum("ErrorCode", ["UNSUPPORTED_NODE", "INVALID_NODE"])

    class ParserError:
        def __init__(self, text: str) -> None:
            self._text = text

        def code(self) -> Any:
            return ErrorCode.UNSUPPORTED_NODE

        def desc(self) -> str:
            return self._text

    if major >= 10:

        def node_name(self: Any) -> str:
            return knobs.parse_error_node

        ParserError.node_name = node_name  # type: ignore[attr-defined]

    class OnnxParser:
        def __init__(self, network: INetworkDefinition, logger: Any) -> None:
            self._network = network
            self._errors: list[str] = []

        def set_flag(self, flag: Any) -> None:
            self._network._flagged.add(flag.name)

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> ParserError:
            return ParserError(self._errors[index])

        def parse_from_file(self, model: str) -> bool:
            if knobs.parse_error:
                self._errors.append(knobs.parse_error)
                return False
            proto = onnx.load(model)
            self._network._onnx = proto.SerializeToString()
            dtypes, shapes = _dtypes(proto), _shape_tensors(proto)
            for node in proto.graph.node:
                tensors = [
                    types.SimpleNamespace(dtype=dtypes[name], is_shape_tensor=name in shapes)
                    for name in (next(iter(node.input), ""), node.output[0])
                    if name in dtypes
                ]
                if len(tensors) == 2:
                    self._network._layers.append(ILayer((tensors[0], tensors[1])))
            return True

    class Builder:
        def __init__(self, logger: Any) -> None:
            module._logger = self.logger = logger

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            return INetworkDefinition(flags)

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def create_optimization_profile(self) -> IOptimizationProfile:
            return IOptimizationProfile()

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
            settings = {
                "flags": sorted(flag.name for flag in config._flags),
                "network_flags": network._flags,
                "workspace": config._workspace,
                "optimization_level": getattr(config, "builder_optimization_level", None),
                "aux_streams": getattr(config, "max_aux_streams", None),
                "hardware_compatible": getattr(config, "hardware_compatibility_level", None)
                == HardwareCompatibilityLevel.AMPERE_PLUS,
                "version_compatible": BuilderFlag.VERSION_COMPATIBLE in config._flags,
                "detailed": config.profiling_verbosity == ProfilingVerbosity.DETAILED,
                "pinned": sum(layer.precision is not None for layer in network._layers) if major < 11 else 0,
            }
            if rtx:
                settings["targets"] = [config._targets[index] for index in range(config.num_compute_capabilities)]
            knobs.builds.append(settings)
            self.logger.log(Severity.WARNING, "a warning of the builder")
            if major < 10 and any(map(_pins_a_shape, network._layers)):
                self.logger.log(Severity.ERROR, "no implementation obeys reduced precision constraints of a shape tensor")
                return None
            plugin = "NATIVE_INSTANCENORM" not in network._flagged and b"InstanceNormalization" in network._onnx
            if major < 10 and settings["version_compatible"] and plugin:
                self.logger.log(Severity.ERROR, "version compatible engines cannot use InstanceNormalization_TRT")
                return None
            monitor = getattr(config, "progress_monitor", None)
            if monitor is not None:
                monitor.phase_start("Building Engine", None, _STEPS)
            for step in range(_STEPS):
                knobs.on_step(step)
                if monitor is not None and not monitor.step_complete("Building Engine", step):
                    return None
            if monitor is not None:
                monitor.phase_finish("Building Engine")
            if knobs.build_error:
                self.logger.log(Severity.ERROR, knobs.build_error)
                return None
            if settings["detailed"]:
                graph = onnx.load_model_from_string(network._onnx)
                self.logger.log(
                    Severity.VERBOSE,
                    log_message(Asked(graph, _names(graph), major, len(config._profiles), knobs.compute_precision)),
                )
            if config._cache is not None:
                config._cache.combine(ITimingCache(f"tactic {len(network._onnx)}\n".encode()), False)
            half = any(
                tensor.data_type == onnx.TensorProto.FLOAT16
                for tensor in onnx.load_model_from_string(network._onnx).graph.initializer
            )
            plan = {
                "version": version,
                "settings": settings,
                "onnx": base64.b64encode(network._onnx).decode(),
                "profiles": [profile._shapes for profile in config._profiles],
                "wrong_by": knobs.wrong_by if half else 0.0,
            }
            return IHostMemory((MAGIC_RTX if rtx else b"") + json.dumps(plan).encode())

    if major >= 10:

        class IProgressMonitor:
            def __init__(self) -> None:
                pass

        module.IProgressMonitor = IProgressMonitor

    def init_libnvinfer_plugins(logger: Any, namespace: str) -> bool:
        knobs.plugins = True
        return True

    module.init_libnvinfer_plugins = init_libnvinfer_plugins

    def _log(severity: Severity, text: str) -> None:
        module._logger.log(severity, text)

    module._log = _log
    public = (
        ILogger, Runtime, ICudaEngine, IExecutionContext, EngineInspector, IHostMemory, IOptimizationProfile, ITimingCache,
        BuilderFlag, HardwareCompatibilityLevel, IBuilderConfig, NetworkDefinitionCreationFlag, ILayer, INetworkDefinition,
        ParserError, OnnxParserFlag, OnnxParser, Builder, DataType, TensorIOMode, MemoryPoolType,
        ProfilingVerbosity, LayerInformationFormat,
    )  # fmt: skip
    for item in public:
        setattr(module, item.__name__, item)
    return module


def _dtypes(model: onnx.ModelProto) -> dict[str, DataType]:
    """Element types by tensor, as far as shape inference knows them."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    found = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        found[value.name] = value.type.tensor_type.elem_type
    return {name: _ELEMENT_TYPES[dtype] for name, dtype in found.items() if dtype in _ELEMENT_TYPES}


def _names(model: onnx.ModelProto) -> dict[str, str]:
    return {tensor: dtype.name for tensor, dtype in _dtypes(model).items()}


def _pins_a_shape(layer: Any) -> bool:
    return bool(layer.precision is not None and layer.get_output(0).is_shape_tensor)


def _shape_tensors(model: onnx.ModelProto) -> set[str]:
    """What is computed from shapes and constants alone."""
    constants = {tensor.name for tensor in model.graph.initializer}
    found: set[str] = set()
    for node in model.graph.node:
        given = {name for name in node.input if name} - constants
        if node.op_type in ("Shape", "Size") or (given and given <= found and node.op_type != "Range"):
            found.update(node.output)
    return found


def _output_shape(engine: Any, name: str, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """By running the graph on zeros: what is slow here, TensorRT does by shape inference."""
    cache = engine.__dict__.setdefault("_output_shapes", {})
    key = tuple(sorted(shapes.items()))
    if key not in cache:
        feeds = {
            item: np.ones(shape, _NUMPY[_ELEMENT_TYPES[engine._values[item].type.tensor_type.elem_type]])
            for item, shape in shapes.items()
        }
        names = engine._names[len(engine._inputs) :]
        cache[key] = {item: value.shape for item, value in zip(names, engine._session.run(names, feeds), strict=True)}
    found: tuple[int, ...] = cache[key][name]
    return found
