"""Building the model that a checkpoint is of."""

from __future__ import annotations

from detr_export.checkpoints.reading import Checkpoint
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.runtimes.errors import CheckpointError

TASKS = ("detection", "segmentation")


def load_model(checkpoint: Checkpoint, task: str | None = None) -> DetrForObjectDetection | DetrForSegmentation:
    """Builds the model of a checkpoint, in eval mode, on the CPU.

    Args:
        checkpoint: from `load_checkpoint`.
        task: `detection` or `segmentation`; the checkpoint's own when None. A segmentation checkpoint also gives its
            detector.

    Raises:
        CheckpointError: the checkpoint has no weights for the task, or they do not fit the configuration.
    """
    wanted = task or checkpoint.task
    if wanted not in TASKS:
        raise CheckpointError(f"task is {wanted!r}; expected one of {', '.join(TASKS)}")
    kind = DetrForSegmentation if wanted == "segmentation" else DetrForObjectDetection
    return kind.from_checkpoint(checkpoint)
