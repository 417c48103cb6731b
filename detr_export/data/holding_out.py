"""A validation split for a data set that has none: the same tenth of its pictures in every command."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detr_export.runtimes.errors import AnnotationError

SHARE = 10  # one picture of so many is held out


def hold_out(document: Mapping[str, Any], split: str, file: Path) -> Mapping[str, Any]:
    """The part of a COCO document that is the split `val`, or the rest of it, which is `train`.

    The tenth is drawn by the digests of the pictures' names without their folders. So it does not depend on the order of the
    file, and a picture stays in its split if a few others are added.

    Args:
        document: with lists of images and annotations.
        split: "train" or "val".
        file: that the document came from, for messages.

    Raises:
        AnnotationError: there are fewer than two pictures.
    """
    images = document["images"]
    if len(images) < 2:
        raise AnnotationError(
            f"{file} has {len(images)} images and no splits; expected at least two, one of them to hold out as the split val"
        )
    order = sorted(range(len(images)), key=lambda index: _digest(images[index]))
    held_out = set(order[: -(-len(images) // SHARE)])
    kept = [image for index, image in enumerate(images) if (index in held_out) == (split == "val")]
    other = {_id(image) for image in images} - {_id(image) for image in kept}
    # An annotation of no image at all stays: a check finds it.
    annotations = [
        item
        for item in document["annotations"]
        if not (isinstance(item, Mapping) and _hashable(item.get("image_id")) in other)
    ]
    return {**document, "images": kept, "annotations": annotations}


def _digest(image: Any) -> bytes:
    name = image.get("file_name") if isinstance(image, Mapping) else None
    return hashlib.sha256(str(name).replace("\\", "/").rpartition("/")[2].encode(errors="replace")).digest()


def _id(image: Any) -> Any:
    return _hashable(image.get("id")) if isinstance(image, Mapping) else None


def _hashable(value: Any) -> Any:
    return value if isinstance(value, (int, str)) else repr(value)
