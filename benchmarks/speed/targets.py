"""What is measured: `BACKEND:MODEL`; or a path alone, whose suffix decides the backend."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from detr_export.runtimes.errors import ArtifactError, BackendError, DetrError, InputError, missing_extra
from detr_export.runtimes.files import user_path
from detr_export.runtimes.hub import onnx_file
from detr_export.runtimes.mask_head import mask_head_file
from detr_export.runtimes.opening import ENGINE_SUFFIXES


@dataclass(frozen=True)
class Backend:
    """What a backend needs, and what it opens."""

    package: str  # that is imported
    extra: str  # that installs the package
    opens: str  # "checkpoint", "onnx" or "engine"
    device: str = "cpu"

    @property
    def example(self) -> str:
        """What to type for the model."""
        return {"checkpoint": "CHECKPOINT", "onnx": "FILE.onnx", "engine": "FILE.engine"}[self.opens]


# The names that end in -fp16 compute in PyTorch's autocast. A file has its precision in itself.
BACKENDS = {
    "torch": Backend("torch", "export", "checkpoint"),
    "torch-compile": Backend("torch", "export", "checkpoint"),
    "ort": Backend("onnxruntime", "cpu", "onnx"),
    "ort-cuda": Backend("onnxruntime", "gpu", "onnx", device="cuda"),
    "ort-tensorrt": Backend("onnxruntime", "gpu", "onnx", device="cuda"),
    "ort-tensorrt-rtx": Backend("onnxruntime", "gpu", "onnx", device="cuda"),
    "transformers": Backend("transformers", "oracle", "checkpoint"),
    "tensorrt": Backend("tensorrt", "trt", "engine", device="cuda"),
    "openvino": Backend("openvino", "bench", "onnx"),
    "torch-cuda": Backend("torch", "export", "checkpoint", device="cuda"),
    "torch-cuda-fp16": Backend("torch", "export", "checkpoint", device="cuda"),
    "torch-compile-cuda-fp16": Backend("torch", "export", "checkpoint", device="cuda"),
}
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")


@dataclass(frozen=True)
class Target:
    """A model and the backend that runs it."""

    backend: str  # of `BACKENDS`
    source: str  # a file, folder, hub id or `demo`
    name: str  # what the report calls it, different for each target of a run
    timed: bool = True  # False: it only gives the outputs that others are compared with
    again: bool = False  # True: the baseline once more, for the noise; its scores and its profile are not asked for
    lean_input: bool = False  # True: inputs lie in page-locked memory, and a checkpoint on a GPU takes uint8 images

    @property
    def onnx(self) -> Path | None:
        """The ONNX file, None for a checkpoint."""
        return user_path(self.source) if BACKENDS[self.backend].opens == "onnx" else None

    def is_same_as(self, other: Target) -> bool:
        """Whether the other is this model in this backend under another name."""
        return self.name != other.name and replace(self, name=other.name) == other


def parse_target(text: str, cuda: bool = False) -> list[Target]:
    """Reads what stands on the command line.

    Args:
        text: `BACKEND:MODEL`, or a model alone: an ONNX file is for `ort`, and with `cuda` for `ort-cuda` as well; an
            engine is for `tensorrt`, and everything else is a checkpoint for `torch`.
        cuda: whether there is a GPU that ONNX Runtime can use.

    Raises:
        InputError: the backend is none of `BACKENDS`, or the model is left out.
        ArtifactError: a file on the hub cannot be fetched.
    """
    backend, colon, source = text.partition(":")
    # A drive letter and a file with a colon in its name are no backends.
    if colon and len(backend) > 1 and not os.path.exists(user_path(text)):
        if backend not in BACKENDS:
            raise InputError(f"{text}: there is no backend {backend!r}; expected one of {', '.join(BACKENDS)}, or a path")
        if not source:
            raise InputError(f"{text} names no model; expected {backend}:{BACKENDS[backend].example}")
        return [_target(backend, source)]
    backends = ["torch"]
    if text.endswith(ENGINE_SUFFIXES):
        backends = ["tensorrt"]
    elif text.endswith(".onnx"):
        backends = ["ort", *(["ort-cuda"] if cuda else [])]
    return [_target(backend, text) for backend in backends]


def demo_targets(checkpoint: str, directory: Path, onnx: Path, cuda: bool = False) -> list[Target]:
    """One model in every backend that is installed, the peers last.

    Args:
        checkpoint: what `load_checkpoint` takes.
        directory: where the checkpoint lies, for transformers.
        onnx: the file that was exported from it.
        cuda: as in `parse_target`.
    """
    wanted = [
        ("torch", checkpoint),
        *([("torch-compile", checkpoint)] if has_compiler() else []),
        ("ort", str(onnx)),
        *([("ort-cuda", str(onnx))] if cuda else []),
        ("openvino", str(onnx)),
        ("transformers", str(directory)),
    ]
    return [
        Target(backend, source, f"{backend}:{checkpoint}")
        for backend, source in wanted
        if importlib.util.find_spec(BACKENDS[backend].package) is not None
    ]


def require_runnable(target: Target) -> None:
    """Refuses a target that does not exist or whose backend is not installed, before a process is started for it.

    A checkpoint for PyTorch may be a hub id, so only its reader can say whether it exists. Whether there is a GPU is for the
    backend to say.

    Raises:
        ArtifactError: the file or folder does not exist.
        BackendError: the package is not installed, or torch.compile finds no compiler.
    """
    backend = BACKENDS[target.backend]
    if importlib.util.find_spec(backend.package) is None:
        raise missing_extra(backend.package, backend.extra)
    path = user_path(target.source)
    if backend.opens != "checkpoint" and not path.is_file():
        kind = "an ONNX file" if backend.opens == "onnx" else "a TensorRT engine"
        raise ArtifactError(f"{path} does not exist or is not a file; expected {kind}")
    if target.backend == "transformers" and not path.is_dir():
        raise ArtifactError(f"{path} is not a folder; transformers is given a checkpoint's folder, with its config.json")
    if target.backend == "torch-compile" and not has_compiler():
        raise BackendError("torch.compile needs a C++ compiler and there is none; install g++, or name it in CXX")


def distinct(targets: Sequence[Target]) -> list[Target]:
    """The same targets under names that differ: with the whole source where its last part is not enough, then with a number.

    A target that was given twice is measured twice. If it is the baseline, the noise comes from these two.
    """
    repeated = {name for name, count in Counter(target.name for target in targets).items() if count > 1}
    named = [
        replace(target, name=f"{target.backend}:{target.source}") if target.name in repeated else target
        for target in targets
    ]
    seen: Counter[str] = Counter()
    result = []
    for target in named:
        seen[target.name] += 1
        number = seen[target.name]
        result.append(target if number == 1 else replace(target, name=f"{target.name}#{number}"))
    return result


def find_baseline(wanted: str, targets: Sequence[Target]) -> Target:
    """The target that a name stands for: its name in the report, what was typed, or its backend if only one has it.

    Raises:
        InputError: none or several.
    """
    exact = [target for target in targets if wanted in (target.name, f"{target.backend}:{target.source}")]
    loose = [target for target in targets if wanted in (target.backend, target.source)]
    found = exact[:1] or loose
    if len(found) != 1:
        names = ", ".join(target.name for target in targets)
        raise InputError(
            f"baseline {wanted!r} is {'none' if not found else 'several'} of the targets; expected one of {names}"
        )
    return found[0]


def file_bytes(source: str) -> int | None:
    """Size of a file with its mask head, or of the weights in a folder; None for what is not on disk."""
    path = user_path(source)
    if path.is_file():
        return sum(file.stat().st_size for file in (path, mask_head_file(path)) if file.is_file())
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir() if file.suffix in _WEIGHT_SUFFIXES) or None
    return None


def has_compiler() -> bool:
    """Whether there is the C++ compiler that torch.compile calls on a CPU."""
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in ((named,) if named else ("g++", "clang++", "c++")))


def check_targets(texts: Sequence[str], cuda: bool = False) -> tuple[list[Target], list[tuple[str, str]]]:
    """Reads all targets. Returns those that could be read, with distinct names, and (text, error) of the others."""
    targets: list[Target] = []
    errors: list[tuple[str, str]] = []
    for text in texts:
        found, error = _parsed(text, cuda)
        targets += found
        errors += [(text, error)] if error else []
    return distinct(targets), errors


def _parsed(text: str, cuda: bool) -> tuple[list[Target], str | None]:
    try:
        return parse_target(text, cuda), None
    except DetrError as error:
        return [], str(error)


def _target(backend: str, source: str) -> Target:
    """A target under its usual name. An ONNX file on the hub is fetched."""
    local = BACKENDS[backend].opens != "onnx" or os.path.exists(user_path(source))
    return Target(backend, source if local else str(onnx_file(source)), _name(backend, source))


def _name(backend: str, source: str) -> str:
    """The backend and the last part of a path; a hub id stays whole."""
    path = user_path(source)
    on_disk = os.path.exists(path) or BACKENDS[backend].opens != "checkpoint" or path.is_absolute()
    return f"{backend}:{path.name if on_disk and path.name else source}"
