"""From an ONNX file to a TensorRT engine that is attested, compared with its checkpoint, and only then written.

The engine is a plain plan, which trtexec and C++ read; what else is to be known of it lies beside it in `<engine>.json`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from detr_export.engines.attestation import attest, graph_precision, node_precisions
from detr_export.engines.gate import FALLBACKS, TOLERANCES, engine_grid, open_reference, require_engine
from detr_export.engines.lock import build_lock
from detr_export.engines.options import EngineOptions
from detr_export.graphs.inspection import Inspection, inspect_onnx
from detr_export.graphs.tensorrt import readable_graph
from detr_export.runtimes.backends.cuda import opening as cuda_opening
from detr_export.runtimes.backends.cuda.memory import CudaDevice
from detr_export.runtimes.backends.tensorrt.profiles import EngineProfile, default_profiles, shape_profile
from detr_export.runtimes.backends.tensorrt.sidecar import EngineSidecar, read_sidecar, write_sidecar
from detr_export.runtimes.errors import ArtifactError, OutputError, VerificationError
from detr_export.runtimes.files import require_writable, write_atomically
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.opening import ENGINE_SUFFIXES
from detr_export.runtimes.session import Session
from detr_export.verification.comparison import Parity, compare


@dataclass(frozen=True)
class EngineResult:
    """What was made."""

    path: Path
    size_bytes: int
    sidecar: EngineSidecar
    parity: Parity | None  # None when verification was switched off, or another process had built it
    built_here: bool  # False: another process was building the same engine, and this one waited for it

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "path": str(self.path),
            "size_bytes": self.size_bytes,
            "built_here": self.built_here,
            "sidecar": json.loads(self.sidecar.to_json()),
        }


def build_engine(
    onnx_file: str | Path,
    output: str | Path,
    options: EngineOptions | None = None,
    progress: Callable[[str], None] = lambda line: None,
    steps: Callable[[str, int, int], None] = lambda phase, done, count: None,
    step: str | None = None,
    fell_back: bool = False,
) -> EngineResult:
    """Builds, attests, verifies and only then writes an engine and its sidecar.

    Args:
        onnx_file: from `export_onnx`; its metadata states the precision, and its graph has it.
        output: the file to write, `.engine`, `.plan` or `.trt`.
        options: defaults when None.
        progress: called with one line for each stage.
        steps: called during the build with a phase, its steps that are done, and all its steps.
        step: which of `FALLBACKS` the graph is, when it is one of several that are tried.
        fell_back: whether an earlier step was tried and disagreed, which the sidecar then records.

    Raises:
        OutputError: the output exists, or its folder cannot be written.
        ArtifactError: the ONNX file is not detr-export's, TensorRT does not read it, or the engine is of another precision.
        VerificationError: the engine disagrees with the checkpoint; nothing was written.
        BackendError: no GPU or no TensorRT, or the build failed.
        InputError: no profile can be derived from the processor's settings.
    """
    options = options or EngineOptions()
    target, source = Path(output), Path(onnx_file)
    _require_target(target, options.overwrite)
    from detr_export.engines.builder import build_plan  # where TensorRT is missing, better said now
    from detr_export.runtimes.backends.tensorrt import api as tensorrt_api

    tensorrt_api.require_supported()
    device = cuda_opening.open_device(options.device)
    about = inspect_onnx(source)
    metadata = _require_metadata(about)
    model = readable_graph(onnx.load(str(source)), tensorrt_api.full_version())
    precision = graph_precision(model)
    if precision != "int8" and precision != metadata.precision:
        raise ArtifactError(f"{source} says that it is {metadata.precision} and its graph is {precision}; export it again")
    profiles = options.profiles or tuple(default_profiles(metadata.processor, options.max_batch))
    outputs = [spec.name for spec in about.outputs]
    reference = open_reference(metadata, outputs, options.checkpoint) if options.verify else None
    key = _build_key(about, profiles, options, tensorrt_api.full_version(), device)

    with contextlib.ExitStack() as locks:
        locks.enter_context(build_lock(key, lambda: progress("waiting for another process that builds the same engine")))
        if target.exists() and not options.overwrite:  # it did not when this began
            return _built_elsewhere(target, key)
        progress(f"building for {device.name} with TensorRT {tensorrt_api.full_version()}, {len(profiles)} profiles")
        shapes = [shape_profile(profile, about.inputs) for profile in profiles]
        if options.timing_cache is not None:
            shared = f"timing cache {options.timing_cache.resolve()}"
            locks.enter_context(
                build_lock(shared, lambda: progress("waiting for another process that uses the timing cache"))
            )
        timed = _read_timing_cache(options.timing_cache)
        with tempfile.TemporaryDirectory(prefix="detr-export-") as folder:
            readable = Path(folder) / source.name
            onnx.save(model, str(readable))
            plan = build_plan(readable, shapes, precision, options.settings, device, timed, steps)
        if options.timing_cache is not None:
            write_atomically(options.timing_cache, plan.timing_cache)
        with device.active():
            _runtime, engine = tensorrt_api.load_engine(plan.content, options.settings.version_compatible)
            layers = attest(tensorrt_api.engine_layers(engine), node_precisions(model))
            del engine, _runtime
        sidecar = EngineSidecar(
            sha256=hashlib.sha256(plan.content).hexdigest(),
            source_sha256=about.sha256,
            build_key=key,
            tensorrt=tensorrt_api.full_version(),
            cuda=device.driver,
            gpu=device.name,
            compute_capability=device.compute_capability,
            precision=precision,
            fallback=step if fell_back else None,
            version_compatible=options.settings.version_compatible,
            hardware_compatible=options.settings.hardware_compatible,
            profiles=tuple(map(str, profiles)),
            inputs=about.inputs,
            outputs=about.outputs,
            layers=layers,
            metadata=replace(metadata, precision=precision, parity=None),
        )
        parity = None
        if reference is not None:
            parity = _compare(plan.content, sidecar, reference, profiles, options.device, progress)
            require_engine(parity, target.name, step or precision)
            sidecar = replace(sidecar, metadata=replace(sidecar.metadata, parity=parity.to_dict()))
        # The sidecar first: whoever opens the pair in between finds digests that differ, and refuses.
        write_sidecar(target, sidecar)
        write_atomically(target, plan.content)
    return EngineResult(target, len(plan.content), sidecar, parity, built_here=True)


def build_with_fallback(
    make_graph: Callable[[str], Path],
    output: str | Path,
    options: EngineOptions | None = None,
    progress: Callable[[str], None] = lambda line: None,
    steps: Callable[[str, int, int], None] = lambda phase, done, count: None,
    tried: Sequence[str] = FALLBACKS,
) -> EngineResult:
    """Builds the first engine of `tried` that agrees with the checkpoint; the sidecar records which it was.

    Args:
        make_graph: gives the ONNX file of a step.
        output, options, progress, steps: as in `build_engine`.
        tried: steps in their order.

    Raises:
        VerificationError: none agrees; the last one's.
        DetrError: as `build_engine`; only a disagreement leads to the next step.
    """
    for number, step in enumerate(tried):
        try:
            return build_engine(make_graph(step), output, options, progress, steps, step, fell_back=number > 0)
        except VerificationError as error:  # noqa: PERF203  # a build takes minutes
            if number + 1 == len(tried):
                raise
            progress(f"{step} is not good enough, trying {tried[number + 1]}: {error}")
    raise AssertionError("nothing to try")


def _require_target(target: Path, overwrite: bool) -> None:
    if target.suffix not in ENGINE_SUFFIXES:
        raise OutputError(
            f"{target} does not end in {', '.join(ENGINE_SUFFIXES)}, by which engines are known; name it {target}.engine"
        )
    require_writable(target, overwrite)


def _require_metadata(about: Inspection) -> Metadata:
    if about.metadata is None:
        raise ArtifactError(f"{about.path} has no detr-export metadata; export it with: detr-export onnx")
    if about.external_data:
        raise ArtifactError(f"{about.path} keeps its weights in other files; export it again with: detr-export onnx")
    return about.metadata


def _build_key(
    about: Inspection, profiles: Sequence[EngineProfile], options: EngineOptions, tensorrt: str, device: CudaDevice
) -> str:
    """Hex SHA-256 of all that the engine depends on."""
    parts = [about.sha256, [str(profile) for profile in profiles], asdict(options.settings), tensorrt]
    text = json.dumps([*parts, device.name, device.compute_capability, device.driver, options.verify], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _built_elsewhere(target: Path, key: str) -> EngineResult:
    sidecar = read_sidecar(target)
    if sidecar is None or sidecar.build_key != key:
        raise OutputError(f"{target} was written by another process in the meantime; add --overwrite to replace it")
    return EngineResult(target, target.stat().st_size, sidecar, None, built_here=False)


def _compare(
    plan: bytes,
    sidecar: EngineSidecar,
    reference: Session,
    profiles: Sequence[EngineProfile],
    device: int,
    progress: Callable[[str], None],
) -> Parity:
    from detr_export.runtimes.backends.tensorrt.session import TensorRTSession

    with tempfile.TemporaryDirectory(prefix="detr-export-") as folder:
        trial = Path(folder) / "trial.engine"
        write_sidecar(trial, sidecar)
        write_atomically(trial, plan)
        with TensorRTSession(trial, f"cuda:{device}", contexts=1) as candidate, reference:
            return compare(
                candidate,
                reference,
                engine_grid(profiles),
                TOLERANCES[sidecar.precision],
                lambda line: progress(f"verifying {line}"),
            )


def _read_timing_cache(path: Path | None) -> bytes:
    if path is None or not path.exists():
        return b""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"the timing cache {path} cannot be read: {error.strerror or error}") from error
