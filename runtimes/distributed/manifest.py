"""`run.json`: what a run was asked for. It is written before any row, and a run that goes on must be asked for the same."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Optional

from detr_export.runtimes.distributed import schema
from detr_export.runtimes.documents import read_document, typed
from detr_export.runtimes.errors import OutputError
from detr_export.runtimes.files import write_atomically

NAME = "run.json"


@dataclass(frozen=True)
class Request:
    """What decides about the rows of a table. A run that goes on must have all of it equal."""

    schema: int  # version of the columns
    model: str  # SHA-256 of the model's file
    task: str
    threshold: float
    classes: Optional[list[str]]  # that are kept, sorted; None for all
    clip: bool
    batch: int
    device: str
    processor: Optional[str]
    allow_truncated: bool
    allow_http: bool
    sources: list[str]  # as they were named
    column: Optional[str]  # of the tables


@dataclass(frozen=True)
class Manifest:
    """The document."""

    request: Request
    pictures: int  # in the list
    id2label: dict[str, str]  # names of the classes by their ids
    detr_export: str  # version that began the run
    token: str  # of the last start


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the document. Raises OutputError."""
    write_atomically(folder / NAME, (json.dumps(asdict(manifest), indent=2) + "\n").encode())


def read_manifest(folder: Path) -> Optional[Manifest]:
    """The document in a folder for results; None if no run was begun there.

    Raises:
        OutputError: it is damaged, or of another form.
    """
    try:
        document = read_document(folder / NAME, OutputError)
    except FileNotFoundError:
        return None
    found = document.get("request", {}).get("schema") if isinstance(document, dict) else None
    if isinstance(found, int) and found != schema.VERSION:
        raise _other("schema", found, schema.VERSION, folder)
    return typed(document, Manifest, str(folder / NAME), OutputError)


def require_same(before: Request, now: Request, folder: Path) -> None:
    """Refuses to go on with a run that was asked for something else.

    Raises:
        OutputError: names the first field that differs, with both values.
    """
    for item in fields(Request):
        old, new = getattr(before, item.name), getattr(now, item.name)
        if old != new:
            raise _other(item.name, old, new, folder)


def require_current(folder: Path, token: str) -> None:
    """Refuses to write for a start that is not the last one, or into a folder that is not the driver's.

    Raises:
        OutputError: says so.
    """
    try:
        found = read_document(folder / NAME, OutputError)
    except FileNotFoundError:
        raise OutputError(
            f"{folder / NAME} is not there on this node: the folder for results must be one that all nodes share"
        ) from None
    if found.get("token") != token:
        raise OutputError(f"another start of the run writes to {folder}; this one ends")


def _other(name: str, old: Any, new: Any, folder: Path) -> OutputError:
    return OutputError(
        f"{folder} holds a run with {name} {_shown(old)}, and this one has {name} {_shown(new)}; give another folder, or "
        "add --overwrite to begin anew"
    )


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
