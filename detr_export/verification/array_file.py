"""Two models on the arrays of an `.npz` file."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from detr_export.runtimes.errors import ArtifactError, InputError, first_line
from detr_export.runtimes.limits import require_at_most
from detr_export.runtimes.session import Session, as_declared
from detr_export.verification.batches import MODEL, NO_PADDING, OTHER, Arrays, Batch, Batches, has_padding

# What NumPy and zipfile raise for a file that is damaged. A header may ask for more memory than there is.
_DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    MemoryError,
    OverflowError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def array_batches(model: Session, other: Session, file: str | Path) -> Batches:
    """One batch from an `.npz` file, whose arrays have the names of the models' inputs. Any two models can be compared so.

    An input that both models take has the dtype of one of them; if they differ, both are floating point.

    Raises:
        InputError: the file cannot be read; an input is missing or unknown; or a dtype, rank or size does not fit.
        ArtifactError: an input needs another dtype in each model; or the file has padding and one model takes none.
    """
    arrays = read_arrays(Path(file))
    declared: dict[str, dict[str, str]] = {}  # dtypes of each input, by model
    for label, session in ((MODEL, model), (OTHER, other)):
        for spec in session.inputs:
            declared.setdefault(spec.name, {})[label] = spec.dtype

    # Names and dtypes
    missing, unknown = [name for name in declared if name not in arrays], [name for name in arrays if name not in declared]
    if missing or unknown:
        wrong = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(unknown)}"] * bool(unknown)
        raise InputError(f"{file} {' and '.join(wrong)}; expected {', '.join(declared)}")
    for name, dtypes in declared.items():
        wanted = sorted(set(dtypes.values()))
        if len(wanted) > 1 and not all(dtype.startswith("float") for dtype in wanted):
            raise ArtifactError(
                f"{name} is {dtypes[MODEL]} in {MODEL} and {dtypes[OTHER]} in {OTHER}, so one array cannot feed both; "
                "give --images in place of --inputs"
            )
        if arrays[name].dtype.name not in wanted:
            raise InputError(f"{file}: {name} is {arrays[name].dtype.name}; expected {' or '.join(wanted)}")

    # Shapes, and padding that one model would not see
    _require_fit(file, arrays, MODEL, model)
    _require_fit(file, arrays, OTHER, other)
    notes = []
    for name in (name for name in ("pixel_mask", "valid_sizes") if name in declared):
        for label in (label for label in (MODEL, OTHER) if label not in declared[name]):
            if has_padding(name, arrays):
                raise ArtifactError(f"{file} has padding, and {label} takes no {name}; give images without padding")
            notes.append(NO_PADDING.format(label))
    batch = Batch(Path(file).name, as_declared(model.inputs, arrays), as_declared(other.inputs, arrays))
    return Batches(1, [batch], tuple(notes))


def _require_fit(file: str | Path, arrays: Arrays, label: str, session: Session) -> None:
    try:
        session.check(as_declared(session.inputs, arrays))
    except InputError as error:
        raise InputError(f"{file} does not fit {label}: {error}") from error


def read_arrays(file: Path, most_bytes: int | None = None) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file, by name.

    Args:
        file: which one.
        most_bytes: what they may take together, where that is known; else it is the limit of a checkpoint.

    Raises:
        InputError: the file is missing, damaged, not an `.npz` file, holds objects, or more than that.
    """
    expected = "expected an .npz file, as numpy.savez writes it, with an array for each input"
    if not file.is_file():
        raise InputError(f"{file} does not exist or is not a file; {expected}")
    if not zipfile.is_zipfile(file):
        raise InputError(f"{file} is not an .npz file; {expected}")
    try:
        # NumPy does not close a damaged file that it opened itself. Damage can look like a password: a RuntimeError.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            _require_room(file, archive.zip.infolist(), most_bytes)
            arrays = {name: archive[name] for name in archive.files}
    except _DAMAGED as error:
        raise InputError(f"{file} is damaged or holds objects: {first_line(error)}; {expected}") from error
    strange = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if strange:
        raise InputError(f"{file} holds {strange[0]}, which is no array; {expected}")
    return arrays


def _require_room(file: Path, members: list[zipfile.ZipInfo], most_bytes: int | None) -> None:
    """Refuses what would take more memory than it may, however small the file is. What is read ends at these sizes."""
    require_at_most("tensors", len(members), f"the number of arrays of {file}", InputError)
    total = sum(member.file_size for member in members)
    require_at_most("checkpoint_bytes", total, f"the size of the arrays of {file} in bytes", InputError)
    if most_bytes is not None and total > most_bytes:
        raise InputError(f"the arrays of {file} have {total} bytes; expected at most {most_bytes}")
