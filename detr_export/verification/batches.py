"""What two models are compared on: the same images for both, as each of them takes them.

One model may take a mask and the other not, and one may take uint8 images and the other the processor's arrays. In messages
the two are MODEL and OTHER, as on the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from detr_export.runtimes.described import processor_of
from detr_export.runtimes.detr_interface import require_detr
from detr_export.runtimes.errors import ArtifactError, InputError
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.processing.end_to_end import image_batch
from detr_export.runtimes.processing.image_paths import PathPattern, iter_image_paths
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.processing.images import load_image
from detr_export.runtimes.processing.uint8_batch import uint8_batch
from detr_export.runtimes.session import Session, TensorSpec, as_declared, is_end_to_end, takes_padding
from detr_export.verification.cases import GRID, Case, cases_of_size, make_images, make_inputs, scale_and_pad
from detr_export.verification.detecting import NOTE, color_of, images_of_many_sizes

MODEL, OTHER = "MODEL", "OTHER"
Arrays = Mapping[str, np.ndarray]
NO_PADDING = "no image is padded, because {} has no input pixel_mask or valid_sizes"


@dataclass(frozen=True)
class Batch:
    """The same images twice."""

    case: str  # what reports call it
    model: Arrays  # what MODEL takes
    other: Arrays  # what OTHER takes


@dataclass(frozen=True)
class Batches:
    """Batches that are made one at a time."""

    count: int
    made: Iterable[Batch]
    notes: tuple[str, ...] = ()  # what a reader of the result has to know


def grid_batches(model: Session, other: Session, grid: Iterable[Case] = GRID) -> Batches:
    """The cases of the verification grid that both models take. Their images are drawn at random.

    Two models that take images as they are get images of many sizes, from one pixel to twelve megapixels.

    Two cases are added for each size that a model was made for: the only one of a file with fixed shapes, and the corners
    of an engine's profiles. If one model takes no padding, no case is padded.

    Raises:
        ArtifactError: a model is not a DETR; no case fits both; or one takes uint8 images, the other does not, and neither
            says how images are scaled.
    """
    for label, session in ((MODEL, model), (OTHER, other)):
        _require_detr(label, session)
    if is_end_to_end(model) and is_end_to_end(other):
        named = images_of_many_sizes(model)
        return _image_batches(model, other, len(named), named)
    notes = _padding_notes(model, other)
    bytes_too = _takes_bytes(model) or _takes_bytes(other)
    floats_too = not (_takes_bytes(model) and _takes_bytes(other))
    processor = _common_processor(model, other) if bytes_too and floats_too else None
    channels = 3 if bytes_too else _channels(model)
    own = [case for size in (*_own_sizes(model), *_own_sizes(other)) for case in cases_of_size(*size)]
    wanted = dict.fromkeys(case.without_padding() if notes else case for case in (*grid, *own))
    cases = [case for case in wanted if all(_fits(session, case, channels) for session in (model, other))]
    if not cases:
        raise ArtifactError(
            f"no case of the verification grid fits both: {MODEL} takes {_described(model)}, {OTHER} {_described(other)}; "
            "give images or arrays that do (--images, --inputs)"
        )

    def made() -> Iterator[Batch]:
        for seed, case in enumerate(cases):
            images = make_images(case, seed) if bytes_too else {}
            if processor is not None:
                floats: Arrays = scale_and_pad(images, processor)
            else:
                floats = make_inputs(case, channels, True, seed) if floats_too else {}
            yield _batch(str(case), model, other, images, floats)

    return Batches(len(cases), made(), (*notes, *_processor_notes(model, other, processor)))


def picture_batches(model: Session, other: Session, pictures: Iterable[PathPattern]) -> Batches:
    """Pictures, one in each batch.

    Both models get what one processor makes of them: MODEL's, or OTHER's if MODEL does not name any. So a difference of the
    results comes from the models.

    Args:
        model, other: open models.
        pictures: files, folders and globs, as in `iter_image_paths`.

    Raises:
        ArtifactError: a model is not a DETR or takes no RGB images; neither names its processor; or the processor pads every
            picture and a model takes no padding.
        ImageError: a picture is missing or, when its turn comes, damaged.
    """
    for label, session in ((MODEL, model), (OTHER, other)):
        _require_detr(label, session)
    paths = iter_image_paths(pictures)
    if is_end_to_end(model) and is_end_to_end(other):
        return _image_batches(model, other, len(paths), ((str(path), [load_image(path)]) for path in paths))
    for label, session in ((MODEL, model), (OTHER, other)):
        if _channels(session) != 3:
            raise ArtifactError(f"{label} takes images of {_channels(session)} channels, and pictures have 3; give --inputs")
    processor = _common_processor(model, other)
    padded = not _padding_notes(model, other)

    def made() -> Iterator[Batch]:
        for path in paths:
            images = uint8_batch(processor, [load_image(path)])
            if not padded and has_padding("valid_sizes", images):
                raise ArtifactError(
                    f"the processor pads every picture to pad_size, and {_without_padding(model, other)} takes no padding; "
                    "give --inputs"
                )
            yield _batch(str(path), model, other, images, scale_and_pad(images, processor))

    return Batches(len(paths), made(), _processor_notes(model, other, processor))


def _image_batches(model: Session, other: Session, count: int, cases: Iterable[tuple[str, list[Any]]]) -> Batches:
    """Images as they are, for two models that take those: each prepares them as it does."""
    made = (Batch(name, *(image_batch(images, color_of(item)) for item in (model, other))) for name, images in cases)
    return Batches(count, made, (NOTE,))


def _batch(case: str, model: Session, other: Session, images: Arrays, floats: Arrays) -> Batch:
    """For each model uint8 images or the processor's arrays, whichever it takes."""

    def fed(session: Session) -> Arrays:
        return as_declared(session.inputs, images if _takes_bytes(session) else floats)

    return Batch(case, fed(model), fed(other))


def _require_detr(label: str, session: Session) -> None:
    try:
        require_detr(session)
    except ArtifactError as error:
        raise ArtifactError(f"{label}: {error}; or give --inputs") from error


def _common_processor(model: Session, other: Session) -> DetrImageProcessor:
    metadata = model.metadata or other.metadata
    if metadata is None:
        raise ArtifactError(
            f"neither {MODEL} nor {OTHER} says how images are prepared, so both cannot be fed the same; give --inputs"
        )
    return processor_of(metadata)


def _processor_notes(model: Session, other: Session, used: DetrImageProcessor | None) -> tuple[str, ...]:
    if used is None or _settings(model.metadata) == _settings(other.metadata):
        return ()
    return (f"both models get images as the processor of {MODEL if model.metadata is not None else OTHER} makes them",)


def _settings(metadata: Metadata | None) -> object:
    return None if metadata is None else processor_of(metadata).to_dict()


def _padding_notes(model: Session, other: Session) -> tuple[str, ...]:
    without = _without_padding(model, other)
    return (NO_PADDING.format(without),) if without else ()


def _without_padding(model: Session, other: Session) -> str:
    """The models that cannot be told what is padding."""
    return " and ".join(label for label, session in ((MODEL, model), (OTHER, other)) if not takes_padding(session.inputs))


def has_padding(name: str, arrays: Arrays) -> bool:
    """Whether an input says that some pixels are no image."""
    given = arrays[name]
    return bool((given != (1 if name == "pixel_mask" else arrays["pixel_values"].shape[1:3])).any())


def _pixels(session: Session) -> TensorSpec:
    return next(spec for spec in session.inputs if spec.name == "pixel_values")


def _takes_bytes(session: Session) -> bool:
    """Whether a model takes `pixel_values` uint8 (B, H, W, 3) in place of float (B, 3, H, W)."""
    return any(spec.name == "pixel_values" and spec.dtype == "uint8" for spec in session.inputs)


def _axes(session: Session) -> tuple[int, int, int]:
    """Where `pixel_values` has batch, height and width."""
    return (0, 1, 2) if _takes_bytes(session) else (0, 2, 3)


def _channels(session: Session) -> int:
    found = _pixels(session).shape[3 if _takes_bytes(session) else 1]
    return found if isinstance(found, int) else 3


def _own_sizes(session: Session) -> list[tuple[int, int, int]]:
    """(batch, height, width) of what the model was made for, if it is not for all sizes."""
    profiles = getattr(session, "profiles", ())  # an engine's
    shapes = [shape for profile in profiles for shape in profile.inputs["pixel_values"]]
    batch, height, width = _axes(session)
    return [
        (shape[batch], shape[height], shape[width])
        for shape in (*shapes, _pixels(session).shape)
        if all(isinstance(size, int) for size in shape)
    ]


def _fits(session: Session, case: Case, channels: int) -> bool:
    """Whether a model takes a case. Its arrays are not made for that."""
    batch, height, width = len(case.valid), case.height, case.width
    pixels = (batch, height, width, channels) if _takes_bytes(session) else (batch, channels, height, width)
    shapes = {"pixel_values": pixels, "pixel_mask": (batch, height, width), "valid_sizes": (batch, 2)}
    try:
        session.check({spec.name: np.broadcast_to(np.zeros((), spec.dtype), shapes[spec.name]) for spec in session.inputs})
    except (InputError, TypeError):  # a TypeError: NumPy lacks the dtype, bfloat16 for example
        return False
    return True


def _described(session: Session) -> str:
    ranges = session.metadata.ranges if session.metadata is not None else {}
    limits = [f"{name} {low} to {'any' if high is None else high}" for name, (low, high) in ranges.items()]
    return ", ".join([str(_pixels(session)), *limits])
