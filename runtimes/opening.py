"""Which backend a file is for, and which options that backend takes.

A backend needs its framework, so it is imported here, inside the function, when a file for it is opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from detr_export.runtimes.cpu import require_threads
from detr_export.runtimes.devices import OPENVINO, parse_device
from detr_export.runtimes.errors import ArtifactError, BackendError
from detr_export.runtimes.files import user_path
from detr_export.runtimes.hub import onnx_file
from detr_export.runtimes.mask_head import with_mask_head
from detr_export.runtimes.session import Session

ONNX, ENGINE, CHECKPOINT = "onnx", "engine", "checkpoint"
ENGINE_SUFFIXES = (".engine", ".plan", ".trt")
_CHECKPOINT_SUFFIXES = (".pth", ".pt")
_NAMES = {
    ONNX: "an ONNX file",
    OPENVINO: "an ONNX file on the device openvino",
    ENGINE: "a TensorRT engine",
    CHECKPOINT: "a checkpoint",
}


@dataclass(frozen=True)
class _Option:
    """An option of `open_session` that not every backend has."""

    name: str
    kinds: tuple[str, ...]  # the kinds of file that have it; OPENVINO stands for ONNX files there
    reason: str  # why others do not have it, and what to do


_OPTIONS = (
    _Option("threads", (ONNX, OPENVINO, CHECKPOINT), "an engine runs on the GPU; leave threads out"),
    _Option(
        "attentions",
        (CHECKPOINT,),
        "a file returns its attention only when it was exported so (detr-export onnx --with-attentions); "
        "leave attentions out",
    ),
    _Option("spinning", (ONNX,), "only ONNX Runtime's threads can spin; leave spinning out"),
    _Option("revision", (ONNX, OPENVINO, CHECKPOINT), "only the hub has revisions; leave revision (--revision) out"),
    _Option("processor", (CHECKPOINT,), "a file has the processor that it was exported with; leave processor out"),
    _Option("trust_engine", (ENGINE,), "only an engine needs trust; leave trust_engine (--trust-engine) out"),
    _Option("cache", (OPENVINO,), "only OpenVINO compiles for so long that a cache pays; leave cache (--cache) out"),
    _Option("timeout", (ONNX, OPENVINO), "only an ONNX file runs in a process of its own; leave timeout (--timeout) out"),
    _Option("strict", (ENGINE,), "only an engine may be compiled where it cannot run; leave strict (--strict) out"),
)


def open_session(
    path: str | Path,
    device: str = "cpu",
    threads: Optional[int] = None,
    attentions: bool = False,
    spinning: Optional[bool] = None,
    trust_engine: bool = False,
    revision: Optional[str] = None,
    processor: Optional[str] = None,
    strict: bool = False,
    cache: str | Path | None = None,
    timeout: Optional[float] = None,
) -> Session:
    """Opens a file or checkpoint with the backend that it is for.

    Args:
        path: an `.onnx` file, also one on the hub (`org/repo/file.onnx`); a TensorRT engine (`.engine`, `.plan` or `.trt`);
            or a checkpoint: a directory, a `.pth` file or a hub id.
        device: `cpu` or `cuda[:N]`; ONNX files also take `openvino`, `tensorrt[:N]` and `tensorrt-rtx[:N]`; engines need
            `cuda[:N]`.
        threads: CPU threads of one run, for ONNX files and checkpoints, at most as many as there are cores; None takes the
            backend's default.
        attentions: for a checkpoint: also return the cross-attention that `Predictor.explain` needs.
        spinning: for an ONNX file in ONNX Runtime: whether idle threads wait busily. False suits a file that runs in turns
            with another model in one process, see `OrtSession`; None takes ONNX Runtime's default, which is True.
        trust_engine: for an engine: open it although its sidecar is missing or describes another file. An engine is
            executable code.
        revision: for a name on the hub: a branch, tag or commit.
        processor: for a checkpoint: whose pixels it gets, `pil` or `torchvision`; None takes what the checkpoint names.
        strict: for an engine: refuse it if it was never compared with its checkpoint. Else a warning says so.
        cache: for an ONNX file on the device openvino: a folder for compiled models, from which a file opens faster the next
            time. They are code for the CPU, so nobody else should be able to write there.
        timeout: for an ONNX file: run it in a process of its own, which is ended when a run takes longer than so many
            seconds for each image; that image then is an ImageError. It is for files of strangers, see `TimedSession`.

    Raises:
        ArtifactError: the file is missing, damaged or of an unknown kind.
        CheckpointError: the checkpoint is missing, damaged or not a DETR.
        BackendError: the device or an extra is missing, or the file's kind does not have an option that was given.
        InputError: there are fewer cores than `threads`, or `timeout` is out of range.
        OutputError: the cache cannot be written to.
    """
    kind = kind_of(path)
    given = {
        "threads": threads is not None,
        "attentions": attentions,
        "spinning": spinning is not None,
        "revision": revision is not None,
        "trust_engine": trust_engine,
        "processor": processor is not None,
        "strict": strict,
        "cache": cache is not None,
        "timeout": timeout is not None,
    }
    place = OPENVINO if kind == ONNX and parse_device(device).kind == OPENVINO else kind
    for option in _OPTIONS:
        if given[option.name] and place not in option.kinds:
            raise BackendError(f"{path} is {_NAMES[place]}, which does not take {option.name}: {option.reason}")

    require_threads(threads)

    if timeout is not None:
        from detr_export.runtimes.timed_session import TimedSession, require_timeout

        require_timeout(timeout)
        file = onnx_file(path, revision)  # a download is not a part of what is timed
        arguments = {"path": str(file), "device": device, "threads": threads, "spinning": spinning}
        return TimedSession(str(file), {**arguments, "cache": None if cache is None else str(cache)}, timeout)
    if place == OPENVINO:
        from detr_export.runtimes.backends.openvino.session import OpenVinoSession

        return _open_onnx(path, revision, lambda file: OpenVinoSession(file, device, threads, cache))
    if kind == ONNX:
        from detr_export.runtimes.backends.ort.session import OrtSession

        return _open_onnx(path, revision, lambda file: OrtSession(file, device, threads, spinning=spinning is not False))
    if kind == ENGINE:
        from detr_export.runtimes.backends.tensorrt.admission import check_verified
        from detr_export.runtimes.backends.tensorrt.session import TensorRTSession
        from detr_export.runtimes.backends.tensorrt.sidecar import source_of

        file = user_path(path)
        check_verified(file, strict)
        engine = TensorRTSession(file, device, trust_engine)
        return with_mask_head(file, engine, lambda other: TensorRTSession(other, device, trust_engine), digest_of=source_of)
    from detr_export.runtimes.backends.torch_session import TorchSession

    return TorchSession.open(path, device, threads, attentions=attentions, revision=revision, processor=processor)


def _open_onnx(path: str | Path, revision: Optional[str], open_file: Callable[[Path], Session]) -> Session:
    """Opens an ONNX file, with its mask head where it has one."""
    file = onnx_file(path, revision)
    return with_mask_head(file, open_file(file), open_file)


def spins(path: str | Path, device: str) -> bool:
    """Whether idle threads wait busily unless `open_session` gets `spinning=False`: ONNX Runtime's do.

    Raises:
        ArtifactError: as in `kind_of`.
        BackendError: there is no such device.
    """
    return kind_of(path) == ONNX and parse_device(device).kind != OPENVINO


def kind_of(path: str | Path) -> str:
    """What a path is the path of: `ONNX`, `ENGINE` or `CHECKPOINT`. A name that is no file's may be a hub id.

    Raises:
        ArtifactError: it is a file of an unknown kind.
    """
    file = user_path(path)
    if file.suffix == ".onnx":
        return ONNX
    if file.suffix in ENGINE_SUFFIXES:
        return ENGINE
    if os.path.isfile(file) and file.suffix not in _CHECKPOINT_SUFFIXES:
        raise ArtifactError(
            f"{file} is neither an .onnx file nor a checkpoint (a directory, a .pth file, a hub id) "
            f"nor an engine ({', '.join(ENGINE_SUFFIXES)})"
        )
    return CHECKPOINT
