"""What all models share: a configuration, reading and writing checkpoints, and how fresh weights are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from detr_export.checkpoints.mismatches import with_fresh_parameters
from detr_export.checkpoints.reading import Checkpoint, load_checkpoint, load_strictly, require_fit
from detr_export.checkpoints.saving import save_checkpoint
from detr_export.config import DetrConfig
from detr_export.modeling.backbone import DetrConvEncoder, pretrained_backbone
from detr_export.modeling.outline import without_memory
from detr_export.modeling.position_encoding import DetrLearnedPositionEmbedding
from detr_export.modeling.transformer import LayerStack
from detr_export.runtimes.processing.image_processor import DetrImageProcessor


class DetrPreTrainedModel(nn.Module):
    """What the models share: a configuration and how fresh weights are drawn."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        dilation: bool | None = None,
        revision: str | None = None,
        *,
        config: DetrConfig | None = None,
        id2label: Mapping[int, str] | None = None,
        label2id: Mapping[str, int] | None = None,
        num_labels: int | None = None,
        ignore_mismatched_sizes: bool = False,
    ) -> Self:
        """Reads a checkpoint and builds the model, in eval mode.

        Args:
            source, dilation, revision: as in `load_checkpoint`.
            config: takes the place of the checkpoint's own.
            id2label, label2id, num_labels: other classes, see `DetrConfig.with_classes`.
            ignore_mismatched_sizes: parameters that have another shape in the checkpoint are drawn afresh, and a warning is
                logged that names them. Without it they are an error.

        Raises:
            CheckpointError: the checkpoint cannot be read, does not fit the configuration, or the classes contradict each
                other.
        """
        checkpoint = load_checkpoint(source, dilation, revision)
        own_part = cls._own_part(checkpoint)
        described = checkpoint.config if config is None else replace(config, layout=checkpoint.config.layout)
        described = described.with_classes(id2label, label2id, num_labels)
        outline = cls._outline(described)
        if outline is not None:
            if not ignore_mismatched_sizes:
                with_fresh_parameters(outline, own_part, checkpoint.source, allowed=False)
            require_fit(outline, own_part, checkpoint.source, shapes=not ignore_mismatched_sizes)
        model = cls(described)
        parameters = with_fresh_parameters(model, own_part, checkpoint.source, ignore_mismatched_sizes)
        load_strictly(model, parameters, checkpoint.source)
        return model.eval()

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Builds the model of a checkpoint in memory, in eval mode.

        A model takes its own part of a larger model's checkpoint: `DetrModel` takes what is below the heads, and
        `DetrForObjectDetection` takes the detector of a segmentation checkpoint.

        Raises:
            CheckpointError: names or shapes of the parameters do not fit the configuration.
        """
        own_part = cls._own_part(checkpoint)
        outline = cls._outline(checkpoint.config)
        if outline is not None:
            require_fit(outline, own_part, checkpoint.source)
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
        """Writes the checkpoint as transformers does, with the settings of `processor`.

        Without one, settings that are there already stay, and the published ones are written where there are none. With
        `fp16` the checkpoint takes half the space, see `save_checkpoint`.
        """
        return save_checkpoint(self.config, self, processor, directory, fp16)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the parameters are made of."""
        return next(self.parameters()).dtype

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the parameters hold, frozen batch norm not included.

        Args:
            only_trainable: leave out those that do not require a gradient.
            exclude_embeddings: leave out the queries and learned positions.
        """
        embeddings = {id(module.weight) for module in self.modules() if isinstance(module, nn.Embedding)}
        return sum(
            parameter.numel()
            for parameter in self.parameters()
            if (parameter.requires_grad or not only_trainable) and not (exclude_embeddings and id(parameter) in embeddings)
        )

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """Trains in less memory: layers of encoder and decoder run once more in the backward pass, with the same gradients.

        Args:
            gradient_checkpointing_kwargs: arguments of `torch.utils.checkpoint.checkpoint`; `use_reentrant` is False.
        """
        for module in self.modules():
            if isinstance(module, LayerStack):
                module.checkpointing = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}

    def gradient_checkpointing_disable(self) -> None:
        """Keeps all activations, as at first."""
        for module in self.modules():
            if isinstance(module, LayerStack):
                module.checkpointing = None

    @classmethod
    def _outline(cls, config: DetrConfig) -> Self | None:
        """The model without memory, with which parameters are compared before one is made that takes some.

        It is None for other backbones of timm than a ResNet: not all can be made so, and nobody chooses their size.
        """
        if not config.is_known_resnet:
            return None
        with without_memory():
            return cls(config)

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
