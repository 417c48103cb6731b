"""Where the files of a data set are, for each layout in which labelling tools write one.

    COCO           annotations/instances_train2017.json, panoptic_train2017.json with its PNGs in panoptic_train2017/, and
                   the pictures in train2017/
    CVAT           annotations/instances_Train.json and the pictures in images/Train/, or in images/
    Roboflow       train/_annotations.coco.json, valid/, test/, each with its pictures beside it
    Label Studio   result.json and the pictures in images/
    YOLO           data.yaml, the pictures in its folders, and a text file for each in labels/

An export without splits is one file: CVAT's instances_default.json, Label Studio's result.json, Roboflow's train/ alone, and
a data.yaml without val. A tenth of its pictures is then the split `val`, and the others are `train`, see `holding_out`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detr_export.data.documents import pictures_of, read_document
from detr_export.data.holding_out import hold_out
from detr_export.data.yolo import names_split, read_yolo
from detr_export.runtimes.errors import AnnotationError

FORMATS = {"detection": "instances", "panoptic": "panoptic"}  # by task, what the names of COCO's files begin with
TRAIN, VAL = "train", "val"
COCO, ROBOFLOW, LABEL_STUDIO, YOLO = "COCO", "Roboflow", "Label Studio", "YOLO"
ROBOFLOW_FILE = "_annotations.coco.json"
_ROBOFLOW_FOLDERS = {TRAIN: ("train",), VAL: ("valid", "val"), "test": ("test",)}
_LABEL_STUDIO_FILE = "result.json"
_YOLO_FILES = ("data.yaml", "data.yml", "dataset.yaml")
_SPLITS = ("train", "val", "test")  # what the name of a split begins with, in lower case; `valid` and `validation` are val


@dataclass(frozen=True)
class SplitFiles:
    """Where one split of a data set is, for one task."""

    layout: str  # "COCO", "Roboflow", "Label Studio" or "YOLO"; "COCO" is CVAT's, too
    images: Path  # folder that the names of the pictures begin at
    annotations: Path  # file
    masks: Path | None = None  # folder of the panoptic PNGs; None for detection
    split: str = TRAIN
    has_splits: bool = True  # False: the file is the whole data set, and the split is a part of it

    def document(self) -> Mapping[str, Any]:
        """The split as a COCO document; each picture's `file_name` leads from `images` to the picture, if it is there.

        A line of a YOLO text file that cannot be read is an annotation whose `bbox` is that line.

        Raises:
            AnnotationError: the file cannot be read, or has another form.
        """
        if self.layout == YOLO:
            document = read_yolo(self.annotations, self.images, self.split if self.has_splits else TRAIN)
        else:
            kind = FORMATS["detection" if self.masks is None else "panoptic"]
            document = read_document(self.annotations, self.images, kind)
        return document if self.has_splits else hold_out(document, self.split, self.annotations)

    @property
    def source(self) -> Path | Mapping[str, Any]:
        """What an evaluator reads: the file itself where it says all, else the document."""
        return self.annotations if self.layout in (COCO, ROBOFLOW) and self.has_splits else self.document()

    def pictures(self) -> list[Path]:
        """The pictures, in the order of the document; they may be missing."""
        return list(pictures_of(self.document(), self.images))


def find_split(root: str | Path, split: str, task: str) -> SplitFiles:
    """Finds the files of a split; of COCO's files none is read.

    Args:
        root: the folder of the data set, or a YOLO `data.yaml`.
        split: the beginning of the split's name: "val" finds val, val2017, Validation and valid.
        task: "detection" or "panoptic".

    Raises:
        AnnotationError: a folder or file is missing, or several annotation files fit.
    """
    root = Path(root)
    if is_yaml(root):
        return _yolo(root, split, task)
    if (root / "annotations").is_dir():
        return _coco(root, split, task)
    if _roboflow_files(root):
        return _roboflow(root, split, task)
    if (root / _LABEL_STUDIO_FILE).is_file():
        _require_boxes(task, LABEL_STUDIO, root)
        return SplitFiles(LABEL_STUDIO, root, root / _LABEL_STUDIO_FILE, None, split, has_splits=False)
    described = next((root / name for name in _YOLO_FILES if (root / name).is_file()), None)
    if described is not None:
        return _yolo(described, split, task)
    raise AnnotationError(
        f"{root} is no data set that is known: expected annotations/{FORMATS[task]}_{split}*.json (COCO, CVAT), "
        f"{split}/{ROBOFLOW_FILE} (Roboflow), {_LABEL_STUDIO_FILE} (Label Studio) or data.yaml (YOLO)"
    )


def is_data_set(root: Path) -> bool:
    """Whether a folder or a file is one that `find_split` looks into."""
    files = (_LABEL_STUDIO_FILE, *_YOLO_FILES)
    return (
        is_yaml(root)
        or (root / "annotations").is_dir()
        or bool(_roboflow_files(root))
        or any((root / name).is_file() for name in files)
    )


def is_yaml(path: Path) -> bool:
    """Whether a path is that of a file in YAML, by its name."""
    return path.suffix.lower() in (".yaml", ".yml") and path.is_file()


def _coco(root: Path, split: str, task: str) -> SplitFiles:
    # The annotation file of the split; or one file for everything, whose name is that of no split.
    folder, prefix = root / "annotations", f"{FORMATS[task]}_"
    files = [file for file in sorted(folder.glob(f"{prefix}*.json")) if file.is_file()]
    found = [file for file in files if _name_of_split(file, prefix).startswith(split)]
    named = [file for file in files if _name_of_split(file, prefix).startswith(_SPLITS)]
    has_splits = bool(named) or len(files) != 1
    if not has_splits:
        found = files
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise AnnotationError(f"{folder} should hold one annotation file named {prefix}{split}*.json; found {names}")

    # The folders of its pictures and its PNGs.
    file = found[0]
    name = file.stem.removeprefix(prefix)
    places = [root / name, root / "images" / name, root / "images"]
    images = next((place for place in places if place.is_dir()), places[0])
    masks = folder / file.stem if task == "panoptic" else None
    require_folders({"images": images, "PNGs": masks}, file)
    return SplitFiles(COCO, images, file, masks, split, has_splits)


def require_folders(folders: Mapping[str, Path | None], file: Path) -> None:
    """Refuses folders that are not there.

    Args:
        folders: by what they should hold; None for one that is not needed.
        file: the annotation file that they belong to.

    Raises:
        AnnotationError: names the folder.
    """
    for what, needed in folders.items():
        if needed is not None and not needed.is_dir():
            raise AnnotationError(f"{needed} does not exist; expected a folder with the {what} of {file}")


def _name_of_split(file: Path, prefix: str) -> str:
    return file.stem.removeprefix(prefix).lower()


def _roboflow(root: Path, split: str, task: str) -> SplitFiles:
    _require_boxes(task, ROBOFLOW, root)
    files = _roboflow_files(root)
    own = [file for file in files if file.parent.name in _ROBOFLOW_FOLDERS.get(split, (split,))]
    if own and (split != TRAIN or len(files) > 1):
        return SplitFiles(ROBOFLOW, own[0].parent, own[0], None, split)
    if len(files) == 1 and split in (TRAIN, VAL) and files[0].parent.name in ("train", root.name):
        return SplitFiles(ROBOFLOW, files[0].parent, files[0], None, split, has_splits=False)
    raise AnnotationError(
        f"{root} has {', '.join(str(file.relative_to(root)) for file in files)}; expected {split}/{ROBOFLOW_FILE}"
    )


def _roboflow_files(root: Path) -> list[Path]:
    """Of all splits; or the only one, which lies in `root` itself."""
    folders = [folder for folders in _ROBOFLOW_FOLDERS.values() for folder in folders]
    files = [root / folder / ROBOFLOW_FILE for folder in folders if (root / folder / ROBOFLOW_FILE).is_file()]
    return files or [file for file in (root / ROBOFLOW_FILE,) if file.is_file()]


def _yolo(file: Path, split: str, task: str) -> SplitFiles:
    _require_boxes(task, YOLO, file)
    has_splits = split not in (TRAIN, VAL) or names_split(file, VAL)
    return SplitFiles(YOLO, file.parent, file, None, split, has_splits)


def _require_boxes(task: str, layout: str, place: Path) -> None:
    if task != "detection":
        raise AnnotationError(
            f"{place} is a data set of {layout}, which has no panoptic maps; "
            f"expected a COCO folder with annotations/{FORMATS[task]}_*.json, or the task detection"
        )
