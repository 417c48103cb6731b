"""Outputs of an imaginary model, which post-processing is measured on."""

from __future__ import annotations

import numpy as np

QUERIES = 100
CLASSES = 250  # the classes of the COCO panoptic checkpoints
MASK_SIZE = (200, 267)  # a quarter of 800x1066, as the mask head makes them


def spread_out_outputs(kept: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Outputs of an imaginary model: one noisy ellipse a query, 4 to 20 % of the image height across, anywhere in it.

    Args:
        kept: how many of the queries have a class; the others are "no object".
        seed: of the random generator.

    Returns:
        logits float32 (1, 100, 251), pred_masks float32 (1, 100, 200, 267), in [-13, 10] or so, and pred_boxes float32
        (1, 100, 4), cxcywh in [0, 1], around the ellipses.
    """
    random = np.random.default_rng(seed)
    height, width = MASK_SIZE
    y, x = np.mgrid[:height, :width].astype(np.float32)
    masks = np.empty((1, QUERIES, height, width), dtype=np.float32)
    boxes = np.empty((1, QUERIES, 4), dtype=np.float32)
    for query in range(QUERIES):
        center_y, center_x = random.uniform(0, height), random.uniform(0, width)
        radius_y, radius_x = random.uniform(0.02, 0.1, size=2) * height
        distance = np.hypot((y - center_y) / radius_y, (x - center_x) / radius_x)
        masks[0, query] = np.clip(6 * (1 - distance), -12, 8) + random.normal(0, 0.3, (height, width))
        boxes[0, query] = center_x / width, center_y / height, 2 * radius_x / width, 2 * radius_y / height
    logits = random.normal(0, 1, (1, QUERIES, CLASSES + 1)).astype(np.float32)
    logits[0, :, CLASSES] = 12
    queries = random.permutation(QUERIES)[:kept]
    logits[0, queries, random.integers(0, CLASSES, kept)] = 14 + random.uniform(0, 3, kept)
    return {"logits": logits, "pred_boxes": boxes, "pred_masks": masks}
