"""Small DETRs with weights under which outputs vary, ours and the oracle's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from detr_export.config import DetrConfig
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.seeding import seed_weights

LABELS = {0: "N/A", 1: "person", 2: "N/A", 3: "car", 4: "cat"}
TINY_BACKBONE = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 24, 32, 48],
    "depths": [1, 1, 2, 1],
    "layer_type": "basic",
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
TINY = {
    "model_type": "detr",
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "backbone_config": TINY_BACKBONE,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": 9,
    "id2label": {str(index): name for index, name in LABELS.items()},
}
SIZE = {"shortest_edge": 96, "longest_edge": 160}


def config(**changes: Any) -> DetrConfig:
    """The tiny configuration with some fields changed; a timm backbone when `backbone` is given."""
    values = {**TINY, **changes}
    if changes.get("backbone"):
        values |= {"use_timm_backbone": True, "backbone_config": None}
    return DetrConfig.from_dict(values)


def seeded(detr_config: DetrConfig, seed: int = 0) -> DetrForObjectDetection:
    """Our model with seeded weights, in eval mode."""
    model = DetrForObjectDetection(detr_config)
    seed_weights(model, seed)
    return model


def oracle(detr_config: DetrConfig, state_dict: dict[str, torch.Tensor] | None = None) -> Any:
    """transformers' `DetrForObjectDetection`, or its `TableTransformerForObjectDetection`, strictly loaded."""
    import transformers

    kind, described = transformers.DetrForObjectDetection, transformers.DetrConfig
    if detr_config.pre_norm:
        kind, described = transformers.TableTransformerForObjectDetection, transformers.TableTransformerConfig
    values = {**detr_config.to_dict(), "use_pretrained_backbone": False}
    model = kind(described.from_dict(values))
    if state_dict is not None:
        model.load_state_dict(state_dict, strict=True)
    return model.eval()


def save_checkpoint(model: Any, directory: Path, size: dict[str, int] | None = None) -> Path:
    """Writes an oracle model as transformers does, with a processor's settings."""
    import transformers

    model.save_pretrained(directory)
    transformers.DetrImageProcessor(size=size or SIZE).save_pretrained(directory)
    return directory


def edit_config(directory: Path, **changes: Any) -> None:
    """Changes fields of a checkpoint's config.json."""
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def publish(
    cache: Path, repository: str, source: Path, inside: str = ".", revision: str = "main", commit: str = "1" * 40
) -> Path:
    """Puts a file or folder into a cache of the hub, as after a download, and returns its place there."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    place = folder / "snapshots" / commit / inside
    place.parent.mkdir(parents=True, exist_ok=True)
    copy = shutil.copytree if source.is_dir() else shutil.copyfile
    copy(source, place)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / revision).write_text(commit)
    return place
