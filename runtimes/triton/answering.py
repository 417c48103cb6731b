"""Answers the requests of one batch: those that fit share a run of the model, and an error reaches its own request only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np

from detr_export.runtimes.grouping import Size
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.processing.batch import Picture, size_of
from detr_export.runtimes.processing.images import borrow_pixels
from detr_export.runtimes.processing.transforms import LAST
from detr_export.runtimes.results.detections import Detections
from detr_export.runtimes.results.segmentation import Segmentation
from detr_export.runtimes.tasks import Result, document_of
from detr_export.runtimes.thresholds import require_shares

Answer = Union[dict[str, np.ndarray], Exception]  # outputs by name, or why there are none


@dataclass(frozen=True)
class Question:
    """One picture, and what is wanted of it."""

    image: Union[np.ndarray, bytes]  # uint8 (height, width, 3) in RGB order, or the content of an image file
    threshold: float


def answer_all(predictor: Predictor, task: str, questions: Sequence[Question]) -> list[Answer]:
    """Answers questions, each as if it came alone: pictures that the model gets at one size share a run, without padding.

    Returns:
        For each question its answer. An exception is any: an error of a request, and also one of the model.
    """
    answers: dict[int, Answer] = {}
    groups: dict[tuple[float, Size], list[tuple[int, Picture]]] = {}
    for number, question in enumerate(questions):
        try:
            require_shares(threshold=question.threshold)
            picture = borrow_pixels(question.image)
            size = predictor.model_size(size_of(picture, LAST))
        except Exception as error:
            answers[number] = error
            continue
        groups.setdefault((question.threshold, size), []).append((number, picture))
    for (threshold, _), group in groups.items():
        found = _run(predictor, task, threshold, [picture for _, picture in group])
        for (number, _), answer in zip(group, found):
            answers[number] = answer
    return [answers[number] for number in range(len(questions))]


def _run(predictor: Predictor, task: str, threshold: float, pictures: list[Picture]) -> list[Answer]:
    """Runs pictures together. If that fails each runs alone, so that an error reaches only the one that causes it."""
    try:
        results = predictor.predict([*pictures], task, threshold, batch_size=len(pictures))
        return [arrays_of(result) for result in results]
    except Exception as error:
        if len(pictures) == 1:
            return [error]
        return [_run(predictor, task, threshold, [picture])[0] for picture in pictures]


def arrays_of(result: Result) -> dict[str, np.ndarray]:
    """A result as the arrays of `interface.outputs_of`, without the axis of the batch; text is UTF-8."""
    if isinstance(result, Detections):
        return {
            "scores": result.scores.astype(np.float32, copy=False),
            "labels": result.labels.astype(np.int64, copy=False),
            "boxes": result.boxes.astype(np.float32, copy=False),
            "names": _texts(result.names),
        }
    if isinstance(result, Segmentation):
        return _arrays_of_segments(result)
    return {"tables": _texts([json.dumps(document_of(result))])}


def _arrays_of_segments(result: Segmentation) -> dict[str, np.ndarray]:
    segments = result.segments
    found: dict[str, np.ndarray] = {
        "map": result.map.astype(np.int32, copy=False),
        "ids": np.array([segment.id for segment in segments], dtype=np.int32),
        "labels": np.array([segment.label for segment in segments], dtype=np.int64),
        "names": _texts([segment.name for segment in segments]),
        "areas": np.array([segment.area for segment in segments], dtype=np.int64),
        "boxes": np.array([segment.box for segment in segments], dtype=np.int32).reshape(len(segments), 4),
    }
    if result.kind != "semantic":
        found["scores"] = np.array([segment.score for segment in segments], dtype=np.float32)
    return found


def _texts(texts: Sequence[str]) -> np.ndarray:
    encoded: Any = np.empty(len(texts), dtype=np.object_)
    encoded[:] = [text.encode() for text in texts]
    return encoded
