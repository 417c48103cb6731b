"""What a repository is made of: a file with all that belongs to it, described without a runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from detr_export.graphs.inspection import inspect_onnx
from detr_export.runtimes.backends.tensorrt.sidecar import EngineSidecar, read_sidecar, sidecar_path, source_of
from detr_export.runtimes.documents import shown
from detr_export.runtimes.errors import ArtifactError, BackendError
from detr_export.runtimes.external_data import external_files
from detr_export.runtimes.files import require_regular, sha256_of_file, user_path
from detr_export.runtimes.hub import onnx_file
from detr_export.runtimes.mask_head import mask_head_file, with_mask_head
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.opening import ENGINE, ONNX, kind_of
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.session import Session, TensorSpec, is_end_to_end

PLAIN_ONNX, PLAIN_ENGINE, PYTHON = "onnxruntime", "tensorrt", "python"  # Triton's names of its backends
CODE = "model.py"  # of a model in the Python backend
MODEL, PLAN = "model.onnx", "model.plan"  # names that Triton looks for
_OWN_NAMES = (CODE, MODEL, mask_head_file(PurePosixPath(MODEL)).name, "__pycache__")
_LIBRARY = "tensorrt"  # of a sidecar; Triton does not run engines of TensorRT-RTX by itself


class Described(Session):
    """A file's inputs, outputs and metadata. It cannot run."""

    def __init__(
        self, file: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], metadata: Metadata | None
    ) -> None:
        self.source = str(file)
        self.inputs, self.outputs, self.metadata = inputs, outputs, metadata

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise BackendError(f"{self.source} was only described; open it with open_session")

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Source:
    """A model, and how Triton runs it."""

    file: Path
    backend: str  # Triton's: `PLAIN_ONNX`, `PLAIN_ENGINE` or `PYTHON`
    predictor: Predictor  # around a `Described`
    files: Mapping[str, Path]  # what is copied, by its name in the folder of a version; the model's is the first
    sha256: str  # of the model's file
    profiles: tuple[str, ...] = ()  # of an engine
    is_engine: bool = False

    @property
    def name(self) -> str:
        """Of the model's file in the folder of a version."""
        return next(iter(self.files))


def read_source(path: str | Path) -> Source:
    """Reads an ONNX file, also one on the hub, or an engine with its sidecar.

    Raises:
        ArtifactError: the file is missing, damaged, a checkpoint, or not a DETR with metadata; or something that belongs to
            it is missing or another one's.
        BackendError: neither `onnx` nor ONNX Runtime is installed, which read ONNX files.
    """
    kind = kind_of(path)
    if kind not in (ONNX, ENGINE):
        raise ArtifactError(
            f"{path} is no ONNX file and no engine; export a checkpoint first: detr-export onnx {path} -o model.onnx"
        )
    return _read_onnx(onnx_file(path)) if kind == ONNX else _read_engine(user_path(path))


def _read_onnx(file: Path) -> Source:
    def describe(other: Path) -> Session:
        found = inspect_onnx(other)
        return Described(other, found.inputs, found.outputs, found.metadata)

    predictor = Predictor(with_mask_head(file, describe(file), describe))
    files = {MODEL: file}
    if predictor.metadata.mask_head is not None:
        files[mask_head_file(Path(MODEL)).name] = mask_head_file(file)
    for name in sorted({name for graph in files.values() for name in external_files(graph, "Triton")}):
        if PurePosixPath(name).parts[0] in _OWN_NAMES:
            raise ArtifactError(
                f"{file} keeps weights in {shown(name)}, and Triton's folder has another file of that name; export it again"
            )
        files[name] = file.parent / name
    backend = PLAIN_ONNX if is_end_to_end(predictor.session) else PYTHON
    return Source(file, backend, predictor, files, sha256_of_file(file))


def _read_engine(file: Path) -> Source:
    sidecar, session = _described_engine(file)
    joined = with_mask_head(file, session, lambda other: _described_engine(other)[1], digest_of=source_of)
    predictor = Predictor(joined)
    plain = is_end_to_end(predictor.session) and sidecar.library == _LIBRARY
    if plain:
        files = {PLAN: file}
    else:
        engine = Path(f"model{file.suffix}")
        pairs = [(engine, file)]
        if predictor.metadata.mask_head is not None:
            pairs.append((mask_head_file(engine), mask_head_file(file)))
        files = {}
        for name, path in pairs:
            files |= {name.name: path, sidecar_path(name).name: sidecar_path(path)}
    return Source(
        file, PLAIN_ENGINE if plain else PYTHON, predictor, files, sidecar.sha256, tuple(sidecar.profiles), is_engine=True
    )


def _described_engine(file: Path) -> tuple[EngineSidecar, Session]:
    require_regular(file, ArtifactError)
    sidecar = read_sidecar(file)
    if sidecar is None:
        raise ArtifactError(f"{sidecar_path(file)} is missing; copy it together with the engine, which it describes")
    if sha256_of_file(file) != sidecar.sha256:
        raise ArtifactError(
            f"{file} is not the file that {sidecar_path(file).name} describes (its SHA-256 differs); copy both again, "
            "or build it again: detr-export trt"
        )
    return sidecar, Described(file, sidecar.inputs, sidecar.outputs, sidecar.metadata)
