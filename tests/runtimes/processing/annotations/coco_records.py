"""A small COCO-style data set, made at random: images, detection records, and panoptic records with their PNGs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detr_export.runtimes.processing.annotations.panoptic import id_to_rgb
from detr_export.runtimes.processing.rle import encode_rle

SIZES = [(37, 52), (61, 44), (48, 48), (29, 70)]  # (height, width)
POINTS = 5  # keypoints a person


def images(seed: int, count: int) -> list[np.ndarray]:
    """uint8 (height, width, 3), of different sizes."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*SIZES[(seed + i) % len(SIZES)], 3), dtype=np.uint8) for i in range(count)]


def polygon(rng: np.random.Generator, height: int, width: int) -> list[float]:
    """A star around a point of the image; parts of it may be outside."""
    corners = int(rng.integers(3, 9))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radius = rng.uniform(2, 0.6 * min(height, width), corners)
    center = rng.uniform(0, [width, height])
    points = center + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return points.round(2).ravel().tolist()


def blob(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """bool (height, width), a noisy ellipse."""
    y, x = np.mgrid[:height, :width]
    center, radius = rng.uniform(0, [height, width]), rng.uniform(3, [height, width])
    return np.hypot((y - center[0]) / radius[0], (x - center[1]) / radius[1]) + rng.normal(0, 0.1, (height, width)) < 1


def detection(seed: int, size: tuple[int, int], keypoints: bool = False) -> dict[str, Any]:
    """A record with crowds, boxes that leave the image on every side or miss it, polygons, RLE, and keys of no meaning.

    The first box is inside: upstream cannot resize masks of an image that is left without any.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    annotations = []
    for index in range(int(rng.integers(1, 9))):
        box = [*rng.uniform(-10, [width, height]), *rng.uniform(1, [width, height])]
        segmentation: Any = [polygon(rng, height, width) for _ in range(rng.integers(1, 4))]
        if rng.random() < 0.4:
            segmentation = encode_rle(blob(rng, height, width))
        annotation = {
            "id": 1000 * seed + index,
            "bbox": [round(float(number), 2) for number in box],
            "category_id": int(rng.integers(0, 91)),
            "area": float(rng.uniform(1, 4000)),
            "segmentation": segmentation,
            "caption": "nobody asks for this",
        }
        if rng.random() < 0.8:
            annotation["iscrowd"] = int(rng.random() < 0.25)
        if keypoints:
            annotation["keypoints"] = rng.integers(0, 50, 3 * POINTS).tolist()
            annotation["num_keypoints"] = POINTS
        annotations.append(annotation)
    annotations[0].update(bbox=[2.5, 3, width / 2, height / 2], iscrowd=0)
    missed = {**annotations[0], "id": 10**9, "bbox": [width + 3.0, 2.0, 5.0, 5.0]}
    annotations.insert(int(rng.integers(0, len(annotations) + 1)), missed)
    return {"image_id": 40000 + seed, "annotations": annotations, "license": 3}


def panoptic(seed: int, size: tuple[int, int], folder: Path, mode: str = "RGB") -> dict[str, Any]:
    """A record whose segments tile the image but for a border of id 0; writes its PNG into `folder`."""
    rng = np.random.default_rng(seed)
    height, width = size
    ids = np.unique(rng.integers(1, 256**3, int(rng.integers(1, 7))))
    columns = np.sort(rng.choice(np.arange(2, width - 2), len(ids) - 1, replace=False))
    edges = [1, *columns.tolist(), width - 1]
    drawn = np.zeros(size, dtype=np.int64)
    for id_, left, right in zip(ids, edges[:-1], edges[1:], strict=True):
        top, bottom = sorted(rng.choice(height, 2, replace=False))
        drawn[top : bottom + 1, left:right] = id_
    Image.fromarray(id_to_rgb(drawn)).convert(mode).save(folder / f"{seed}.png")
    segments = [
        {
            "id": int(id_),
            "category_id": int(rng.integers(0, 200)),
            "iscrowd": int(rng.random() < 0.2),
            "area": int((drawn == id_).sum()),
            "bbox": [0, 0, 1, 1],
        }
        for id_ in rng.permutation(ids)
    ]
    return {"image_id": seed, "file_name": f"{seed}.png", "segments_info": segments, "license": 3}
