"""What the user says about where the data is: one folder, or annotation files with their pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from detr_export.data.layouts import COCO, TRAIN, VAL, SplitFiles, find_split, require_folders
from detr_export.runtimes.errors import AnnotationError, InputError
from detr_export.runtimes.files import user_path


@dataclass(frozen=True)
class DataSource:
    """A data set: either `root`, or `annotations` and `images` with their own validation files if there are any."""

    root: Path | None = None  # a folder in one of the layouts of `data.layouts`, or a data.yaml
    annotations: Path | None = None  # a COCO file
    images: Path | None = None  # the folder of its pictures
    val_annotations: Path | None = None
    val_images: Path | None = None  # the folder of the validation pictures; `images` when None

    def __post_init__(self) -> None:
        if (self.root is None) == (self.annotations is None):
            raise InputError("give either a data set (--data), or an annotation file (--annotations) and its --images")
        if (self.annotations is None) != (self.images is None):
            raise InputError("--annotations and --images go together: the file, and the folder of its pictures")
        if self.root is not None and self.val_annotations is not None:
            raise InputError("--val-annotations goes with --annotations; a data set has its validation split in itself")
        if self.val_images is not None and self.val_annotations is None:
            raise InputError("--val-images goes with --val-annotations")

    def training(self, task: str) -> SplitFiles:
        """The files to train on.

        Raises:
            AnnotationError: as `find_split`; or a file or folder is missing.
        """
        return self._files(TRAIN, task)

    def validation(self, task: str) -> SplitFiles:
        """The files to validate on, in the same form.

        Raises:
            AnnotationError: there are none.
        """
        return self._files(VAL, task)

    def to_dict(self) -> dict[str, str]:
        """For JSON: absolute paths, without what is not given."""
        found = {name: value for name, value in vars(self).items() if value is not None}
        return {name: str(user_path(value).absolute()) for name, value in found.items()}

    @classmethod
    def from_dict(cls, document: Mapping[str, str]) -> DataSource:
        """What `to_dict` wrote."""
        return cls(**{name: Path(value) for name, value in document.items()})

    def _files(self, split: str, task: str) -> SplitFiles:
        if self.root is not None:
            return find_split(user_path(self.root), split, task)
        assert self.annotations is not None
        assert self.images is not None
        file, images = self.annotations, self.images
        if split == VAL and self.val_annotations is not None:
            file, images = self.val_annotations, self.val_images or self.images
        file, images = user_path(file), user_path(images)
        masks = file.with_suffix("") if task == "panoptic" else None
        if not file.is_file():
            raise AnnotationError(f"{file} does not exist; expected a COCO annotation file")
        require_folders({"pictures": images, "PNGs": masks}, file)
        return SplitFiles(COCO, images, file, masks, split, has_splits=self.val_annotations is not None)
