"""A model as it is deployed: tensors in, tensors out by name, nothing optional."""

from __future__ import annotations

from torch import Tensor, nn

from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.modeling.segmentation import DetrForSegmentation


class DeployedModel(nn.Module):
    """What an exported file computes, and what it is compared with.

    Args:
        model: the checkpoint's model; put into eval mode together with this wrapper, because the exporter restores the mode
            that it finds on the wrapper for everything below it.
        attentions: also return the decoder's last cross-attention.
    """

    def __init__(self, model: DetrForObjectDetection | DetrForSegmentation, attentions: bool = False) -> None:
        super().__init__()
        self.model = model
        self.attentions = attentions
        self.eval()

    @property
    def output_names(self) -> tuple[str, ...]:
        """Keys of what `forward` returns, in order."""
        masks = ("pred_masks",) if isinstance(self.model, DetrForSegmentation) else ()
        return ("logits", "pred_boxes", *masks, *(("cross_attention",) if self.attentions else ()))

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Runs the model on (B, C, H, W) and, optionally, (B, H, W).

        Returns:
            `logits` (B, Q, classes + 1), `pred_boxes` (B, Q, 4), for segmentation `pred_masks` (B, Q, H/4, W/4), with
            attentions `cross_attention` (B, heads, Q, h, w), weights over the coarsest feature map.
        """
        run = self.model.base.run(pixel_values, pixel_mask, output_attentions=self.attentions)
        prediction = self.model.predict(run)
        outputs = {"logits": prediction.logits, "pred_boxes": prediction.pred_boxes}
        if prediction.pred_masks is not None:
            outputs["pred_masks"] = prediction.pred_masks
        if self.attentions:
            assert run.decoded.cross_attentions is not None
            outputs["cross_attention"] = run.decoded.cross_attentions[-1].unflatten(3, run.projected.shape[-2:])
        return outputs
