"""What a DETR takes and gives: which tensors, of which rank and dtype, and which of their sizes are the same.

A file is held against that when it is opened, as far as it declares shapes, and what a run returned before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Union

import numpy as np

from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.limits import require_at_most
from detr_export.runtimes.metadata import FLOAT, IMAGE, UINT8
from detr_export.runtimes.session import DETR_INPUTS, DETR_OUTPUTS, Session, TensorSpec, is_end_to_end

_FLOATS = ("float32", "float16", "float64")
_WHOLE = ("int64", "int32")
_Axes = tuple[Union[int, str], ...]  # a number is the size; the same word is the same size everywhere

# dtypes and axes of each tensor, by the form of the images
_INPUTS: dict[str, dict[str, tuple[tuple[str, ...], _Axes]]] = {
    FLOAT: {
        "pixel_values": (_FLOATS, ("batch", "channels", "height", "width")),
        "pixel_mask": ((*_WHOLE, "uint8", "bool"), ("batch", "height", "width")),
    },
    UINT8: {
        "pixel_values": (("uint8",), ("batch", "height", "width", "channels")),
        "valid_sizes": (_WHOLE, ("batch", 2)),
    },
    IMAGE: {"image": (("uint8",), ("batch", "height", "width", 3))},
}
_OUTPUTS: dict[str, tuple[tuple[str, ...], _Axes]] = {
    "logits": (_FLOATS, ("batch", "queries", "classes + 1")),
    "pred_boxes": (_FLOATS, ("batch", "queries", 4)),
    "pred_masks": (_FLOATS, ("batch", "queries", "mask_height", "mask_width")),
    "cross_attention": (_FLOATS, ("batch", "heads", "queries", "feature_height", "feature_width")),
}
_END_TO_END_OUTPUTS: dict[str, tuple[tuple[str, ...], _Axes]] = {
    "scores": (_FLOATS, ("batch", "queries")),
    "labels": (_WHOLE, ("batch", "queries")),
    "boxes": (_FLOATS, ("batch", "queries", 4)),
    "masks": (_FLOATS, ("batch", "queries", "mask_height", "mask_width")),
}
_Sizes = dict[str, tuple[int, str]]  # of each word: its size, and the tensor that has it


def require_detr(session: Session) -> None:
    """Refuses a model that does not have the inputs and outputs of a DETR, or of an end-to-end file.

    Sizes that a file does not declare are allowed.

    Raises:
        ArtifactError: names the file, the tensor, what it declares and what was expected.
    """
    # Names
    inputs, outputs = ([spec.name for spec in specs] for specs in (session.inputs, session.outputs))
    raw = "pixel_values" in inputs and set(inputs).issubset(DETR_INPUTS) and set(outputs).issuperset(DETR_OUTPUTS)
    if not raw and not is_end_to_end(session):
        raise ArtifactError(
            f"{session.source} is not a DETR: it maps {', '.join(sorted(inputs))} to {', '.join(sorted(outputs))}; "
            "expected pixel_values [and pixel_mask or valid_sizes] to logits and pred_boxes"
        )
    form = _form(session)
    strange = sorted(set(inputs) - set(_INPUTS[form]))
    if strange:
        raise ArtifactError(
            f"{session.source} takes {strange[0]} with {'uint8' if form == UINT8 else 'float'} pixel_values; "
            "expected pixel_mask with float ones, or valid_sizes with uint8 ones"
        )

    # Each tensor, and the sizes that they share
    sizes: _Sizes = {}
    for spec in session.inputs:
        if not spec.shape:
            _refuse(session, f"input {spec.name} has no shape", *_INPUTS[form][spec.name])
        _fit(session, f"input {spec.name}", spec.dtype, spec.shape, _INPUTS[form][spec.name], sizes)
    for spec in session.outputs:
        known = _outputs_of(session).get(spec.name)
        if known is not None:
            _fit(session, f"output {spec.name}", spec.dtype, spec.shape, known, sizes)
    _fit_metadata(session, form, sizes)


def check_outputs(session: Session, outputs: Mapping[str, np.ndarray], images: int) -> None:
    """Looks at what one run returned: ranks, dtypes, one row for each image, and one number of queries. Values may be any.

    Args:
        session: what ran.
        outputs: all or some of its outputs.
        images: of the batch.

    Raises:
        ArtifactError: names the file, the tensor, what it is and what was expected.
    """
    sizes: _Sizes = {"batch": (images, "the input")}
    if session.metadata is not None:
        sizes["classes + 1"] = (len(session.metadata.id2label) + 1, "id2label")
    for name, known in _outputs_of(session).items():
        array = outputs.get(name)
        if array is not None:
            _fit(session, f"the run's output {name}", array.dtype.name, array.shape, known, sizes, complete=True)


def _form(session: Session) -> str:
    if is_end_to_end(session):
        return IMAGE
    (pixels,) = (spec for spec in session.inputs if spec.name == "pixel_values")
    return UINT8 if pixels.dtype == "uint8" else FLOAT


def _outputs_of(session: Session) -> Mapping[str, tuple[tuple[str, ...], _Axes]]:
    return _END_TO_END_OUTPUTS if is_end_to_end(session) else _OUTPUTS


def _fit(
    session: Session,
    what: str,
    dtype: str,
    shape: Sequence[Union[int, str]],
    known: tuple[tuple[str, ...], _Axes],
    sizes: _Sizes,
    complete: bool = False,
) -> None:
    """Holds one tensor against its dtypes and axes, and adds its sizes to those that are known.

    Args:
        session: for messages.
        what: the tensor, for messages.
        dtype, shape: of the tensor. A word in the shape stands for any size.
        known: the dtypes and axes that it may have.
        sizes: of other tensors, by axis.
        complete: whether the shape is that of an array; a declared one may be empty, which says nothing.
    """
    dtypes, axes = known
    if dtype not in dtypes or (len(shape) != len(axes) and (shape or complete)):
        _refuse(session, f"{what} is {dtype} ({', '.join(map(str, shape))})", dtypes, axes)
    for size, axis in zip(shape, axes):
        if isinstance(size, str):
            continue
        expected, reason = (axis, "") if isinstance(axis, int) else sizes.setdefault(axis, (size, what))
        if size != expected or (size < 1 and not complete):
            why = f", and {axis} is {expected} in {reason}" if reason not in ("", what) else ""
            _refuse(session, f"{what} is {dtype} ({', '.join(map(str, shape))}){why}", dtypes, axes)


def _refuse(session: Session, found: str, dtypes: Sequence[str], axes: _Axes) -> None:
    raise ArtifactError(f"{session.source}: {found}; expected {' or '.join(dtypes)} ({', '.join(map(str, axes))})")


def _fit_metadata(session: Session, form: str, sizes: _Sizes) -> None:
    """Holds the declared sizes against the limits, and against what the file says about itself."""
    if "queries" in sizes:
        require_at_most("queries", sizes["queries"][0], f"{session.source}: the number of queries", ArtifactError)
    classes = sizes.get("classes + 1")
    if classes is not None:
        require_at_most("labels", classes[0] - 1, f"{session.source}: the number of classes in logits", ArtifactError)
    if session.metadata is None:
        return
    if form != session.metadata.input:
        raise ArtifactError(
            f"{session.source}: the file's metadata describe another model than it holds: input is "
            f"{session.metadata.input!r}, and the graph takes {form!r}; export it again"
        )
    if classes is not None and classes[0] != len(session.metadata.id2label) + 1:
        raise ArtifactError(
            f"{session.source}: logits are of {classes[0] - 1} classes and no object, and id2label has "
            f"{len(session.metadata.id2label)} classes; expected as many"
        )
    for axis in ("batch", "height", "width"):
        low, high = session.metadata.ranges.get(axis, (1, None))
        if axis in sizes and (sizes[axis][0] < low or (high is not None and sizes[axis][0] > high)):
            raise ArtifactError(
                f"{session.source}: {axis} is {sizes[axis][0]} in {sizes[axis][1]}, and the metadata's ranges say {low} to "
                f"{'any' if high is None else high}; export it again"
            )


def require_fitting(source: str, given: TensorSpec, taken: TensorSpec) -> None:
    """Refuses an output of one graph that another one cannot take as its input.

    Raises:
        ArtifactError: names both.
    """
    known = bool(given.shape) and bool(taken.shape)
    clash = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in list(zip(given.shape, taken.shape))[2:])
    if given.dtype != taken.dtype or (known and len(given.shape) != len(taken.shape)) or clash:
        raise ArtifactError(f"{source}: the mask head takes {taken}, and the detector gives {given}; export both again")
