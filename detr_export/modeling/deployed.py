"""A model as it is deployed, which maps tensors to named tensors, and one that starts from uint8 images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detr_export.modeling.deployed_masks import mask_inputs
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.runtimes.mask_head import KEYS, PYRAMID, QUERY_STATES, SHARED


class DeployedModel(nn.Module):
    """What an exported file computes, and what it is compared with.

    Args:
        model: the checkpoint's model. It is put into eval mode together with this wrapper, because the exporter gives
            everything below the wrapper the mode that the wrapper has.
        attentions: also return the decoder's last cross-attention.
        masks_apart: of a segmentation model: give what `DeployedMaskHead` takes, in place of masks.
    """

    def __init__(
        self,
        model: DetrForObjectDetection | DetrForSegmentation,
        attentions: bool = False,
        masks_apart: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.attentions = attentions
        self.masks_apart = masks_apart and isinstance(model, DetrForSegmentation)
        self.eval()

    @property
    def output_names(self) -> tuple[str, ...]:
        """Keys of what `forward` returns, in order; with masks apart and a pixel mask, `feature_mask` is the last."""
        masks = ("pred_masks",) if isinstance(self.model, DetrForSegmentation) and not self.masks_apart else ()
        apart = (QUERY_STATES, KEYS, SHARED, *PYRAMID) if self.masks_apart else ()
        return ("logits", "pred_boxes", *masks, *(("cross_attention",) if self.attentions else ()), *apart)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Runs the model on (B, C, H, W) and, optionally, (B, H, W).

        Returns:
            `logits` (B, Q, classes + 1) and `pred_boxes` (B, Q, 4); for segmentation also `pred_masks` (B, Q, H/4, W/4);
            with attentions also `cross_attention` (B, heads, Q, h, w), the weights over the coarsest feature map; with masks
            apart also what `mask_inputs` gives.
        """
        run = self.model.base.run(pixel_values, pixel_mask, output_attentions=self.attentions)
        prediction = (self.model.detector if self.masks_apart else self.model).predict(run)
        outputs = {"logits": prediction.logits, "pred_boxes": prediction.pred_boxes}
        if prediction.pred_masks is not None:
            outputs["pred_masks"] = prediction.pred_masks
        if self.attentions:
            assert run.decoded.cross_attentions is not None
            outputs["cross_attention"] = run.decoded.cross_attentions[-1].unflatten(3, run.projected.shape[-2:])
        if self.masks_apart and isinstance(self.model, DetrForSegmentation):
            outputs |= mask_inputs(self.model, run)
        return outputs


class Uint8Model(nn.Module):
    """A `DeployedModel` that scales its images itself, as `DetrImageProcessor` does: rescale, normalise, zeros as padding.

    The processor rescales in float64. Here everything is float32, so results may differ by one rounding.

    Args:
        model: the model of the scaled images.
        factor: what pixels are multiplied by; None leaves them.
        mean, std: of each channel; None leaves the pixels as they are.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: DeployedModel, factor: float | None, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> None:
        super().__init__()
        self.model = model
        self.factor = factor
        self.normalizes = mean is not None and std is not None
        self.register_buffer("mean", torch.tensor(mean or [0.0], dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std or [1.0], dtype=torch.float32))
        self.eval()

    @property
    def output_names(self) -> tuple[str, ...]:
        """Keys of what `forward` returns, in order."""
        return self.model.output_names

    def forward(self, pixel_values: Tensor, valid_sizes: Tensor | None = None) -> dict[str, Tensor]:
        """Runs the model on uint8 (B, H, W, 3), RGB, each image in the top left, and int64 (B, 2), its (height, width).

        Pixels beyond an image's size do not matter; without sizes every pixel is real. Returns what `DeployedModel` returns.
        """
        images = pixel_values.to(torch.float32)
        if self.factor is not None:
            images = images * self.factor
        if self.normalizes:
            images = (images - self.mean) / self.std
        images = images.permute(0, 3, 1, 2)
        if valid_sizes is None:
            return self.model(images)
        height, width = images.shape[2:]
        rows = torch.arange(height, device=images.device) < valid_sizes[:, :1]
        columns = torch.arange(width, device=images.device) < valid_sizes[:, 1:]
        mask = rows[:, :, None] & columns[:, None, :]
        return self.model(torch.where(mask[:, None], images, 0.0), mask)
