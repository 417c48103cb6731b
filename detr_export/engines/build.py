"""From an ONNX file to an engine. It is written only after its precision and its numbers were checked.

TensorRT-RTX also compiles where no GPU is. Then the numbers cannot be checked, and the sidecar says so.

The engine is a plain plan, which trtexec and C++ read. Everything else about it lies beside it in `<engine>.json`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import onnx

from detr_export.engines.attestation import Attestation, attest, graph_precision, node_precisions
from detr_export.engines.builder import BuildOrder, Plan, build_plan
from detr_export.engines.gate import compare_engine, require_engine, require_judgeable, verified
from detr_export.engines.image_gate import require_comparable
from detr_export.engines.kernels import KernelReport, kernel_report
from detr_export.engines.ladder import LADDER, Step
from detr_export.engines.lock import build_lock
from detr_export.engines.options import EngineOptions
from detr_export.engines.place import Place, find_place
from detr_export.engines.records import Kernel, kernels_of_inspector, kernels_of_log
from detr_export.engines.result import EngineResult
from detr_export.engines.source import make_graph
from detr_export.graphs.inspection import Inspection, inspect_onnx
from detr_export.graphs.reading import load_graph
from detr_export.graphs.tensorrt import readable_graph
from detr_export.loading import reference_of_file
from detr_export.runtimes.backends.tensorrt.end_to_end import profiles_of_file, require_readable
from detr_export.runtimes.backends.tensorrt.profiles import EngineProfile, shape_profile, single_images
from detr_export.runtimes.backends.tensorrt.sidecar import EngineSidecar, read_sidecar, write_sidecar
from detr_export.runtimes.errors import ArtifactError, BackendError, OutputError, VerificationError
from detr_export.runtimes.files import require_writable, write_atomically
from detr_export.runtimes.mask_head import mask_head_file, require_mask_head, require_no_mask_head
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.opening import ENGINE_SUFFIXES
from detr_export.runtimes.progress import SILENT, Progress
from detr_export.runtimes.temporary import temporary_folder
from detr_export.verification.comparison import Parity
from detr_export.verification.end_to_end import EndToEndParity
from detr_export.verification.reference import Reference, reference_of


def build_engine(
    onnx_file: str | Path,
    output: str | Path,
    options: EngineOptions | None = None,
    progress: Progress = SILENT,
    step: str | None = None,
    fell_back: bool = False,
) -> EngineResult:
    """Builds an engine, checks its precision, compares it with its checkpoint, and only then writes it and its sidecar.

    Args:
        onnx_file: from `export_onnx`; its metadata states the precision, and its graph has it.
        output: the file to write, `.engine`, `.plan` or `.trt`.
        options: defaults when None.
        progress: is told each stage, and the steps of TensorRT's builder.
        step: the name of the ladder's step that the graph is, when it is one of several that are tried.
        fell_back: whether an earlier step was tried and failed, which the sidecar then records.

    Raises:
        OutputError: the output exists, or its folder cannot be written.
        ArtifactError: the ONNX file is not detr-export's, or TensorRT does not read it.
        AttestationError: the engine computes in another precision than the graph; nothing was written.
        VerificationError: the engine disagrees with the checkpoint; nothing was written.
        BackendError: no GPU or no TensorRT, an option that it does not have, or the build failed.
        InputError: no profile can be derived from the processor's settings.
    """
    options = options or EngineOptions()
    target = Path(output)
    _require_target(target, options.overwrite)
    order = _read_order(Path(onnx_file), options)
    if order.mask_head is not None:
        require_writable(mask_head_file(target), options.overwrite)
    reference = None
    if order.compares:
        if order.metadata.end_to_end is not None:
            require_comparable(replace(order.metadata, precision=order.precision))
        require_judgeable(order.precision, str(onnx_file))
        reference = reference_of(reference_of_file(onnx_file, order.about, options.checkpoint, progress=progress))

    with build_lock(order.key, progress, "waiting for another process that builds the same engine"):
        if target.exists() and not options.overwrite:  # it did not when this began
            return _built_elsewhere(target, order.key)
        fallback = step if fell_back else None
        built = [_build(part, fallback, progress) for part in (order, order.mask_head) if part is not None]
        parity = None
        if reference is not None:
            parity = _compare(built, reference, options.device, progress)
            require_engine(parity, target.name, step or order.precision)
            built = [replace(item, sidecar=verified(item.sidecar, parity)) for item in built]
        # The mask head first, and sidecars first: a reader who opens them in between finds digests that differ, and refuses.
        _write(built, target)
    results = [
        EngineResult(file, len(item.plan.content), item.sidecar, parity, built_here=True, report=item.report)
        for file, item in _places(built, target)
    ]
    return results[0] if len(results) == 1 else replace(results[0], mask_head=results[1])


def build_from_source(
    source: str,
    output: str | Path,
    options: EngineOptions | None = None,
    tried: Sequence[Step] = LADDER,
    progress: Progress = SILENT,
) -> EngineResult:
    """Builds an engine from an ONNX file, or from a checkpoint that is exported on the way.

    Args:
        source: an ONNX file or a checkpoint.
        output, options, progress: as in `build_engine`.
        tried: the first of these steps that agrees with the checkpoint is built.

    Raises:
        DetrError: as in `make_graph` and `build_with_fallback`.
    """
    options = options or EngineOptions()
    place = find_place(options)  # before a minute of exporting
    if len(tried) > 1 and not (options.verify and place.runs_here):
        raise BackendError(
            "--fallback builds the first engine that agrees with its checkpoint, and here none is run; "
            "leave it out, or build on a GPU that the engine is for, without --no-verify"
        )
    with temporary_folder() as folder:
        return build_with_fallback(
            lambda step: make_graph(source, step.name, folder, progress, options.library),
            output,
            options,
            progress,
            tried,
        )


def build_with_fallback(
    make_graph: Callable[[Step], Path],
    output: str | Path,
    options: EngineOptions | None = None,
    progress: Progress = SILENT,
    tried: Sequence[Step] = LADDER,
) -> EngineResult:
    """Builds the first engine of `tried` that is attested and agrees with the checkpoint; the sidecar records which it was.

    Args:
        make_graph: gives the ONNX file of a step.
        output, options, progress: as in `build_engine`.
        tried: steps in their order.

    Raises:
        VerificationError: none agrees, or none is attested (AttestationError); the last one's.
        DetrError: as `build_engine`; only these two lead to the next step.
    """
    for number, step in enumerate(tried):
        try:
            return build_engine(make_graph(step), output, options, progress, step.name, fell_back=number > 0)
        except VerificationError as error:  # noqa: PERF203  # AttestationError, too; a build takes minutes
            if number + 1 == len(tried):
                raise
            progress.stage(f"{step.name} is not good enough, trying {tried[number + 1].name}: {error}")
    raise AssertionError("nothing to try")


@dataclass(frozen=True)
class _Order:
    """What is to be built, and for what."""

    about: Inspection  # of the ONNX file
    metadata: Metadata  # of the ONNX file
    model: onnx.ModelProto  # in a form that this TensorRT reads
    precision: str
    profiles: tuple[EngineProfile, ...]
    options: EngineOptions
    place: Place
    mask_head: _Order | None = None  # that of the file beside it, which draws the masks

    @property
    def compares(self) -> bool:
        """Whether the engine is compared with its checkpoint."""
        return self.options.verify and self.place.runs_here

    @property
    def key(self) -> str:
        """Hex SHA-256 of all that the engine depends on."""
        library, targets, tuned = self.place.library, self.place.targets, self.place.tuned_for
        gpu = [] if tuned is None else [tuned.name, tuned.compute_capability, tuned.driver]
        parts = [self.about.sha256, [str(profile) for profile in self.profiles], asdict(self.options.settings)]
        text = json.dumps([*parts, str(library), targets, gpu, self.compares], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class _Built:
    """An engine that is not written yet."""

    plan: Plan
    sidecar: EngineSidecar
    report: KernelReport | None


def _read_order(source: Path, options: EngineOptions) -> _Order:
    """Finds out what is to be built, and refuses what cannot be built."""
    place = find_place(options)
    if options.checkpoint is not None and options.verify and not place.runs_here:
        raise BackendError(
            f"the engine cannot run here, so it is not compared with {options.checkpoint}; leave --checkpoint out, and give "
            "it to detr-export verify on the engine's GPU"
        )
    about = inspect_onnx(source)
    require_no_mask_head(source, about.metadata)
    order = _read_graph(about, source, options, place)
    if order.metadata.mask_head is None:
        return order
    beside = require_mask_head(source, order.metadata.mask_head)
    mask_head = _read_graph(inspect_onnx(beside), beside, options, place)
    return replace(order, mask_head=replace(mask_head, profiles=tuple(single_images(order.profiles))))


def _read_graph(about: Inspection, source: Path, options: EngineOptions, place: Place) -> _Order:
    metadata = _require_metadata(about)
    require_readable(source, metadata, int(place.library.reads_as.split(".")[0]))
    model = readable_graph(load_graph(source), place.library.reads_as)
    precision = graph_precision(model)
    if precision != "int8" and precision != metadata.precision:
        raise ArtifactError(f"{source} says that it is {metadata.precision} and its graph is {precision}; export it again")
    profiles = options.profiles or tuple(profiles_of_file(metadata, options.max_batch))
    return _Order(about, metadata, model, precision, profiles, options, place)


def _build(order: _Order, fallback: str | None, progress: Progress) -> _Built:
    """Builds an engine and checks its precision."""
    progress.stage(f"building for {order.place} with {order.place.library}, {len(order.profiles)} profiles")
    plan = _plan(order, progress)
    logged = kernels_of_log(plan.log)
    report = kernel_report(logged, order.model, plan_bytes=len(plan.content)) if logged else None
    return _Built(plan, _describe(plan, order, _attest(plan, order, logged), report, fallback), report)


def _plan(order: _Order, progress: Progress) -> Plan:
    """Runs the builder; reads the timing cache before and writes it after."""
    options, place = order.options, order.place
    _, queries = order.metadata.ranges.get("queries", (1, None))
    with contextlib.ExitStack() as stack:
        timed = None
        if place.library.generation.has_timing_cache:
            if options.timing_cache is not None:
                shared = f"timing cache {options.timing_cache.resolve()}"
                stack.enter_context(build_lock(shared, progress, "waiting for another process that uses the timing cache"))
            timed = _read_timing_cache(options.timing_cache)
        folder = stack.enter_context(temporary_folder())
        readable = folder / Path(order.about.path).name
        onnx.save(order.model, str(readable))
        request = BuildOrder(
            library=place.library,
            onnx_file=readable,
            model=order.model,
            profiles=tuple(shape_profile(profile, order.about.inputs, queries) for profile in order.profiles),
            precision=order.precision,
            settings=options.settings,
            targets=place.targets,
            device=place.device,
            timing_cache=timed,
        )
        plan = build_plan(request, progress)
        if options.timing_cache is not None and plan.timing_cache is not None:
            write_atomically(options.timing_cache, plan.timing_cache)
    return plan


def _attest(plan: Plan, order: _Order, logged: Sequence[Kernel]) -> Attestation:
    """Checks that the engine computes in the graph's precisions.

    The engine inspector tells what TensorRT runs. TensorRT-RTX is asked nothing, because its engine may be for another GPU:
    there the builder's log has to do.
    """
    library, device = order.place.library, order.place.tuned_for
    if device is None:
        return attest(logged, node_precisions(order.model))
    with device.active():
        _runtime, engine = library.load_engine(plan.content, order.options.settings.version_compatible)
        by_profile = library.engine_layers(engine, device)
        del engine, _runtime  # while the device is active
    kernels = [kernel for index, layers in enumerate(by_profile) for kernel in kernels_of_inspector(layers, index)]
    return attest(kernels, node_precisions(order.model))


def _describe(
    plan: Plan, order: _Order, attestation: Attestation, report: KernelReport | None, fallback: str | None
) -> EngineSidecar:
    library, targets, tuned = order.place.library, order.place.targets, order.place.tuned_for
    return EngineSidecar(
        sha256=hashlib.sha256(plan.content).hexdigest(),
        source_sha256=order.about.sha256,
        build_key=order.key,
        library=library.name,
        library_version=library.version,
        cuda=None if tuned is None else tuned.driver,
        gpu=None if tuned is None else tuned.name,
        targets=targets if tuned is None else (tuned.compute_capability,),
        precision=order.precision,
        fallback=fallback,
        version_compatible=order.options.settings.version_compatible,
        hardware_compatible=order.options.settings.hardware_compatible,
        profiles=tuple(map(str, order.profiles)),
        inputs=order.about.inputs,
        outputs=order.about.outputs,
        layers=attestation.layers,
        attestation=attestation.to_dict(),
        kernels=None if report is None else report.to_dict(),
        verified=False,
        metadata=replace(order.metadata, precision=order.precision, parity=None),
    )


def _require_target(target: Path, overwrite: bool) -> None:
    if target.suffix not in ENGINE_SUFFIXES:
        raise OutputError(
            f"{target} does not end in {', '.join(ENGINE_SUFFIXES)}, and engines are known by that; name it {target}.engine"
        )
    require_writable(target, overwrite)


def _require_metadata(about: Inspection) -> Metadata:
    if about.metadata is None:
        raise ArtifactError(f"{about.path} has no detr-export metadata; export it with: detr-export onnx")
    if about.external_data:
        raise ArtifactError(f"{about.path} keeps its weights in other files; export it again with: detr-export onnx")
    return about.metadata


def _built_elsewhere(target: Path, key: str) -> EngineResult:
    sidecar = read_sidecar(target)
    if sidecar is None or sidecar.build_key != key:
        raise OutputError(f"{target} was written by another process in the meantime; add --overwrite to replace it")
    return EngineResult(target, target.stat().st_size, sidecar, None, built_here=False)


def _compare(built: Sequence[_Built], reference: Reference, device: int, progress: Progress) -> Parity | EndToEndParity:
    with temporary_folder() as folder:
        trial = folder / "trial.engine"
        _write(built, trial)
        return compare_engine(trial, built[0].sidecar, reference, f"cuda:{device}", progress)


def _places(built: Sequence[_Built], target: Path) -> list[tuple[Path, _Built]]:
    """Where each engine goes: the model's, and its mask head's."""
    return list(zip((target, mask_head_file(target)), built, strict=False))


def _write(built: Sequence[_Built], target: Path) -> None:
    for file, item in reversed(_places(built, target)):
        write_sidecar(file, item.sidecar)
        write_atomically(file, item.plan.content)


def _read_timing_cache(path: Path | None) -> bytes:
    if path is None or not path.exists():
        return b""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"the timing cache {path} cannot be read: {error.strerror or error}") from error
