"""What a training step minimises, as one module, because a distributed run wraps one module."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from detr_export.modeling.detr import DetrWithHeads, Pass
from detr_export.modeling.loss import Prediction, detr_loss, mask_terms, mean_boxes, weighted_sum
from detr_export.modeling.matcher import HungarianMatcher, Match
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.training.dataset import Batch


class DetectorObjective(nn.Module):
    """DETR's loss of classes and boxes, over all decoder layers (paper, section 3.2: "auxiliary decoding losses").

    As in facebookresearch/detr, the losses of the earlier layers do not change what the model computes. With
    `auxiliary_loss`, transformers also gives each layer's normed output to the next layer: a model that is trained so
    computes something else when it runs without.

    Args:
        model: what is trained.
        alone: do not talk to the other processes of a distributed run.
    """

    def __init__(self, model: DetrWithHeads, alone: bool = False) -> None:
        super().__init__()
        self.model = model
        self.alone = alone

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms."""
        return self._detection(self._run(batch), batch)[1:]

    def _run(self, batch: Batch) -> Pass:
        return self.model.base.run(batch.pixel_values, batch.pixel_mask, output_hidden_states=True)

    def _detection(self, run: Pass, batch: Batch) -> tuple[Prediction, Tensor, dict[str, Tensor]]:
        detector = self.model.detector
        prediction = detector.predict(run)
        auxiliary = detector.auxiliary_predictions(run.decoded) or detector.earlier_predictions(run.decoded)
        # In mixed precision, costs and losses are float32: overlaps of boxes need its digits.
        prediction, *auxiliary = (_float32(item) for item in (prediction, *auxiliary))
        with torch.autocast(prediction.logits.device.type, enabled=False):
            return prediction, *detr_loss(self.model.config, prediction, auxiliary, batch.targets, self._boxes(batch))

    def _boxes(self, batch: Batch) -> float:
        """The number of objects that the terms are divided by."""
        return mean_boxes(batch.targets, batch.pixel_values.device, self.alone)


class MaskObjective(DetectorObjective):
    """The loss of the masks. The detector below them is trained with them or stays as it is.

    Masks are drawn only for the queries that have an object: the others are in no term of the loss.
    """

    def __init__(self, model: DetrForSegmentation, with_detector: bool, alone: bool = False) -> None:
        super().__init__(model, alone)
        self.with_detector = with_detector

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms."""
        with torch.set_grad_enabled(self.with_detector and torch.is_grad_enabled()):
            run = self._run(batch)
            prediction, loss, terms = self._detection(run, batch)
        config = self.model.config
        matcher = HungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
        matches = matcher(prediction.logits, prediction.pred_boxes, batch.targets)
        masks, matches = self._masks(run, matches)
        with torch.autocast(masks.device.type, enabled=False):
            of_masks = mask_terms(masks.float(), batch.targets, matches, self._boxes(batch))
        mask_loss = weighted_sum(config, of_masks)
        return mask_loss + loss if self.with_detector else mask_loss, terms | of_masks

    def _masks(self, run: Pass, matches: list[Match]) -> tuple[Tensor, list[Match]]:
        """Masks (B, M, h, w) of the matched queries, filled up with query 0 to one M, and the matches with these indices."""
        assert isinstance(self.model, DetrForSegmentation)
        hidden = run.decoded.last_hidden_state
        assert hidden is not None
        most = max(1, *(len(queries) for queries, _ in matches))
        chosen = torch.stack([functional.pad(queries, (0, most - len(queries))) for queries, _ in matches]).to(hidden.device)
        own = hidden.gather(1, chosen[..., None].expand(-1, -1, hidden.shape[-1]))
        return self.model.draw_masks(run, own), [(torch.arange(len(objects)), objects) for _, objects in matches]


def _float32(prediction: Prediction) -> Prediction:
    return Prediction(prediction.logits.float(), prediction.pred_boxes.float())
