"""The model that training starts from: fresh weights for a configuration, or a checkpoint with what the task adds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from detr_export.checkpoints.reading import Checkpoint, load_strictly
from detr_export.config import FUSED, DetrConfig
from detr_export.data.splits import CocoSplit
from detr_export.modeling.batch_norm import unfreeze_batch_norm
from detr_export.modeling.detr import DetrForObjectDetection, DetrWithHeads
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.runtimes.documents import parse
from detr_export.runtimes.errors import CheckpointError, InputError
from detr_export.runtimes.processing.image_processor import CONFIG_NAME, DetrImageProcessor
from detr_export.runtimes.processing.image_processor_fast import processor_from_dict
from detr_export.training.initialization import draw_class_head, draw_mask_head, draw_weights
from detr_export.training.options import TrainingOptions
from detr_export.training.state import State


@dataclass(frozen=True)
class StartingPoint:
    """A model that is to be trained."""

    model: DetrWithHeads
    processor: DetrImageProcessor
    notes: tuple[str, ...] = ()  # which parts of it start afresh, for people
    whole_backbone: bool = False  # whether all of the backbone is trained, with its batch norm
    source: Mapping[str, str] | None = None  # name and SHA-256 of the checkpoint that it came from


def starting_point(
    split: CocoSplit, options: TrainingOptions, config: str | Path | None, checkpoint: Checkpoint | None
) -> StartingPoint:
    """Builds the model.

    Args:
        split: its classes become the model's. A checkpoint that has them under the same ids keeps its own classes and its
            classifier; any other checkpoint gets a fresh classifier.
        options: the recipe.
        config: a `config.json`, or the folder that holds it; `preprocessor_config.json` beside it is used as well.
        checkpoint: weights to start from. If `config` is given, too, it describes the model, and the weights must fit it.

    Raises:
        InputError: neither is given.
        CheckpointError: the configuration is not usable, or the weights do not fit it.
    """
    # Fresh weights, where there is no checkpoint.
    torch.manual_seed(options.seed)
    kind = DetrForSegmentation if options.task == "panoptic" else DetrForObjectDetection
    if checkpoint is None:
        if config is None:
            raise InputError("there is nothing to train; give a config.json (--config) or a checkpoint (--from)")
        return _fresh(kind, split, options, Path(config))

    # The model, with the classes of the checkpoint or of the data.
    base = checkpoint.config if config is None else DetrConfig.from_pretrained(config)
    known = all(checkpoint.config.id2label.get(label) == name for label, name in split.categories.items())
    labels = checkpoint.config.id2label if known else split.id2label
    model = kind(_for_training(base, labels, split))
    notes = [] if known else [f"the classes are not those of {checkpoint.source}: the classifier starts afresh"]

    # The weights: the detector of a segmentation checkpoint, or a detector below a fresh mask head.
    state = dict(checkpoint.state_dict)
    if kind is DetrForObjectDetection and checkpoint.task == "segmentation":
        state = {name.removeprefix("detr."): value for name, value in state.items() if name.startswith("detr.")}
    elif kind is DetrForSegmentation and checkpoint.task == "detection":
        assert isinstance(model, DetrForSegmentation)
        draw_mask_head(model.mask_head)
        fresh = {name: value for name, value in model.state_dict().items() if not name.startswith("detr.")}
        state = {f"detr.{name}": value for name, value in state.items()} | fresh
        notes.append(f"{checkpoint.source} has no mask head: it starts afresh")
    if not known:
        draw_class_head(model)
        state |= {name: value for name, value in model.state_dict().items() if "class_labels_classifier." in name}
    load_strictly(model, state, checkpoint.source)
    whole_backbone = bool(options.train_batch_norm)
    _choose_trained(model, whole_backbone, options.freeze_backbone)
    processor = checkpoint.processor if config is None else _processor_beside(Path(config)) or checkpoint.processor
    source = {"name": checkpoint.source, "sha256": checkpoint.sha256}
    return StartingPoint(model, processor, tuple(notes), whole_backbone, source)


def saved_point(state: State) -> StartingPoint:
    """The model of a run that goes on; its weights are those of `state` only when they are loaded."""
    options, identity = state.options, state.identity
    kind = DetrForSegmentation if options.task == "panoptic" else DetrForObjectDetection
    model = kind(DetrConfig.from_dict(parse(identity.config, "the configuration of the run", CheckpointError)))
    _choose_trained(model, identity.whole_backbone, options.freeze_backbone)
    processor = processor_from_dict(identity.processor)
    return StartingPoint(model, processor, (), identity.whole_backbone, identity.source)


def _fresh(kind: type[DetrWithHeads], split: CocoSplit, options: TrainingOptions, config: Path) -> StartingPoint:
    described = DetrConfig.from_pretrained(config)
    model = kind.from_config(_for_training(described, split.id2label, split))
    draw_weights(model)
    if isinstance(model, DetrForSegmentation):
        draw_mask_head(model.mask_head)
    from_scratch = not described.use_pretrained_backbone
    if from_scratch and options.freeze_backbone:
        raise InputError("a fresh backbone has to learn; leave freeze_backbone out, or start from a checkpoint (--from)")
    whole_backbone = options.train_batch_norm if options.train_batch_norm is not None else from_scratch
    _choose_trained(model, whole_backbone, options.freeze_backbone)
    backbone = "a fresh backbone" if from_scratch else f"a pretrained {described.backbone}"
    processor = _processor_beside(config) or DetrImageProcessor()
    return StartingPoint(model, processor, (f"training from scratch on {backbone}",), whole_backbone)


def _for_training(config: DetrConfig, labels: Mapping[int, str], split: CocoSplit) -> DetrConfig:
    described = config.with_classes(labels)
    return replace(described, extra={**described.extra, FUSED: list(split.stuff)}) if split.stuff else described


def _choose_trained(model: DetrWithHeads, whole_backbone: bool, freeze_backbone: bool) -> None:
    """Which parameters of the backbone may be trained; as the model is built, all but its first layers and batch norm."""
    if whole_backbone:
        unfreeze_batch_norm(model.base.backbone)
        model.base.unfreeze_backbone()
    elif freeze_backbone:
        model.base.freeze_backbone()


def _processor_beside(config: Path) -> DetrImageProcessor | None:
    folder = config if config.is_dir() else config.parent
    return DetrImageProcessor.from_pretrained(folder) if os.path.lexists(folder / CONFIG_NAME) else None
