"""Models beside each other by what they detect: end-to-end files, and plain models with the processor around them.

Two end-to-end files get the same images. A plain model beside an end-to-end file has its processor before it and
post-processing behind it, so that both map `image` to sorted detections in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from detr_export.runtimes.described import processor_of
from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.image_runner import ImageRunner
from detr_export.runtimes.metadata import BGR, IMAGE, RGB, EndToEnd
from detr_export.runtimes.processing.end_to_end import sorted_detections
from detr_export.runtimes.session import Session, TensorSpec, is_end_to_end
from detr_export.verification.end_to_end import assigned, end_to_end_images

COUNTS = 0.05  # labels, boxes and masks are compared of detections with a higher score; nobody draws others
NOTE = f"detections are compared in pairs, the closest ones; labels, boxes and masks of those with a score above {COUNTS}"
_SCORE_UNIT, _BOX_UNIT = 2e-3, 0.5  # differences that weigh the same when pairs are chosen
_OTHER_LABEL = 10.0  # what another label weighs

Arrays = Mapping[str, np.ndarray]


class DetectingSession(Session):
    """A plain model behind the contract of an end-to-end file: from `image` uint8 (B, H, W, 3) to detections.

    Args:
        session: an open model with metadata; this session does not own it.
        options: those of the end-to-end file that it stands beside: the order of channels, and how many detections.

    Raises:
        ArtifactError: the model is not a DETR, or has no metadata.
    """

    def __init__(self, session: Session, options: EndToEnd) -> None:
        self._runner, self._options = ImageRunner(session), options
        draws_masks = any(spec.name == "pred_masks" for spec in session.outputs)
        top_k = options.top_k
        self.inputs = (TensorSpec("image", "uint8", ("batch", "height", "width", 3)),)
        self.outputs = (
            TensorSpec("scores", "float32", ("batch", top_k)),
            TensorSpec("labels", "int64", ("batch", top_k)),
            TensorSpec("boxes", "float32", ("batch", top_k, 4)),
        )
        if draws_masks:
            self.outputs += (TensorSpec("masks", "float32", ("batch", top_k, "mask_height", "mask_width")),)
        self.metadata = replace(self._runner.metadata, input=IMAGE, end_to_end=options, ranges={})

    def _run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        images = inputs["image"][..., ::-1] if self._options.color == BGR else inputs["image"]
        (batch,) = self._runner.run(list(images), padded=False)
        return sorted_detections(batch.outputs, batch.sizes, self._options.top_k)

    def close(self) -> None:
        """Does nothing: the model is its owner's to close."""


def as_detecting(model: Session, other: Session) -> tuple[Session, Session]:
    """Both models behind the contract of end-to-end files, if one of them is one; otherwise as they are.

    Raises:
        ArtifactError: the plain one is not a DETR or has no metadata, or an end-to-end file has none.
    """
    found = None
    for session in (item for item in (model, other) if is_end_to_end(item)):
        found = None if session.metadata is None else session.metadata.end_to_end
        if found is None:
            raise ArtifactError(
                "an end-to-end file has no metadata, so its order of channels is unknown; export it again: detr-export onnx"
            )
    if found is None:
        return model, other
    first, second = (item if is_end_to_end(item) else DetectingSession(item, found) for item in (model, other))
    return first, second


def color_of(session: Session) -> str:
    """The order of the channels of a session that takes `image`."""
    options = session.metadata.end_to_end if session.metadata is not None else None
    return RGB if options is None else options.color


def images_of_many_sizes(session: Session) -> list[tuple[str, list[np.ndarray]]]:
    """The gate's images with their names, and a batch of two: RGB uint8 (height, width, 3).

    Args:
        session: whose processor decides on some sizes; it has metadata.

    Raises:
        ArtifactError: the processor's settings are not usable.
    """
    assert session.metadata is not None
    cases = [(name, [image]) for name, image in end_to_end_images(processor_of(session.metadata))]
    first = cases[0][1][0]
    return [*cases, (f"two images of {first.shape[0]}x{first.shape[1]}", [first, np.ascontiguousarray(first[::-1, ::-1])])]


def paired(
    given: Arrays, reference: Arrays, box_unit: float = _BOX_UNIT
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Puts detections beside those of another model.

    Queries with nearly the same score may change places, so each detection is assigned to another one, as close as possible
    in all. Scores stay in their order.

    Args:
        given, reference: `scores`, `labels` (B, K), `boxes` (B, K, 4) and maybe `masks` (B, K, h, w), of the same shapes.
        box_unit: the difference of boxes that weighs as much as 0.002 of a score.

    Returns:
        Both again. Labels, boxes and masks have one row for each pair of which one score is above `COUNTS`.
    """
    one: dict[str, list[np.ndarray]] = {name: [] for name in given if name != "scores"}
    two: dict[str, list[np.ndarray]] = {name: [] for name in given if name != "scores"}
    for index in range(len(given["scores"])):
        rows, columns = _pairs(
            {name: values[index] for name, values in given.items()},
            {name: values[index] for name, values in reference.items()},
            box_unit,
        )
        for name in one:
            one[name].append(given[name][index][rows])
            two[name].append(reference[name][index][columns])
    return tuple(  # type: ignore[return-value]
        {"scores": outputs["scores"], **{name: np.concatenate(values) for name, values in chosen.items()}}
        for outputs, chosen in ((given, one), (reference, two))
    )


def _pairs(given: Arrays, reference: Arrays, box_unit: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one image that belong together, of detections that count."""
    scores = np.abs(given["scores"][:, None] - reference["scores"]) / _SCORE_UNIT
    boxes = np.abs(given["boxes"][:, None] - reference["boxes"]).max(axis=-1) / box_unit
    labels = _OTHER_LABEL * (given["labels"][:, None] != reference["labels"])
    cost = np.nan_to_num(scores + boxes + labels, nan=1e9, posinf=1e9)  # a value that is not finite fails later, by name
    rows, columns = assigned(cost)
    counts = np.maximum(given["scores"][rows], reference["scores"][columns]) > COUNTS
    return rows[counts], columns[counts]
