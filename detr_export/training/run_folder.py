"""The folder of a run: its checkpoints `last` and `best` while it goes on, and the one that counts in the folder itself."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import torch

from detr_export.checkpoints.reading import load_strictly
from detr_export.checkpoints.saving import SAFETENSORS_NAME
from detr_export.config import CONFIG_NAME
from detr_export.modeling.detr import DetrWithHeads
from detr_export.runtimes.files import replacing, writing
from detr_export.runtimes.processing import image_processor
from detr_export.runtimes.processing.image_processor import DetrImageProcessor

LAST, BEST = "last", "best"  # the checkpoint after the last epoch, and that with the best score
CHECKPOINT_FILES = (CONFIG_NAME, image_processor.CONFIG_NAME, SAFETENSORS_NAME)


def deployed(model: DetrWithHeads) -> DetrWithHeads:
    """What a checkpoint of `model` is: the same weights on the CPU, in evaluation mode, with frozen batch norm."""
    frozen: DetrWithHeads = type(model)(model.config)
    load_strictly(frozen, {name: value.cpu() for name, value in model.state_dict().items()}, "training")
    return frozen.eval()


class RunFolder:
    """Writes the checkpoints of a run.

    Args:
        path: the folder.
        processor: of the checkpoints.
        fp16_weights: whether they are stored in half precision.
    """

    def __init__(self, path: Path, processor: DetrImageProcessor, fp16_weights: bool) -> None:
        self.path, self._processor, self._fp16_weights = path, processor, fp16_weights

    @property
    def last(self) -> Path:
        """The checkpoint after the last epoch."""
        return self.path / LAST

    @property
    def best(self) -> Path:
        """The checkpoint with the best score."""
        return self.path / BEST

    @torch.no_grad()
    def write_last(self, model: DetrWithHeads) -> None:
        """Writes `model`.

        Raises:
            OutputError: the folder cannot be written.
        """
        deployed(model).save_pretrained(self.last, self._processor, self._fp16_weights)

    def keep_best(self) -> None:
        """Makes the last checkpoint the best one, too."""
        _copy(self.last, self.best)

    def finish(self, with_best: bool) -> None:
        """Puts the best checkpoint, or the last where there is no best one, into the folder itself."""
        _copy(self.best if with_best else self.last, self.path)


def _copy(source: Path, target: Path) -> None:
    """Copies a checkpoint, the weights last. They share the disk's space where the file system can do that."""
    for name in CHECKPOINT_FILES:
        with replacing(target / name) as temporary, writing(target / name):
            temporary.unlink()
            with contextlib.suppress(OSError):
                os.link(source / name, temporary)
            if not temporary.exists():
                shutil.copyfile(source / name, temporary)
