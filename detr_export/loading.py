"""From a checkpoint to its model, and to the PyTorch session that files made from it are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from detr_export.checkpoints.reading import Checkpoint, load_checkpoint
from detr_export.graphs.description import describe
from detr_export.modeling.deployed import DeployedModel
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.runtimes.backends.torch_session import TorchSession
from detr_export.runtimes.errors import ArtifactError, CheckpointError
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.progress import SILENT, Progress
from detr_export.runtimes.session import TensorSpec, takes_padding

TASKS = ("detection", "segmentation")


class DescribedFile(Protocol):
    """What an open session and an `Inspection` both say of a file."""

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """Its inputs."""

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """Its outputs."""

    @property
    def metadata(self) -> Metadata | None:
        """What detr-export wrote into it; None for a file of another tool."""


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


def reference_session(
    checkpoint: Checkpoint,
    *,
    task: str | None = None,
    attentions: bool = False,
    pixel_mask: bool = True,
    device: str = "cpu",
    threads: int | None = None,
) -> TorchSession:
    """Opens a checkpoint in PyTorch, behind the contract that every backend follows.

    Args:
        checkpoint: from `load_checkpoint`.
        task: as in `load_model`.
        attentions: also give the output `cross_attention`.
        pixel_mask: take the input `pixel_mask`.
        device: `cpu`, `cuda` or `cuda:N`.
        threads: of the CPU; this is PyTorch's setting for the whole process.

    Raises:
        CheckpointError: as in `load_model`.
        BackendError: the device is unknown or not available.
    """
    model = DeployedModel(load_model(checkpoint, task), attentions)
    metadata = describe(checkpoint, pixel_mask, task=task)
    return TorchSession(model, metadata, checkpoint.config.num_channels, device, threads)


def reference_of_file(
    file: str | Path,
    about: DescribedFile,
    checkpoint: str | Path | None = None,
    dilation: bool | None = None,
    revision: str | None = None,
    progress: Progress = SILENT,
) -> TorchSession:
    """Opens the checkpoint that a file must agree with, with the inputs and outputs that the file has.

    It runs on the CPU, where PyTorch does not round convolutions to TF32.

    Args:
        file: its name, for messages.
        about: the file, opened or inspected.
        checkpoint: which checkpoint; the one that the file names as its source when None.
        dilation, revision: as in `load_checkpoint`.
        progress: is told which checkpoint is read.

    Raises:
        ArtifactError: the file names no source where one is needed.
        CheckpointError: the checkpoint is missing, damaged, or not a DETR.
    """
    source = checkpoint or (about.metadata.source.get("name") if about.metadata is not None else None)
    if source is None:
        raise ArtifactError(f"{file} does not say which checkpoint it came from; add --checkpoint CHECKPOINT")
    progress.stage(f"reading {source}")
    loaded = load_checkpoint(source, dilation, revision)
    outputs = {spec.name for spec in about.outputs}
    masks_apart = about.metadata is not None and about.metadata.mask_head is not None
    return reference_session(
        loaded,
        task="segmentation" if masks_apart or outputs & {"pred_masks", "masks"} else "detection",
        attentions="cross_attention" in outputs,
        pixel_mask=takes_padding(about.inputs),
    )
