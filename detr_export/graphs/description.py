"""The metadata of a checkpoint and of the files made from it."""

from __future__ import annotations

import platform
from importlib import metadata as distributions

from detr_export import coco
from detr_export.checkpoints.reading import Checkpoint
from detr_export.config import FUSED, DetrConfig
from detr_export.modeling.position_encoding import LEARNED_POSITIONS
from detr_export.runtimes.metadata import Metadata, Range

_TOOLS = ("detr-export", "torch", "onnx", "onnxscript", "onnxsim", "onnxruntime")


def describe(
    checkpoint: Checkpoint,
    pixel_mask: bool = True,
    precision: str = "fp32",
    opset: int | None = None,
    task: str | None = None,
    input: str = "float",
) -> Metadata:
    """The metadata of a checkpoint, or of a file exported from it, before anything was compared."""
    return Metadata(
        task=task or checkpoint.task,
        id2label=dict(checkpoint.config.id2label),
        processor=checkpoint.processor.to_dict(),
        pixel_mask=pixel_mask,
        precision=precision,
        input=input,
        opset=opset,
        ranges=input_ranges(checkpoint.config),
        label_ids_to_fuse=label_ids_to_fuse(checkpoint.config),
        source={"name": checkpoint.source, "sha256": checkpoint.sha256},
        tools={name: version for name in _TOOLS if (version := _version(name))} | {"python": platform.python_version()},
    )


def input_ranges(config: DetrConfig) -> dict[str, Range]:
    """Sizes that a model takes. Sine positions have no limit; learned ones end after 50 rows and columns."""
    if config.position_embedding_type == "sine":
        side: Range = (1, None)
    else:
        stride = config.output_stride
        side = (1, LEARNED_POSITIONS * stride)
    return {"batch": (1, None), "height": side, "width": side}


def label_ids_to_fuse(config: DetrConfig) -> tuple[int, ...]:
    """Classes of stuff, whose regions a panoptic map joins: those in the configuration, or COCO's for a COCO model."""
    named = config.extra.get(FUSED)
    if named is not None:
        return tuple(int(label) for label in named)
    return tuple(coco.STUFF) if config.num_labels == coco.PANOPTIC_LABELS else ()


def _version(distribution: str) -> str | None:
    try:
        return distributions.version(distribution)
    except distributions.PackageNotFoundError:
        return None
