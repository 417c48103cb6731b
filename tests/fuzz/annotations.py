"""Targets that read annotations: COCO's files, run-length encodings, polygons, YOLO's lines and data.yaml."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz.mutation import mutate_json, mutate_lines
from tests.fuzz.target import Function, OutOfRangeError, Target, require_finite

_SIZE = (12, 16)  # (height, width) of the pictures that the seeds name


def _write_pictures(folder: Path) -> None:
    folder.mkdir()
    for name in ("1.png", "2.png"):
        Image.new("RGB", _SIZE[::-1], (200, 100, 50)).save(folder / name)


def _coco(folder: Path) -> Function:
    from detr_export.data.layouts import COCO, SplitFiles
    from detr_export.data.splits import read_files

    _write_pictures(folder / "images")
    files = SplitFiles(COCO, folder / "images", folder / "instances_train.json")

    def read(data: bytes) -> None:
        files.annotations.write_bytes(data)
        read_files(files)

    return read


def _panoptic(folder: Path) -> Function:
    from detr_export.data.layouts import COCO, SplitFiles
    from detr_export.data.splits import read_files

    _write_pictures(folder / "images")
    _write_pictures(folder / "panoptic_train")
    files = SplitFiles(COCO, folder / "images", folder / "panoptic_train.json", folder / "panoptic_train")

    def read(data: bytes) -> None:
        files.annotations.write_bytes(data)
        read_files(files)

    return read


def _evaluator(folder: Path) -> Function:
    """What reaches pycocotools."""
    from detr_export.benchmarks.accuracy.detection_evaluator import CocoEvaluator
    from detr_export.runtimes.results.detections import Detections

    masks = np.zeros((1, *_SIZE), bool)
    masks[0, :5, :5] = True
    boxes = np.array([[0, 0, 5, 5]], np.float32)
    found = Detections(np.array([0.5], np.float32), np.array([1]), boxes, ("a",), _SIZE, masks)
    file = folder / "instances.json"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        evaluator = CocoEvaluator(file)
        for image_id in list(evaluator.images)[:3]:
            evaluator.update(image_id, found)
        evaluator.compute()

    return read


def _rle(folder: Path) -> Function:
    from pycocotools import mask as coco_mask

    from detr_export.runtimes.documents import parse
    from detr_export.runtimes.errors import AnnotationError
    from detr_export.runtimes.processing.rle import decode_rle

    def read(data: bytes) -> None:
        document: Any = parse(data, "the encoding", AnnotationError)
        if not isinstance(document, dict):
            return
        mask = decode_rle(document)
        if not mask.size:
            return
        # What is accepted here is read alike there.
        height, width = mask.shape
        counts = document["counts"]
        encoded = {"size": [height, width], "counts": counts}
        with warnings.catch_warnings():  # pycocotools was written against numpy 1
            warnings.simplefilter("ignore")
            if not isinstance(counts, str):
                encoded = coco_mask.frPyObjects(encoded, height, width)
            same = (coco_mask.decode(encoded) == mask).all()
        if not same:
            raise OutOfRangeError("pycocotools reads another mask")

    return read


def _polygons(folder: Path) -> Function:
    from detr_export.runtimes.documents import parse
    from detr_export.runtimes.errors import AnnotationError
    from detr_export.runtimes.processing.image_processor import DetrImageProcessor

    processor = DetrImageProcessor(size={"height": 12, "width": 16})
    picture = np.zeros((*_SIZE, 3), np.uint8)

    def read(data: bytes) -> None:
        record: Any = parse(data, "the record", AnnotationError)
        batch = processor(picture, record, return_segmentation_masks=True, return_tensors="np")
        if record is not None:
            require_finite(dict(batch["labels"][0]), "labels")

    return read


def _yolo(folder: Path, file: Path) -> Function:
    from detr_export.data.splits import read_split

    _write_pictures(folder / "images")
    (folder / "labels").mkdir()
    (folder / "labels/1.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (folder / "data.yaml").write_text(json.dumps({"train": "images", "val": "images", "names": ["a", "b"]}))

    def read(data: bytes) -> None:
        file.write_bytes(data)
        split = read_split(folder / "data.yaml", "train", "detection")
        for record in split.records:
            require_finite([[item["bbox"], item["area"]] for item in record["annotations"]], "annotations")

    return read


TARGETS = (
    Target("coco", _coco, mutate_json, 20_000, 360),
    Target("panoptic", _panoptic, mutate_json, 20_000, 360),
    Target("evaluator", _evaluator, mutate_json, 10_000, 180),
    Target("rle", _rle, mutate_json, 100_000, 2_400),
    Target("polygons", _polygons, mutate_json, 60_000, 1_200),
    Target("yolo-lines", lambda folder: _yolo(folder, folder / "labels/1.txt"), mutate_lines, 10_000, 240),
    Target("yolo-yaml", lambda folder: _yolo(folder, folder / "data.yaml"), mutate_lines, 10_000, 240),
)
