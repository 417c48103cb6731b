"""What all models share: a configuration, reading and writing checkpoints, and how fresh weights are drawn."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from typing_extensions import Self

from detr_export.checkpoints.reading import Checkpoint, load_checkpoint, load_strictly
from detr_export.checkpoints.saving import save_checkpoint
from detr_export.config import DetrConfig
from detr_export.modeling.backbone import DetrConvEncoder, pretrained_backbone
from detr_export.modeling.position_encoding import DetrLearnedPositionEmbedding
from detr_export.runtimes.processing.image_processor import DetrImageProcessor


class DetrPreTrainedModel(nn.Module):
    """What the models share: a configuration and how fresh weights are drawn."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_pretrained(cls, source: str | Path, dilation: bool | None = None, revision: str | None = None) -> Self:
        """Reads a checkpoint and builds the model, in eval mode; arguments and errors as in `load_checkpoint`."""
        return cls.from_checkpoint(load_checkpoint(source, dilation, revision))

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Builds the model of a checkpoint in memory, in eval mode.

        A model takes its own part of a larger model's checkpoint: `DetrModel` takes what is below the heads, and
        `DetrForObjectDetection` takes the detector of a segmentation checkpoint.

        Raises:
            CheckpointError: names or shapes of the parameters do not fit the configuration.
        """
        own_part = cls._own_part(checkpoint)
        model = cls(checkpoint.config)
        load_strictly(model, own_part, checkpoint.source)
        return model.eval()

    @classmethod
    def from_config(cls, config: DetrConfig) -> Self:
        """Builds a model to be trained: with fresh weights, and a pretrained backbone where the configuration asks for one.

        Calling the class itself never fetches anything, whatever `use_pretrained_backbone` says.

        Raises:
            CheckpointError: there are no pretrained weights for the backbone, or they could not be fetched.
            BackendError: timm, which has them, is not installed.
        """
        model = cls(config)
        if config.use_pretrained_backbone:
            encoders = [module for module in model.modules() if isinstance(module, DetrConvEncoder)]
            load_strictly(encoders[0].model, pretrained_backbone(config), f"timm's {config.backbone}")
        return model

    def save_pretrained(
        self, directory: str | Path, processor: DetrImageProcessor | None = None, fp16: bool = False
    ) -> Path:
        """Writes the checkpoint as transformers does, with the settings of `processor` (the published ones when None).

        With `fp16` it takes half the space, see `save_checkpoint`.
        """
        return save_checkpoint(self.config, self, processor or DetrImageProcessor(), directory, fp16)

    @classmethod
    def _own_part(cls, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """The checkpoint's parameters that are this class's, under the names that it gives them."""
        raise NotImplementedError

    def init_weights(self) -> None:
        """Draws fresh weights as transformers does: normal with `init_std`, biases zero, learned positions uniform.

        The backbone's convolutions get the He initialisation that they are published with.
        """
        for name, module in self.named_modules():
            if isinstance(module, DetrLearnedPositionEmbedding):
                nn.init.uniform_(module.row_embeddings.weight)
                nn.init.uniform_(module.column_embeddings.weight)
            elif isinstance(module, nn.Conv2d) and "conv_encoder" in name:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif name.endswith(("bbox_attention.q_linear", "bbox_attention.k_linear")):
                assert isinstance(module, nn.Linear)
                nn.init.xavier_uniform_(module.weight, gain=self.config.init_xavier_std)
                nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.normal_(module.weight, std=self.config.init_std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding) and "position_embedding." not in name:
                nn.init.normal_(module.weight, std=self.config.init_std)
