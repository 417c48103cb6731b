"""From the outputs of a DETR to sorted detections in pixels, as nodes of a graph.

Source of the numbers: `runtimes.processing.detection.keep_detections`, without its threshold.
"""

from __future__ import annotations

import numpy as np

from detr_export.graphs.end_to_end.building import Nodes, Value


def add_results(nodes: Nodes, height: Value, width: Value, top_k: int, masks: bool) -> dict[str, Value]:
    """Adds post-processing to `logits`, `pred_boxes` and, with `masks`, `pred_masks`.

    Args:
        nodes: the graph that grows.
        height, width: int64 (1,), of the image that came in.
        top_k: how many queries are returned, the best first. Of equal ones, the first query comes first.
        masks: whether the model draws masks.

    Returns:
        `scores` float32 (B, K), `labels` int64 (B, K), `boxes` float32 (B, K, 4), (x_min, y_min, x_max, y_max) in pixels;
        and `masks` float32 (B, K, h, w), before the sigmoid: above 0 is the object.
    """
    # The best real class of each query; the last class is "no object".
    probabilities = nodes.add("Softmax", nodes.value("logits"), axis=-1)
    real = nodes.add("Slice", probabilities, [0], [-1], [2])
    best, label = nodes.add_many("TopK", 2, real, [1], axis=2)
    # The best queries. One index of (B, K, 1) chooses from every output.
    scores, queries = nodes.add_many("TopK", 2, nodes.add("Squeeze", best, [2]), [top_k], axis=1)
    queries = nodes.add("Unsqueeze", queries, [2])

    def chosen(values: Value) -> Value:
        return nodes.add("GatherND", values, queries, batch_dims=1)

    # Boxes from (center_x, center_y, width, height), relative, to corners in pixels
    boxes = chosen(nodes.value("pred_boxes"))
    centers = nodes.add("Slice", boxes, [0], [2], [2])
    half = nodes.add("Slice", boxes, [2], [4], [2]) * 0.5
    corners = nodes.add("Concat", centers - half, centers + half, axis=2)
    pixels = nodes.cast(nodes.add("Concat", width, height, width, height, axis=0), np.float32)
    results = {"scores": scores, "labels": chosen(nodes.add("Squeeze", label, [2])), "boxes": corners * pixels}
    if masks:
        results["masks"] = chosen(nodes.value("pred_masks"))
    return results
