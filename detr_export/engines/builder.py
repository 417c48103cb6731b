"""From an ONNX file to a TensorRT plan: the calls to TensorRT's builder, with progress and a way to cancel it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detr_export.engines.options import BuildSettings
from detr_export.runtimes.backends.cuda.memory import CudaDevice
from detr_export.runtimes.backends.tensorrt import api as tensorrt_api
from detr_export.runtimes.backends.tensorrt.profiles import ShapeProfile
from detr_export.runtimes.errors import ArtifactError, BackendError
from detr_export.runtimes.progress import SILENT, Progress

_MIB = 1 << 20
_POLL_SECONDS = 0.1  # how soon Ctrl-C is seen
_CANCEL_SECONDS = 60.0  # a step takes seconds, and TensorRT asks only between two steps whether to go on


@dataclass(frozen=True)
class Plan:
    """What was built."""

    content: bytes
    timing_cache: bytes


def build_plan(
    onnx_file: Path,
    profiles: Sequence[ShapeProfile],
    precision: str,
    settings: BuildSettings,
    device: CudaDevice,
    timing_cache: bytes = b"",
    progress: Progress = SILENT,
) -> Plan:
    """Builds a plan. Ctrl-C cancels the build. TensorRT before 10 cannot cancel; there Ctrl-C does not wait for its end.

    Args:
        onnx_file: the graph; from TensorRT 10 on its types are the engine's.
        profiles: shapes of all inputs.
        precision: of the graph, "fp32", "fp16" or "int8".
        settings: of the builder.
        device: the GPU that is built on and for.
        timing_cache: what an earlier build measured.
        progress: is told the steps of each phase of the build.

    Raises:
        ArtifactError: TensorRT does not read the graph.
        BackendError: the build failed; the message ends in TensorRT's reason.
        KeyboardInterrupt: it was cancelled.
    """
    cancelled = threading.Event()
    outcome: list[Plan | BaseException] = []

    def work() -> None:
        try:
            with device.active():
                plan = _build(
                    onnx_file, profiles, precision, settings, timing_cache, progress, lambda: not cancelled.is_set()
                )
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
        if tensorrt_api.generation().cancels_builds:
            builder_thread.join(_CANCEL_SECONDS)
        raise
    result = outcome[0]
    if isinstance(result, BaseException):
        raise result
    return result


def _build(
    onnx_file: Path,
    profiles: Sequence[ShapeProfile],
    precision: str,
    settings: BuildSettings,
    timing_cache: bytes,
    progress: Progress,
    go_on: Callable[[], bool],
) -> Plan:
    # Read the graph.
    trt, log, generation = tensorrt_api.trt, tensorrt_api.log, tensorrt_api.generation()
    log.errors.clear()
    builder = trt.Builder(log)
    network = generation.create_network(builder)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_file)):
        reasons = []
        for index in range(parser.num_errors):
            parser_error = parser.get_error(index)
            reasons.append(parser_error.desc())
        raise ArtifactError(f"TensorRT {trt.__version__} does not read {onnx_file}: {'; '.join(reasons) or log.cause()}")

    # Set precision, options, shapes and timing cache.
    config = builder.create_builder_config()
    generation.set_precision(config, network, precision)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # without it the precisions cannot be read back
    _configure(config, settings, generation)
    for sizes in profiles:
        profile = builder.create_optimization_profile()
        for name, (minimum, optimum, maximum) in sizes.inputs.items():
            profile.set_shape(name, minimum, optimum, maximum)
        config.add_optimization_profile(profile)
    cache = config.create_timing_cache(timing_cache)
    if cache is None or not config.set_timing_cache(cache, False):
        raise BackendError(
            f"the timing cache is of another GPU or TensorRT, or damaged: {log.cause()}; give another --timing-cache file"
        )

    # Build.
    monitor = generation.watch(config, lambda phase, done, total: progress.step(done, total, phase), go_on)
    plan = builder.build_serialized_network(network, config)
    del monitor  # it must live until here
    if plan is None:
        if not go_on():
            raise KeyboardInterrupt
        raise BackendError(f"TensorRT built no engine: {log.cause()}")
    return Plan(bytes(plan), bytes(cache.serialize()))


def _configure(config: Any, settings: BuildSettings, generation: tensorrt_api.Generation) -> None:
    if settings.workspace_mib is not None:
        config.set_memory_pool_limit(tensorrt_api.trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * _MIB)
    if settings.optimization_level is not None:
        generation.set_optimization_level(config, settings.optimization_level)
    if settings.version_compatible:
        generation.make_version_compatible(config)
    if settings.hardware_compatible:
        generation.make_hardware_compatible(config)
    if settings.aux_streams is not None:
        generation.set_aux_streams(config, settings.aux_streams)
