"""The two graphs of a deployed segmentation model: the detector with what its images give to masks, and the mask head.

A user wants the masks of the queries that are sure of an object, which are ten and not a hundred. So the first graph runs
once for a batch, and the second for the queries that were chosen from its logits.
"""

from __future__ import annotations

from torch import Tensor, nn

from detr_export.modeling.detr import Pass
from detr_export.modeling.segmentation import DetrForSegmentation, MaskFeatures
from detr_export.runtimes.mask_head import FEATURE_MASK, KEYS, MASKS, PYRAMID, QUERY_STATES, SHARED


def mask_inputs(model: DetrForSegmentation, run: Pass) -> dict[str, Tensor]:
    """What the first graph gives to the second, by name: the last hidden states of all queries, and `MaskFeatures`."""
    queries = run.decoded.last_hidden_state
    assert queries is not None
    features = model.mask_features(run)
    found = {QUERY_STATES: queries, KEYS: features.keys, SHARED: features.shared}
    found |= zip(PYRAMID, features.pyramid, strict=True)
    if features.mask is not None:
        found[FEATURE_MASK] = features.mask.to(queries.dtype)
    return found


class DeployedMaskHead(nn.Module):
    """The second graph.

    Args:
        model: the checkpoint's model. It is put into eval mode, as `DeployedModel` does.
    """

    output_names = (MASKS,)

    def __init__(self, model: DetrForSegmentation) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        shared: Tensor,
        coarse: Tensor,
        middle: Tensor,
        fine: Tensor,
        feature_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Maps what `mask_inputs` gives, with the states of N queries, to `pred_masks` (B, N, h, w)."""
        mask = None if feature_mask is None else feature_mask > 0.5
        features = MaskFeatures(keys, shared, (coarse, middle, fine), mask)
        return {MASKS: self.model.masks_of(queries, features)}
