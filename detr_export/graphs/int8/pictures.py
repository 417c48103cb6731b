"""The pictures that a graph is calibrated on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from detr_export.data.layouts import TRAIN, find_split, is_data_set
from detr_export.graphs.int8.watching import Feeds
from detr_export.runtimes.errors import ImageError, InputError
from detr_export.runtimes.files import sha256_of_files, user_path
from detr_export.runtimes.image_runner import ImageRunner
from detr_export.runtimes.processing.image_paths import list_folder
from detr_export.runtimes.processing.images import load_image
from detr_export.runtimes.progress import SILENT, Progress

DEFAULT_IMAGES = 100


def find_pictures(folder: str | Path, images: int | None = None) -> tuple[Path, ...]:
    """Picks pictures from a folder and the folders in it, at equal distances in the order of their paths.

    Args:
        folder: the folder; of an annotated data set, see `data.layouts`, the split `train` is taken.
        images: how many; None takes all, and at most `DEFAULT_IMAGES`. Files that are no readable pictures do not count.

    Raises:
        InputError: there is no such folder, or `images` is below 1.
        ImageError: there are no readable pictures, or fewer than `images`.
        AnnotationError: a data set has no such split.
    """
    root = user_path(folder)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; expected one with pictures to calibrate on")
    if images is not None and images < 1:
        raise InputError(f"calibration_images is {images}; expected at least 1")
    if is_data_set(root):
        files: Sequence[Path] = sorted(path for path in find_split(root, TRAIN, "detection").pictures() if path.is_file())
    else:
        files = list_folder(root).pictures
    if not files:
        raise ImageError(f"{root} holds no pictures to calibrate on; expected files that Pillow reads, such as .jpg or .png")

    # Those at equal distances come first, and the others stand in for what cannot be read.
    wanted = images or DEFAULT_IMAGES
    chosen = {files[index] for index in np.linspace(0, len(files) - 1, min(wanted, len(files))).astype(int)}
    readable: list[Path] = []
    for file in sorted(files, key=lambda file: file not in chosen):
        if len(readable) < wanted and _is_readable(file):
            readable.append(file)
    if not readable:
        raise ImageError(f"none of the {len(files)} pictures in {root} can be read; detr-export predict says why")
    if images is not None and len(readable) < images:
        raise ImageError(f"{root} holds {len(readable)} readable pictures, and {images} were asked for; ask for fewer")
    return tuple(sorted(readable))


def require_apart(pictures: Collection[Path], scored: Collection[Path]) -> None:
    """Refuses pictures that a file is calibrated on and scored on: its scores would flatter it.

    Raises:
        InputError: one of the pictures is also among `scored`, the same file or a copy.
    """
    by_size: dict[int, list[Path]] = {}
    for file in scored:
        by_size.setdefault(file.stat().st_size, []).append(file)
    for file in pictures:
        for other in by_size.get(file.stat().st_size, ()):
            if file.resolve() == other.resolve() or sha256_of_files([file]) == sha256_of_files([other]):
                raise InputError(
                    f"the calibration picture {file} is {other}, which the file is scored on; calibrate on other pictures"
                )


class PictureFeeds:
    """Pictures as a graph's inputs, one by one; they can be gone through several times.

    Args:
        runner: of a session with the graph's inputs.
        pictures: the files.
        progress: is told each picture.
        note: what progress calls this.
    """

    def __init__(self, runner: ImageRunner, pictures: Sequence[Path], progress: Progress = SILENT, note: str = "") -> None:
        self._runner, self._pictures, self._progress, self._note = runner, pictures, progress, note

    def __iter__(self) -> Iterator[Feeds]:
        for done, picture in enumerate(self._pictures):
            self._progress.step(done, len(self._pictures), self._note)
            yield self._runner.prepare([load_image(picture)])
        self._progress.step(len(self._pictures), len(self._pictures), self._note)


def _is_readable(file: Path) -> bool:
    try:
        load_image(file)
    except ImageError:
        return False
    return True
