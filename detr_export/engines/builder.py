"""From an ONNX file to a plan: the builder of TensorRT or TensorRT-RTX, with progress and a way to cancel it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from detr_export.engines.failures import located, parser_failures
from detr_export.engines.options import BuildSettings
from detr_export.runtimes.backends.cuda.memory import CudaDevice
from detr_export.runtimes.backends.tensorrt.api import Generation, Library
from detr_export.runtimes.backends.tensorrt.profiles import ShapeProfile
from detr_export.runtimes.errors import ArtifactError, BackendError
from detr_export.runtimes.progress import SILENT, Progress

_MIB = 1 << 20
_POLL_SECONDS = 0.1  # how soon Ctrl-C is seen
_CANCEL_SECONDS = 60.0  # a step takes seconds, and TensorRT asks only between two steps whether to go on


@dataclass(frozen=True)
class BuildOrder:
    """What is built, and for what."""

    library: Library
    onnx_file: Path  # the graph; from TensorRT 10 on its types are the engine's
    model: onnx.ModelProto  # the same graph
    profiles: tuple[ShapeProfile, ...]  # shapes of all inputs
    precision: str  # of the graph: "fp32", "fp16" or "int8"
    settings: BuildSettings
    targets: tuple[tuple[int, int], ...]  # compute capabilities to build for; none: the GPU's own
    device: CudaDevice | None  # the GPU that it is built on; None if the library needs none
    timing_cache: bytes | None = None  # what an earlier build measured; None where the library has no such cache


@dataclass(frozen=True)
class Plan:
    """What was built."""

    content: bytes
    timing_cache: bytes | None
    log: tuple[str, ...]  # all that the builder said, also what is only for a detailed log


def build_plan(order: BuildOrder, progress: Progress = SILENT) -> Plan:
    """Builds a plan. Ctrl-C cancels the build. TensorRT before 10 cannot cancel; there Ctrl-C does not wait for its end.

    Args:
        order: what is built.
        progress: is told the steps of each phase of the build.

    Raises:
        ArtifactError: TensorRT does not read the graph; the message names the nodes and where they were traced.
        BackendError: the build failed; the message ends in TensorRT's reason, and names the node if TensorRT does.
        KeyboardInterrupt: it was cancelled.
    """
    cancelled = threading.Event()
    outcome: list[Plan | BaseException] = []

    def work() -> None:
        try:
            with contextlib.nullcontext() if order.device is None else order.device.active():
                plan = _build(order, progress, lambda: not cancelled.is_set())
            outcome.append(plan)
        except BaseException as error:  # goes to the thread that waits
            outcome.append(error)

    # The build has a thread of its own: the exception of a signal handler must not pass through TensorRT's frames.
    builder_thread = threading.Thread(target=work, name="TensorRT builder", daemon=True)
    builder_thread.start()
    try:
        while builder_thread.is_alive():
            builder_thread.join(_POLL_SECONDS)
    except KeyboardInterrupt:
        cancelled.set()
        if order.library.generation.cancels_builds:
            builder_thread.join(_CANCEL_SECONDS)
        raise
    result = outcome[0]
    if isinstance(result, BaseException):
        raise result
    return result


def _build(order: BuildOrder, progress: Progress, go_on: Callable[[], bool]) -> Plan:
    library = order.library
    trt, log, generation = library.trt, library.log, library.generation
    with log.recording() as said:
        # Read the graph.
        builder = trt.Builder(library.logger)
        network = generation.create_network(builder)
        parser = trt.OnnxParser(network, library.logger)
        generation.prepare_parser(parser, order.settings.version_compatible)
        if not parser.parse_from_file(str(order.onnx_file)):
            reasons = parser_failures(parser, generation, order.model)
            raise ArtifactError(f"{library} does not read {order.onnx_file.name}: {'; '.join(reasons) or log.cause()}")

        # Set precision, options, shapes and timing cache.
        config = builder.create_builder_config()
        generation.set_precision(config, network, order.precision)
        generation.set_targets(config, order.targets)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # without it the precisions cannot be read back
        _configure(config, order.settings, library)
        _add_profiles(builder, config, order.profiles)
        cache = None
        if order.timing_cache is not None:
            cache = config.create_timing_cache(order.timing_cache)
            if cache is None or not config.set_timing_cache(cache, False):
                raise BackendError(
                    f"the timing cache is of another GPU or TensorRT, or damaged: {log.cause()}; "
                    "give another --timing-cache file"
                )

        # Build.
        monitor = generation.watch(config, lambda phase, done, total: progress.step(done, total, phase), go_on)
        plan = builder.build_serialized_network(network, config)
        del monitor  # it must live until here
        if plan is None:
            if not go_on():
                raise KeyboardInterrupt
            raise BackendError(f"{library.title} built no engine: {located(log.cause(), order.model)}")
    return Plan(bytes(plan), None if cache is None else bytes(cache.serialize()), tuple(said))


def _add_profiles(builder: Any, config: Any, profiles: Sequence[ShapeProfile]) -> None:
    for sizes in profiles:
        profile = builder.create_optimization_profile()
        for name, (minimum, optimum, maximum) in sizes.inputs.items():
            profile.set_shape(name, minimum, optimum, maximum)
        config.add_optimization_profile(profile)


def _configure(config: Any, settings: BuildSettings, library: Library) -> None:
    generation: Generation = library.generation
    if settings.workspace_mib is not None:
        config.set_memory_pool_limit(library.trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * _MIB)
    if settings.optimization_level is not None:
        generation.set_optimization_level(config, settings.optimization_level)
    if settings.version_compatible:
        generation.make_version_compatible(config)
    if settings.hardware_compatible:
        generation.make_hardware_compatible(config)
    if settings.aux_streams is not None:
        generation.set_aux_streams(config, settings.aux_streams)
