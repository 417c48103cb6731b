"""Writes a folder of golden data. It appears at its place in one move, and only when it is whole."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detr_export.runtimes.errors import ArtifactError, OutputError
from detr_export.runtimes.files import make_folder, replace_folder, require_own_links, require_writable, writing
from detr_export.runtimes.temporary import temporary_folder
from detr_export.verification.golden import FORMAT_VERSION, INDEX, GoldenCase, check_case, check_head, check_tolerances
from detr_export.verification.golden.reading import listed_files, parse_index


@dataclass(frozen=True)
class WrittenGolden:
    """What was written."""

    path: str
    cases: int
    size_bytes: int

    def summary(self) -> str:
        """For people."""
        return f"{self.path.rstrip(os.sep)}{os.sep}  {self.cases} cases, {self.size_bytes / 1e6:.1f} MB"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def require_golden_place(folder: str | Path, overwrite: bool, model: str | Path) -> None:
    """Refuses, before any work is done, a folder that cannot be written or that holds anything but golden data.

    Args:
        folder: where the golden data are to be.
        overwrite: whether golden data that are there may be replaced.
        model: the file that is exported with them; it may not lie in the folder, which is replaced as a whole.

    Raises:
        OutputError: says why.
    """
    place = Path(os.path.realpath(folder))
    if Path(os.path.realpath(model)).is_relative_to(place):
        raise OutputError(
            f"{model} would lie in {folder}, which --golden replaces as a whole; give --golden a folder of its own"
        )
    _require_free(Path(folder), overwrite)
    require_own_links(folder)
    require_writable(place.with_name(f".{place.name}"), overwrite=True)


def write_golden(
    folder: str | Path,
    model_name: str,
    source: Mapping[str, str],
    kind: str,
    cases: Iterable[GoldenCase],
    tolerances: Mapping[str, float],
    overwrite: bool = False,
) -> WrittenGolden:
    """Writes golden data; `read_golden` is its inverse. Cases are written as they come, so that one is in memory at a time.

    Args:
        folder: where they are to be.
        model_name: file name of the export.
        source: `name` and `sha256` of the checkpoint's weights, as in `Metadata.source`.
        kind: `tensors` or `end-to-end`.
        cases: at least one; all have the same inputs and outputs.
        tolerances: the largest absolute difference for each floating-point output. Other outputs are exact.
        overwrite: replace golden data that are there.

    Raises:
        ArtifactError: an array is not finite, a name or dtype is not allowed, or the cases do not fit each other.
        OutputError: the folder exists, holds something else, or cannot be written. What was there before is still there.
    """
    check_head(model_name, kind)
    with _replacing_folder(Path(folder), overwrite) as temporary, writing(folder):
        entries: list[dict[str, Any]] = []
        first: GoldenCase | None = None
        for case in cases:
            first = first or case
            check_case(case, first)
            if any(case.name.casefold() == entry["name"].casefold() for entry in entries):
                raise ArtifactError(f"two cases are named {case.name!r}; expected different names")
            entries.append(_write_case(temporary, case))
        if first is None:
            raise ArtifactError("there is no case, so there are no golden data to write")
        check_tolerances(tolerances, first)
        document = {
            "format_version": FORMAT_VERSION,
            "model": model_name,
            "source": {"name": source["name"], "sha256": source["sha256"]},
            "kind": kind,
            "tolerances": dict(tolerances),
            "cases": entries,
        }
        (temporary / INDEX).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        size = sum(file.stat().st_size for file in temporary.iterdir())
    return WrittenGolden(str(folder), len(entries), size)


def _write_case(folder: Path, case: GoldenCase) -> dict[str, Any]:
    """Writes the files of a case, and returns its entry in the index."""
    entry: dict[str, Any] = {"name": case.name, "npz": f"{case.name}.npz"}
    packed: dict[str, np.ndarray] = {}
    for role, arrays in (("inputs", case.inputs), ("outputs", case.outputs)):
        entry[role] = {}
        for name, array in arrays.items():
            packed[name] = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            file = f"{case.name}.{name}.bin"
            (folder / file).write_bytes(packed[name].tobytes())
            entry[role][name] = {"file": file, "dtype": array.dtype.name, "shape": list(array.shape)}
    np.savez(folder / entry["npz"], **packed)  # type: ignore[arg-type]  # no array is named like one of its options
    return entry


@contextlib.contextmanager
def _replacing_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Yields an empty folder beside `folder`. When the block ends well it moves into place, otherwise it is removed."""
    _require_free(folder, overwrite)
    place = Path(os.path.realpath(folder))  # a link keeps pointing where it does
    require_own_links(folder)
    make_folder(place.parent)
    with writing(folder):
        held = temporary_folder(beside=place, mode=0o777)
    with held as temporary:
        yield temporary
        _require_free(folder, overwrite)  # somebody may have put something there meanwhile
        old = place.with_name(f".{place.name}-{secrets.token_hex(6)}")  # a kill would leave it, as it is the user's
        with writing(folder):
            replace_folder(temporary, place, old)


def _require_free(folder: Path, overwrite: bool) -> None:
    """Refuses what must not be replaced: a file, a folder while `overwrite` is false, one that holds other things."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError(f"{folder} is not a folder; give --golden another name")
    if not overwrite:
        raise OutputError(f"{folder} exists; add --overwrite to replace it")
    with writing(folder):
        present = {entry.name: entry.is_dir() for entry in folder.iterdir()}
        if not present:
            return
        index = folder / INDEX
        try:
            known = set(listed_files(parse_index(index.read_text(encoding="utf-8")))) if index.is_file() else set()
            strange = [name for name, is_folder in sorted(present.items()) if name not in known or is_folder]
            if not strange:
                return
            why = f"{strange[0]} is not in its {INDEX}" if known else f"it has no {INDEX}"
        except (ArtifactError, UnicodeDecodeError) as error:
            why = f"{INDEX}: {error}"
    raise OutputError(f"{folder} is not a folder of golden data alone ({why}), so it is kept; give --golden another name")
