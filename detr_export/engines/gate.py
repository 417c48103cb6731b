"""The gate of an engine: it must give the checkpoint's numbers at the corners of every profile.

Each profile is run at its smallest, its tuned and its largest size. An engine that was compiled where it cannot run goes
through the gate later, on its GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from detr_export.engines.image_gate import compare_end_to_end_engine
from detr_export.engines.ladder import step_after
from detr_export.engines.options import gpu_number
from detr_export.loading import reference_of_file
from detr_export.runtimes.backends.tensorrt.profiles import EngineProfile, parse_profile
from detr_export.runtimes.backends.tensorrt.sidecar import (
    EngineSidecar,
    read_sidecar,
    sidecar_path,
    source_of,
    write_sidecar,
)
from detr_export.runtimes.errors import ArtifactError, VerificationError
from detr_export.runtimes.files import user_path
from detr_export.runtimes.mask_head import mask_head_file, with_mask_head
from detr_export.runtimes.progress import SILENT, Progress
from detr_export.verification.cases import Case, cases_of_size
from detr_export.verification.comparison import Parity, compare
from detr_export.verification.end_to_end import EndToEndParity
from detr_export.verification.reference import Reference, reference_of


def engine_grid(profiles: Sequence[EngineProfile]) -> list[Case]:
    """The cases for profiles, each size once."""
    sizes = dict.fromkeys(size for profile in profiles for size in (profile.minimum, profile.optimum, profile.maximum))
    return [case for size in sizes for case in cases_of_size(*size)]


def require_engine(parity: Parity | EndToEndParity, name: str, step: str) -> None:
    """Refuses an engine that disagrees with its checkpoint.

    Args:
        parity: from `compare_engine`.
        name: the engine, for the message.
        step: the name of its step of the ladder, or its precision.

    Raises:
        VerificationError: says how far it is off, and which layers to keep in fp32 next.
    """
    if parity.passed:
        return
    following = step_after(step)
    advice = (
        f"next keep {following.kept} in fp32, which --fallback tries by itself"
        if following is not None
        else "this TensorRT computes the graph wrongly on this GPU: run detr-export doctor, and try another version"
    )
    raise VerificationError(f"{name} disagrees with its checkpoint: {parity.disagreement()}; {advice}")


def require_judgeable(precision: str, name: str) -> None:
    """Refuses to compare what cannot be judged number by number.

    Raises:
        ArtifactError: it is int8.
    """
    if precision == "int8":
        raise ArtifactError(
            f"{name} computes in int8, which no comparison of numbers can judge; add --no-verify to a build, and measure "
            "its accuracy with: detr-export evaluate"
        )


def compare_engine(
    engine: Path, sidecar: EngineSidecar, reference: Reference, device: str, progress: Progress = SILENT
) -> Parity | EndToEndParity:
    """Runs an engine in the corners of its profiles, and compares it with its checkpoint.

    Args:
        engine: the file; its sidecar lies beside it.
        sidecar: the content of the sidecar.
        reference: the checkpoint.
        device: `cuda` or `cuda:N`.
        progress: is told each case.

    Raises:
        ArtifactError, BackendError: as in `TensorRTSession`.
        ArtifactError, VerificationError: as in `compare_end_to_end_engine`, for an end-to-end engine.
    """
    from detr_export.runtimes.backends.tensorrt.session import TensorRTSession

    profiles = [parse_profile(text) for text in sidecar.profiles]

    def open_file(file: Path) -> TensorRTSession:
        return TensorRTSession(file, device, contexts=1)

    with with_mask_head(engine, open_file(engine), open_file, digest_of=source_of) as candidate:
        if sidecar.metadata.end_to_end is not None:
            return compare_end_to_end_engine(candidate, sidecar.metadata, profiles, reference, progress)
        return compare(candidate, reference, engine_grid(profiles), progress)


def verified(sidecar: EngineSidecar, parity: Parity | EndToEndParity) -> EngineSidecar:
    """The sidecar of an engine that has passed the gate."""
    return replace(sidecar, verified=True, metadata=replace(sidecar.metadata, parity=parity.to_dict()))


def verify_engine(
    engine: str | Path,
    checkpoint: str | None = None,
    device: str = "cuda",
    dilation: bool | None = None,
    revision: str | None = None,
    progress: Progress = SILENT,
) -> Parity | EndToEndParity:
    """Puts an engine through the gate on this machine, and completes its sidecar.

    Args:
        engine: the file, with its sidecar beside it.
        checkpoint: what it must agree with; the checkpoint that its ONNX file came from when None.
        device: `cuda` or `cuda:N`.
        dilation, revision: as in `load_checkpoint`.
        progress: is told each case.

    Raises:
        ArtifactError: the engine or its sidecar is missing or damaged, or they do not belong together.
        BackendError: the GPU or the library is missing, or is not what the engine was built for.
        CheckpointError: the checkpoint is missing, damaged, or not a DETR.
        VerificationError: they disagree; the sidecar stays as it was.
        OutputError: the sidecar cannot be written.
    """
    file = user_path(engine)
    gpu_number(device)
    if not file.is_file():
        raise ArtifactError(f"{file} does not exist or is not a file")
    sidecar = read_sidecar(file)
    if sidecar is None:
        raise ArtifactError(f"{sidecar_path(file)} is missing; copy it together with the engine")
    require_judgeable(sidecar.precision, file.name)
    from detr_export.runtimes.backends.tensorrt.session import TensorRTSession

    TensorRTSession(file, device, contexts=1).close()  # whether it opens is known at once, the reference takes a minute
    reference = reference_of(reference_of_file(file, sidecar, checkpoint, dilation, revision, progress))
    parity = compare_engine(file, sidecar, reference, device, progress)
    require_engine(parity, file.name, sidecar.fallback or sidecar.precision)
    for engine_file in (mask_head_file(file), file) if sidecar.metadata.mask_head is not None else (file,):
        described = read_sidecar(engine_file)
        assert described is not None  # it was opened just now
        write_sidecar(engine_file, verified(described, parity))
    return parity
