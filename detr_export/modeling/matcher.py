"""The bipartite matching between queries and objects (DETR paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detr_export.modeling.boxes import center_to_corners, generalized_box_iou
from detr_export.runtimes.errors import InputError

Target = Mapping[str, Tensor]
Match = tuple[Tensor, Tensor]  # indices of queries and of their objects, both int64 (min(Q, objects),)


class HungarianMatcher:
    """Gives each object a query of its own, so that the sum of the costs in an image is smallest.

    Args:
        class_cost: weight of minus the probability of the object's class.
        bbox_cost: weight of the L1 distance of the boxes.
        giou_cost: weight of minus their generalised IoU.
    """

    def __init__(self, class_cost: float = 1, bbox_cost: float = 1, giou_cost: float = 1) -> None:
        if class_cost == bbox_cost == giou_cost == 0:
            raise InputError("all costs of the matcher are 0; give at least one a weight")
        self.class_cost = class_cost
        self.bbox_cost = bbox_cost
        self.giou_cost = giou_cost

    @torch.no_grad()
    def __call__(self, logits: Tensor, pred_boxes: Tensor, targets: Sequence[Target]) -> list[Match]:
        """Matches a batch.

        Args:
            logits: (B, Q, num_labels + 1).
            pred_boxes: (B, Q, 4), (center_x, center_y, width, height) in [0, 1].
            targets: B times `class_labels` (N,) int64 and `boxes` (N, 4) like `pred_boxes`.

        Raises:
            InputError: boxes or costs are NaN.
        """
        batch, queries = logits.shape[:2]
        probabilities = logits.flatten(0, 1).softmax(-1)
        boxes = pred_boxes.flatten(0, 1)
        labels = torch.cat([target["class_labels"] for target in targets])
        target_boxes = torch.cat([target["boxes"] for target in targets])
        overlap = generalized_box_iou(center_to_corners(boxes), center_to_corners(target_boxes))
        distance = torch.cdist(boxes, target_boxes, p=1)
        cost = self.bbox_cost * distance - self.class_cost * probabilities[:, labels] - self.giou_cost * overlap
        if not cost.isfinite().all():
            raise InputError("the matching costs are not finite; the model's outputs or the targets hold NaN")
        columns = cost.view(batch, queries, -1).cpu().split([len(target["boxes"]) for target in targets], dim=-1)
        pairs = [linear_sum_assignment(block[index]) for index, block in enumerate(columns)]
        return [(torch.as_tensor(rows), torch.as_tensor(objects)) for rows, objects in pairs]
