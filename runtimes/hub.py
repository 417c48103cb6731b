"""Files on the Hugging Face hub, through its cache and in its offline mode; and what the hub's errors mean.

`huggingface_hub` is imported here alone in `runtimes`, and only when a name of the hub was given. It follows the environment
variables `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE` and `HF_TOKEN`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Optional, Union

from detr_export.runtimes.errors import ArtifactError, BackendError, DetrError, missing_extra
from detr_export.runtimes.fetching import require_secure
from detr_export.runtimes.files import user_path
from detr_export.runtimes.limits import require_at_most
from detr_export.runtimes.mask_head import mask_head_file

# A repository, which is two names, and a path inside it. No part begins like a path of this machine.
_PART = r"(?![.~-])[\w.-]+"
_ONNX_NAME = re.compile(rf"({_PART}/{_PART})/((?:{_PART}/)*{_PART}\.onnx)", re.ASCII)
_REPOSITORY = re.compile(rf"{_PART}/{_PART}", re.ASCII)
# How protobuf writes the entry `location` of a tensor whose values lie in another file; the length of the name comes next.
_LOCATION = re.compile(rb"\n\x08location\x12([\x01-\x7f])", re.DOTALL)
_MASK_HEAD = re.compile(rb'"mask_head": "[0-9a-f]{64}"')  # as `Metadata.to_json` writes it


def onnx_file(name: str | Path, revision: Optional[str] = None) -> Path:
    """Where an ONNX file lies on this machine. `org/repo/file.onnx` is fetched from the hub if no such file exists here.

    Args:
        name: a path, or a repository on the hub and a path inside it. A `Path` object never means the hub.
        revision: a branch, tag or commit on the hub.

    Returns:
        The path. Under a name that cannot be the hub's the file need not exist; whoever opens it says so.

    Raises:
        ArtifactError: the file is not on the hub, cannot be fetched, or keeps its weights in another file; or it is on this
            machine and has no revisions.
        BackendError: huggingface_hub is not installed.
    """
    file = user_path(name)
    match = _ONNX_NAME.fullmatch(name) if isinstance(name, str) else None
    if os.path.exists(file):
        if revision is not None:
            raise ArtifactError(f"{file} is a file; --revision goes with a file on the hub: org/repo/file.onnx")
        return file
    if match is None:
        return file
    repository, inside = match.groups()
    file = _fetched(str(name), repository, inside, revision)
    if _names_mask_head(file):
        _fetched(str(name), repository, str(mask_head_file(PurePosixPath(inside))), revision)
    data = _external_data(file)
    if data is not None:
        raise ArtifactError(
            f"{name} keeps weights in another file, {data}, which is not fetched; download both into one folder, "
            "and name the ONNX file there"
        )
    return file


def settings_file(source: Union[str, os.PathLike[str]], name: str, revision: Optional[str], kind: type[DetrError]) -> Path:
    """Where a checkpoint's file of settings lies on this machine, fetched from the hub if `source` is a repository there.

    Args:
        source: the file, its folder, or a hub id such as `facebook/detr-resnet-50`. What exists here is never looked for on
            the hub, and neither is a `Path` object.
        name: of the file in its folder.
        revision: a branch, tag or commit on the hub.
        kind: the error to raise.

    Returns:
        The path. Under a name that cannot be the hub's the file need not exist; whoever opens it says so.

    Raises:
        kind: the file is not on the hub or cannot be fetched; or it is on this machine and has no revisions.
        BackendError: huggingface_hub is not installed.
    """
    path = user_path(source)
    on_hub = isinstance(source, str) and _REPOSITORY.fullmatch(source) is not None and not os.path.exists(path)
    if on_hub:
        return _fetched(str(source), str(source), name, revision, kind)
    if revision is not None:
        raise kind(f"{path} is no repository on the hub; revision goes with a hub id such as facebook/detr-resnet-50")
    return path / name if os.path.isdir(path) else path


@contextlib.contextmanager
def hub_errors(name: str, wanted: str, revision: Optional[str], kind: type[DetrError]) -> Iterator[None]:
    """Turns the hub's errors in its block into ours, and keeps `huggingface_hub` from warning of each retry.

    The hub's address may be another one (HF_ENDPOINT); over http only on this machine.

    Args:
        name: what the user typed, for messages. Nothing on this machine has this name.
        wanted: the file that the repository must have.
        revision: a branch, tag or commit.
        kind: the error to raise.

    Raises:
        BackendError: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import logging
        from huggingface_hub.constants import ENDPOINT
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError:
        raise BackendError(f"{name} does not exist here, and {missing_extra('huggingface_hub', 'hub')}") from None

    require_secure(ENDPOINT, f"the hub's address {ENDPOINT} (HF_ENDPOINT)", "set one that begins with https://", kind)
    logging.set_verbosity_error()  # the outcome is reported below
    try:
        yield
    except HFValidationError:
        raise kind(f"{name} is neither an existing path nor a hub id such as facebook/detr-resnet-50") from None
    except GatedRepoError:
        raise kind(f"{name} needs a login; run: hf auth login") from None
    except RevisionNotFoundError:
        raise kind(f"{name} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise kind(f"{name} is neither an existing path nor a repository on the hub") from None
    except LocalEntryNotFoundError:
        raise kind(f"{name} is neither an existing path nor in the hub's cache, and the hub could not be reached") from None
    except EntryNotFoundError:
        raise kind(f"{name} is not an existing path, and its repository on the hub has no {wanted}") from None
    except OSError as error:
        raise kind(f"{name} could not be fetched from the hub: {error}") from error


def sizes_on_hub(repository: str, revision: Optional[str]) -> dict[str, int]:
    """How many bytes each file of a repository has; nothing where the hub is not asked or does not answer.

    What is fetched then has the size that the hub told: `huggingface_hub` compares the two.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return {}
    try:
        found = HfApi().model_info(repository, revision=revision, files_metadata=True).siblings or []
    except Exception:  # no such repository, no network: fetching says so, or takes what is in the cache
        return {}
    return {item.rfilename: item.size for item in found if item.size is not None}


def require_size_on_hub(name: str, inside: str, bytes_: int, kind: type[DetrError]) -> None:
    """Refuses a file of a repository that is larger than the limits, before it is fetched.

    Args:
        name: of the repository, for messages.
        inside: the file.
        bytes_: of the file, or of all files like it.
        kind: the error to raise.
    """
    limit = "document_bytes" if inside.endswith(".json") else "checkpoint_bytes"
    require_at_most(limit, bytes_, f"the size of {inside} in {name} in bytes", kind)


def _fetched(
    name: str, repository: str, inside: str, revision: Optional[str], kind: type[DetrError] = ArtifactError
) -> Path:
    """Where a file of a repository lies after it was fetched."""
    with hub_errors(name, inside, revision, kind):
        from huggingface_hub import hf_hub_download

        require_size_on_hub(repository, inside, sizes_on_hub(repository, revision).get(inside, 0), kind)
        return Path(hf_hub_download(repository, inside, revision=revision))


def _external_data(file: Path) -> Optional[str]:
    """The name of a file that holds weights of an ONNX file, None if it holds them all itself. Needs no `onnx`."""
    with _content(file) as content:
        match = _LOCATION.search(content)
        return None if match is None else content[match.end() : match.end() + match[1][0]].decode(errors="replace")


def _names_mask_head(file: Path) -> bool:
    """Whether an ONNX file says that another one draws its masks. Needs no `onnx`."""
    with _content(file) as content:
        return _MASK_HEAD.search(content) is not None


@contextlib.contextmanager
def _content(file: Path) -> Iterator[Union[bytes, mmap.mmap]]:
    """A file's bytes, which are read where they are needed."""
    if file.stat().st_size == 0:  # which cannot be mapped; whoever opens it says that it is no model
        yield b""
        return
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content
