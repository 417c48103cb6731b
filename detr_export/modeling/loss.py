"""DETR's training loss (paper, sections 3.1 and 3.2; masks: section 4.4), with the numbers of transformers 4.57."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.nn import functional

from detr_export.config import DetrConfig
from detr_export.modeling.boxes import center_to_corners, generalized_box_iou
from detr_export.modeling.matcher import HungarianMatcher, Match, Target
from detr_export.runtimes.errors import InputError

_FOCAL_ALPHA, _FOCAL_GAMMA = 0.25, 2  # Lin et al. 2017


@dataclass(frozen=True)
class Prediction:
    """What one decoder layer predicts."""

    logits: Tensor  # (B, Q, num_labels + 1)
    pred_boxes: Tensor  # (B, Q, 4), (center_x, center_y, width, height) in [0, 1]
    pred_masks: Tensor | None = None  # (B, Q, h, w) logits, from the last layer only


def detr_loss(
    config: DetrConfig,
    prediction: Prediction,
    auxiliary: Sequence[Prediction],
    targets: Sequence[Target],
    boxes: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum and its terms.

    Args:
        config: weights of the terms and of the matching costs.
        prediction: of the last decoder layer.
        auxiliary: of the layers before it, each with a matching of its own; empty without auxiliary loss.
        targets: for each image `class_labels` (N,) int64, `boxes` (N, 4) normalised (center_x, center_y, width, height),
            and, when there are `pred_masks`, `masks` (N, H, W).
        boxes: how many objects the terms are divided by; `mean_boxes` when None.

    Returns:
        The loss, and `loss_ce`, `loss_bbox`, `loss_giou`, `cardinality_error` (not part of the sum), `loss_mask` and
        `loss_dice`; those of auxiliary layer i end in `_i`.

    Raises:
        InputError: targets do not fit the batch, lack a field, or hold invalid boxes.
    """
    _check(config, prediction, targets)
    matcher = HungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
    if boxes is None:
        boxes = mean_boxes(targets, prediction.logits.device)
    terms = _terms(config, prediction, targets, matcher, boxes)
    for index, layer in enumerate(auxiliary):
        terms.update({f"{name}_{index}": value for name, value in _terms(config, layer, targets, matcher, boxes).items()})
    return weighted_sum(config, terms), terms


def weighted_sum(config: DetrConfig, terms: Mapping[str, Tensor]) -> Tensor:
    """The loss: the weighted sum of the terms, without `cardinality_error`."""
    weights = {
        "loss_ce": 1.0,
        "loss_bbox": config.bbox_loss_coefficient,
        "loss_giou": config.giou_loss_coefficient,
        "loss_mask": config.mask_loss_coefficient,
        "loss_dice": config.dice_loss_coefficient,
    }
    parts = [value * weights[kind] for name, value in terms.items() if (kind := name.rstrip("_0123456789")) in weights]
    return torch.stack(parts).sum()


def _terms(
    config: DetrConfig, prediction: Prediction, targets: Sequence[Target], matcher: HungarianMatcher, boxes: float
) -> dict[str, Tensor]:
    matches = matcher(prediction.logits, prediction.pred_boxes, targets)
    terms = {
        "loss_ce": _classification(config, prediction.logits, targets, matches),
        **_boxes(prediction.pred_boxes, targets, matches, boxes),
        "cardinality_error": _cardinality(prediction.logits, targets),
    }
    if prediction.pred_masks is not None:
        terms |= mask_terms(prediction.pred_masks, targets, matches, boxes)
    return terms


def _classification(config: DetrConfig, logits: Tensor, targets: Sequence[Target], matches: Sequence[Match]) -> Tensor:
    """Cross-entropy over all queries. The class of one without an object is "no object", at weight `eos_coefficient`."""
    wanted = torch.full(logits.shape[:2], config.num_labels, dtype=torch.int64, device=logits.device)
    wanted[_matched_queries(matches)] = _matched(targets, "class_labels", matches)
    weight = torch.ones(config.num_labels + 1, dtype=logits.dtype, device=logits.device)
    weight[-1] = config.eos_coefficient
    return functional.cross_entropy(logits.transpose(1, 2), wanted, weight)


def _boxes(pred_boxes: Tensor, targets: Sequence[Target], matches: Sequence[Match], boxes: float) -> dict[str, Tensor]:
    given = pred_boxes[_matched_queries(matches)]
    wanted = _matched(targets, "boxes", matches)
    overlap = generalized_box_iou(center_to_corners(given), center_to_corners(wanted)).diag()
    return {
        "loss_bbox": functional.l1_loss(given, wanted, reduction="sum") / boxes,
        "loss_giou": (1 - overlap).sum() / boxes,
    }


@torch.no_grad()
def _cardinality(logits: Tensor, targets: Sequence[Target]) -> Tensor:
    """How far the number of queries that predict an object is from the number of objects; for logs."""
    found = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1)
    objects = torch.tensor([len(target["class_labels"]) for target in targets], device=logits.device)
    return functional.l1_loss(found.float(), objects.float())


def mask_terms(pred_masks: Tensor, targets: Sequence[Target], matches: Sequence[Match], boxes: float) -> dict[str, Tensor]:
    """Focal and dice loss of the matched masks, at the size of the largest target; smaller ones are padded with zeros.

    Args:
        pred_masks: (B, Q, h, w) logits.
        targets: for each image `masks` (N, H, W).
        matches: for each image the indices of queries, and of the objects that are theirs.
        boxes: from `mean_boxes`; the sums are divided by it.
    """
    given = pred_masks[_matched_queries(matches)]
    height = max(target["masks"].shape[-2] for target in targets)
    width = max(target["masks"].shape[-1] for target in targets)
    padded = [
        functional.pad(
            target["masks"].to(given), (0, width - target["masks"].shape[-1], 0, height - target["masks"].shape[-2])
        )
        for target in targets
    ]
    wanted = torch.cat([masks[objects] for masks, (_, objects) in zip(padded, matches, strict=True)]).flatten(1)
    given = functional.interpolate(given[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0].flatten(
        1
    )
    return {"loss_mask": _focal(given, wanted) / boxes, "loss_dice": _dice(given, wanted) / boxes}


def _focal(logits: Tensor, wanted: Tensor) -> Tensor:
    probability = logits.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    right = probability * wanted + (1 - probability) * (1 - wanted)
    alpha = _FOCAL_ALPHA * wanted + (1 - _FOCAL_ALPHA) * (1 - wanted)
    return (alpha * entropy * (1 - right) ** _FOCAL_GAMMA).mean(1).sum()


def _dice(logits: Tensor, wanted: Tensor) -> Tensor:
    probability = logits.sigmoid()
    overlap = 2 * (probability * wanted).sum(1)
    return (1 - (overlap + 1) / (probability.sum(1) + wanted.sum(1) + 1)).sum()


def _matched_queries(matches: Sequence[Match]) -> tuple[Tensor, Tensor]:
    """An index of a (B, Q, ...) tensor that selects the matched queries, image by image."""
    batch = torch.cat([torch.full_like(queries, index) for index, (queries, _) in enumerate(matches)])
    return batch, torch.cat([queries for queries, _ in matches])


def _matched(targets: Sequence[Target], name: str, matches: Sequence[Match]) -> Tensor:
    return torch.cat([target[name][objects] for target, (_, objects) in zip(targets, matches, strict=True)])


def mean_boxes(targets: Sequence[Target], device: torch.device, alone: bool = False) -> float:
    """Objects in a batch, averaged over the processes of a distributed run unless `alone`; at least 1."""
    total = torch.tensor([sum(len(target["class_labels"]) for target in targets)], dtype=torch.float32, device=device)
    processes = 1
    if not alone and distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(total)
        processes = distributed.get_world_size()
    return max(total.item() / processes, 1.0)


def _check(config: DetrConfig, prediction: Prediction, targets: Sequence[Target]) -> None:
    batch = prediction.logits.shape[0]
    if len(targets) != batch:
        raise InputError(
            f"there are labels for {len(targets)} images, and {batch} images; give one dictionary for each image"
        )
    needed = ("class_labels", "boxes", "masks") if prediction.pred_masks is not None else ("class_labels", "boxes")
    for index, target in enumerate(targets):
        absent = [name for name in needed if name not in target]
        if absent:
            raise InputError(f"labels[{index}] lacks {', '.join(absent)}; expected {', '.join(needed)}")
        count = len(target["class_labels"])
        if target["boxes"].shape != (count, 4) or any(len(target[name]) != count for name in needed):
            raise InputError(f"labels[{index}] has {count} class_labels; expected as many boxes (N, 4) and masks (N, H, W)")
        labels = target["class_labels"]
        if count and not (int(labels.min()) >= 0 and int(labels.max()) < config.num_labels):
            raise InputError(f"labels[{index}] has class ids outside 0 to {config.num_labels - 1}")
