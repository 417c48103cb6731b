"""Images annotated with what a small segmentation model finds, slightly moved."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_export.runtimes import Predictor
from detr_export.runtimes.processing.annotations.panoptic import id_to_rgb
from detr_export.runtimes.processing.rle import encode_compressed_rle
from tests import models

SIZES = ((60, 90), (60, 90), (70, 50), (80, 80), (60, 90), (50, 70))  # (height, width)
PANOPTIC_THRESHOLD = 0.3
CATEGORIES = [{"id": id_, "name": models.LABELS[id_], "isthing": isthing} for id_, isthing in ((1, 1), (3, 1), (4, 0))]


class Watcher:
    """A `Progress` that keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.steps: list[tuple[int, int, str]] = []

    def stage(self, line: str) -> None:
        self.stages.append(line)

    def step(self, done: int, total: int, note: str = "") -> None:
        self.steps.append((done, total, note))


@dataclass(frozen=True)
class Annotated:
    """Images and annotations on disk, not to be changed."""

    images: Path
    instances: Path
    panoptic: tuple[Path, Path]

    def document(self) -> dict[str, Any]:
        return json.loads(self.instances.read_text())


@pytest.fixture(scope="session")
def annotated(segmenter: Path, tmp_path_factory: pytest.TempPathFactory) -> Annotated:
    """Every other object that the model finds, and the segments, moved a little: so scores are neither 0 nor 1."""
    root = tmp_path_factory.mktemp("annotated")
    (root / "images").mkdir()
    (root / "masks").mkdir()
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    segments: list[dict[str, Any]] = []
    with Predictor.load(segmenter) as predictor:
        for index, (height, width) in enumerate(SIZES):
            random = np.random.default_rng(index)
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            pixels[10:40, 20 + 5 * index : 45] //= 4
            image_id = 100 - index  # not in the order of the list
            name = f"{image_id}.png"
            Image.fromarray(pixels).save(root / "images" / name)
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            found, segmentation = predictor.detect_and_segment(pixels, 0.0, PANOPTIC_THRESHOLD, clip=False)
            assert found.masks is not None
            for query in range(index % 2, len(found), 2):
                x_min, y_min, x_max, y_max = (float(value) for value in found.boxes[query] + random.normal(0, 0.7, 4))
                mask = np.roll(found.masks[query], int(random.integers(0, 6)), axis=1)
                objects.append(
                    {
                        "id": len(objects),  # from 0
                        "image_id": image_id,
                        "category_id": int(found.labels[query]),
                        "bbox": [x_min, y_min, x_max - x_min, y_max - y_min],
                        "area": float(mask.sum()),
                        "iscrowd": 0,
                        "segmentation": encode_compressed_rle(mask),
                    }
                )
            ids = np.roll(segmentation.map, 3, axis=1)
            ids[:, -1] = 0
            Image.fromarray(id_to_rgb(ids)).save(root / "masks" / name)
            info = [{"id": item.id, "category_id": item.label, "iscrowd": 0, "area": 0} for item in segmentation.segments]
            segments.append({"image_id": image_id, "file_name": name, "segments_info": info})
    for name, records in (("instances", objects), ("panoptic", segments)):
        document = {"images": images, "annotations": records, "categories": CATEGORIES}
        (root / f"{name}.json").write_text(json.dumps(document))
    return Annotated(root / "images", root / "instances.json", (root / "panoptic.json", root / "masks"))
