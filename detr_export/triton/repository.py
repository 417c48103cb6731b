"""Writes a model, or one more version of it, into a model repository of Triton.

A server may poll the repository at any moment. So all is made in a folder beside the repository, where no server looks, and
moves into place when it is complete.
"""

from __future__ import annotations

import io
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from detr_export.runtimes.errors import ArtifactError, InputError, OutputError
from detr_export.runtimes.files import (
    make_folder,
    replace_folder,
    require_own_links,
    sha256_of_file,
    user_path,
    write_atomically,
    writing,
)
from detr_export.runtimes.temporary import temporary_folder
from detr_export.runtimes.triton.interface import ENCODED, Settings, digest_parameter
from detr_export.triton.config import make_config, read_config, require_same_interface, size_text, tensor_texts, to_text
from detr_export.triton.options import TritonOptions, require_name
from detr_export.triton.source import CODE, PYTHON, Source, read_source

CONFIG, LABELS, WARM_UP = "config.pbtxt", "labels.txt", "warmup"
_CODE_TEXT = '''"""Written by detr-export triton. The Python of the server needs detr-export with the model's runtime."""

from detr_export.runtimes.triton.python_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
_VERSION = re.compile(r"[1-9]\d{0,18}", re.ASCII)


@dataclass(frozen=True)
class RepositoryResult:
    """What was written."""

    path: str  # folder of the model
    name: str  # of the model in the server
    version: int
    versions: tuple[int, ...]  # that are there now
    backend: str  # Triton's
    inputs: Mapping[str, str]  # type and dimensions without the batch, by name
    outputs: Mapping[str, str]
    max_batch: int  # 0 if requests are not batched
    sha256: str  # of the model's file

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "versions": list(self.versions), "inputs": dict(self.inputs), "outputs": dict(self.outputs)}

    def summary(self) -> str:
        """Some lines for people."""
        batches = f"batches of up to {self.max_batch}" if self.max_batch else "one run a request"
        return "\n".join(
            [
                f"{self.path}  version {self.version}, backend {self.backend}, {batches}",
                *(f"  input   {name} {text}" for name, text in self.inputs.items()),
                *(f"  output  {name} {text}" for name, text in self.outputs.items()),
            ]
        )


def write_repository(model: str | Path, repository: Path, options: TritonOptions) -> RepositoryResult:
    """Writes a model into a repository.

    Args:
        model: an ONNX file, also one on the hub, or an engine with its sidecar.
        repository: the folder that a server is given. It is made if it is missing.
        options: what the user wants.

    Raises:
        ArtifactError, BackendError: as in `read_source`.
        InputError: an option is out of its range or does not apply; or another version has another interface.
        OutputError: the model or the version is there already, or cannot be written.
    """
    source = read_source(model)
    name = options.name or require_name(source.file.stem, "the name of the file")
    require_own_links(user_path(repository) / name)
    place = Path(os.path.realpath(user_path(repository))) / name
    version = options.version or 1
    _require_place(place, options)
    if options.version is not None and os.path.lexists(place):
        return _add_version(source, place, version, options)

    config = make_config(source, options, name, version)
    with _made_beside(place) as new:
        _write_version(source, new / str(version))
        (new / LABELS).write_text(_labels(source), encoding="utf-8")
        if options.form == ENCODED:
            for size in options.warm_up:
                _write_warm_up(new / WARM_UP / size_text(size), size)
        (new / CONFIG).write_text(to_text(config), encoding="utf-8")
        _move(new, place, place.parent)
    return _result(source, place, version, config)


def _require_place(place: Path, options: TritonOptions) -> None:
    """Refuses a place that is taken, before any work is done."""
    if not os.path.lexists(place):
        return
    if place.is_symlink() or not (place / CONFIG).is_file():
        raise OutputError(f"{place} is there and is no model of a repository; give another --name")
    versions = _versions(place)
    if options.version is None and not options.overwrite:
        raise OutputError(
            f"{place} is there, with the versions {', '.join(map(str, versions)) or 'none'}; add --version "
            f"{max(versions, default=0) + 1} for one more, or --overwrite to replace all of it"
        )
    if options.version in versions and not options.overwrite:
        raise OutputError(f"{place / str(options.version)} is there; add --overwrite, or give another --version")


def _add_version(source: Source, place: Path, version: int, options: TritonOptions) -> RepositoryResult:
    """Adds a version to a model that is there, or replaces one. Its configuration stays; it only gets one more digest."""
    given = options.shared()
    if given:
        raise InputError(
            f"{place / CONFIG} is there, and the versions of a model share it; leave {', '.join(given)} out, edit it, or "
            "give another --name"
        )
    text, found = read_config(place / CONFIG)
    parameters = {key: item.string_value for key, item in found.parameters.items()}
    kept: dict[str, Any] = {}
    if source.backend == PYTHON and found.backend == PYTHON:
        settings = Settings.from_parameters(parameters)
        kept = {"task": settings.task, "form": settings.form, "device": settings.device}
    if found.max_batch_size > 0:
        kept["max_batch"] = found.max_batch_size
    wanted = make_config(source, TritonOptions(**kept), found.name, version)
    require_same_interface(found, wanted, place / CONFIG)
    key = digest_parameter(version)
    if parameters.get(key) != source.sha256:  # appended, so that comments stay; the last entry of a key counts
        text = text.rstrip("\n") + f'\nparameters {{\n  key: "{key}"\n  value {{ string_value: "{source.sha256}" }}\n}}\n'
    with _made_beside(place) as new:
        _write_version(source, new / str(version))
        # The digest comes first: a server that polls must not meet a version without one.
        _replace_text(place / CONFIG, text, new.parent)
        _move(new / str(version), place / str(version), place.parent)
    return _result(source, place, version, found)


@contextmanager
def _made_beside(place: Path) -> Iterator[Path]:
    """Yields a new folder of a model, which nobody polls and which goes away; the repository is there after that.

    Raises:
        OutputError: the repository or the folder beside it cannot be written to, or they are not on one file system.
    """
    repository = place.parent
    make_folder(repository)
    try:
        if os.stat(repository).st_dev != os.stat(repository.parent).st_dev:
            raise OutputError(
                f"{repository} is the root of a file system, so that nothing can be made beside it and moved in; give a "
                "folder below it, or another one, and copy what is there"
            )
        temporary = temporary_folder(beside=repository)
    except OSError as error:
        raise OutputError(f"cannot write to {repository.parent}: {error.strerror or error}") from error
    with temporary as folder, writing(place):
        new = folder / place.name
        new.mkdir()
        yield new


def _move(new: Path, place: Path, repository: Path) -> None:
    """Moves a folder into place. One that is there waits beside the repository meanwhile, where no server looks."""
    replace_folder(new, place, repository.with_name(f".{place.name}-{secrets.token_hex(6)}"))


def _replace_text(file: Path, text: str, folder: Path) -> None:
    """Replaces a file in one move, by way of a folder that is not in the repository."""
    new = write_atomically(folder / file.name, text.encode())
    os.replace(new, file)


def _write_version(source: Source, folder: Path) -> None:
    """Copies the model and what belongs to it, and looks at the copies."""
    folder.mkdir()
    for name, path in source.files.items():
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        wanted = source.sha256 if name == source.name else sha256_of_file(path)
        if sha256_of_file(copy) != wanted:
            raise ArtifactError(f"{path} changed while it was copied, or the copy is damaged; try again")
    if source.backend == PYTHON:
        (folder / CODE).write_text(_CODE_TEXT, encoding="utf-8")


def _labels(source: Source) -> str:
    """The names of the classes, one a line: the line after N others is the name of class N. A line may be empty.

    Raises:
        ArtifactError: a name takes several lines.
    """
    names = source.predictor.id2label
    for label, name in names.items():
        if len(f"{name}.".splitlines()) != 1:
            raise ArtifactError(f"the class {label} is named {name!r:.80}; expected one line; correct the checkpoint")
    return "".join(f"{names.get(label, '')}\n" for label in range(max(names, default=-1) + 1))


def _write_warm_up(file: Path, size: tuple[int, int]) -> None:
    """A grey PNG in the form of Triton's tensors of text: its length in four bytes, and itself."""
    stream = io.BytesIO()
    Image.new("RGB", (size[1], size[0]), (128, 128, 128)).save(stream, "PNG")
    content = stream.getvalue()
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(len(content).to_bytes(4, "little") + content)


def _versions(place: Path) -> tuple[int, ...]:
    return tuple(sorted(int(entry.name) for entry in place.iterdir() if _VERSION.fullmatch(entry.name) and entry.is_dir()))


def _result(source: Source, place: Path, version: int, config: Any) -> RepositoryResult:
    return RepositoryResult(
        path=str(place),
        name=place.name,
        version=version,
        versions=_versions(place),
        backend=source.backend,
        inputs=tensor_texts(config.input),
        outputs=tensor_texts(config.output),
        max_batch=config.max_batch_size,
        sha256=source.sha256,
    )
