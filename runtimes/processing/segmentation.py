"""Semantic, instance and panoptic segmentation maps from the raw outputs of a DETR with a mask head.

Same names, arguments and results as the `post_process_*_segmentation` methods of transformers' `DetrImageProcessor`,
in numpy. What differs, on purpose:

- maps are numpy arrays and run-length encodings are lists of Python int, so that they go into JSON;
- inputs that do not fit together raise `InputError`; nothing is broadcast or ignored in silence;
- queries are filtered before the sigmoid, and a stack of full-size masks is never made (see `merging`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from detr_export.runtimes.errors import InputError
from detr_export.runtimes.processing.detection import softmax
from detr_export.runtimes.processing.merging import merge_masks, write_largest
from detr_export.runtimes.processing.resizing.masks import CHUNK_VALUES, checked_size, resize_bilinear

Size = Sequence[int]  # (height, width), pixels


def post_process_semantic_segmentation(
    outputs: Any, target_sizes: Sequence[Size] | None = None, dtype: Any = np.int64
) -> list[np.ndarray]:
    """The most likely class at every pixel.

    Args:
        outputs: attributes or keys ``logits`` float32 (B, Q, C+1), the last class being "no object", and
            ``pred_masks`` float32 (B, Q, h, w), before the sigmoid.
        target_sizes: (height, width) in pixels of each image; without it the maps keep the size of the masks.
        dtype: of the maps, an integer type; transformers has int64. int32 takes half the memory.

    Returns:
        For each image one (height, width) map of class ids.

    Raises:
        InputError: an output is missing or of another shape, or the target sizes are not one for each image.

    Numbers: transformers' method of the same name. The weight of a class at a pixel is the sum over all queries of class
    probability times mask probability. That sum is resized, and then the largest class wins.
    """
    logits, masks, sizes = _checked(outputs, target_sizes)
    maps = []
    for image_logits, image_masks, size in zip(logits, masks, sizes):
        classes = softmax(image_logits)[:, :-1]  # (Q, C)

        def weights(rows: slice, masks: np.ndarray = image_masks, classes: np.ndarray = classes) -> np.ndarray:
            return np.tensordot(_sigmoid(masks[:, rows]), classes, axes=(0, 0))  # (rows, w, C)

        winners = np.empty(size, dtype=dtype)
        write_largest(weights, (*image_masks.shape[1:], classes.shape[1]), winners)
        maps.append(winners)
    return maps


def post_process_instance_segmentation(
    outputs: Any,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    target_sizes: Sequence[Size] | None = None,
    return_coco_annotation: bool = False,
) -> list[dict[str, Any]]:
    """One segment for each detected object.

    Args:
        outputs: attributes or keys ``logits`` float32 (B, Q, C+1), the last class being "no object", and
            ``pred_masks`` float32 (B, Q, h, w), before the sigmoid.
        threshold: a query is kept when the probability of its label is above this.
        mask_threshold: a kept query claims the pixels where mask probability times label probability reaches this.
        overlap_mask_area_threshold: a query is dropped unless it wins more than this share of the pixels that it
            claims.
        target_sizes: (height, width) in pixels of each image; without it the maps keep the size of the masks.
        return_coco_annotation: return `segmentation_to_rle` of each map in place of the map.

    Returns:
        For each image one dict:
            segmentation: int32 (height, width), the id of the segment at each pixel, 0 for none. An image
                where no query is kept has float32 -1 everywhere, with `return_coco_annotation` too.
            segments_info: a list of dicts ``id``, ``label_id``, ``was_fused`` (False), ``score`` in [0, 1].

    Raises:
        InputError: an output is missing or of another shape, or the target sizes are not one for each image.

    Numbers: transformers' method of the same name; ids may differ where two masks tie within float32 rounding.
    """
    results = _segment(outputs, threshold, mask_threshold, overlap_mask_area_threshold, (), target_sizes)
    if return_coco_annotation:
        for result in results:
            if result["segmentation"].dtype == np.int32:  # not an image without kept queries
                result["segmentation"] = segmentation_to_rle(result["segmentation"])
    return results


def post_process_panoptic_segmentation(
    outputs: Any,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    label_ids_to_fuse: Collection[int] | None = None,
    target_sizes: Sequence[Size] | None = None,
    distinct_ids: bool = False,
) -> list[dict[str, Any]]:
    """One segment for each object, and one for all regions of a class that has no instances (sky, grass).

    Args:
        label_ids_to_fuse: classes whose segments share one id; None fuses nothing. `merging.assign_segment_ids` says
            how the other ids are numbered.
        distinct_ids: never give one id to two classes. transformers may do so; False gives its numbers.
        outputs, threshold, mask_threshold, overlap_mask_area_threshold, target_sizes: as in
            `post_process_instance_segmentation`.

    Returns:
        As `post_process_instance_segmentation`, with ``was_fused`` True for the classes in `label_ids_to_fuse`.

    Raises:
        InputError: an output is missing or of another shape, or the target sizes are not one for each image.

    Numbers: transformers' method of the same name; ids may differ where two masks tie within float32 rounding.
    """
    fuse = frozenset(label_ids_to_fuse or ())
    return _segment(outputs, threshold, mask_threshold, overlap_mask_area_threshold, fuse, target_sizes, distinct_ids)


def query_masks(mask_logits: np.ndarray, size: Size, mask_threshold: float = 0.5) -> np.ndarray:
    """The mask of each query on its own. Masks may overlap, as COCO's mask AP expects.

    Args:
        mask_logits: float32 (N, h, w), before the sigmoid.
        size: (height, width) of the image, in pixels.
        mask_threshold: a pixel belongs to a mask if its probability is above this.

    Returns:
        bool (N, height, width).

    Raises:
        InputError: the masks or the size are empty.

    Source: `PostProcessSegm` of facebookresearch/detr. Both resize the logits, not the probabilities. The original needs
    two steps, by way of the size of the network's input; here it is one step, as in the rest of this file. Only a few
    full-size masks of logits are held at a time. They are compared with the threshold's logit; this saves the sigmoid.
    """
    logits = np.asarray(mask_logits, dtype=np.float32)
    height, width = checked_size(logits.shape[1:], size)
    with np.errstate(divide="ignore"):  # the logits of 0 and 1 are infinite, which is right here
        least = np.float32(np.log(np.float64(mask_threshold)) - np.log1p(-np.float64(mask_threshold)))
    masks = np.empty((len(logits), height, width), dtype=bool)
    step = max(1, CHUNK_VALUES // (height * width))
    for start in range(0, len(logits), step):
        chunk = slice(start, start + step)
        np.greater(resize_bilinear(logits[chunk], (height, width)), least, out=masks[chunk])
    return masks


def binary_mask_to_rle(mask: np.ndarray) -> list[int]:
    """Runs of a mask as transformers writes them: start, length, start, length, ...

    This is *not* the encoding of COCO's files, which is in `rle.encode_rle`. Here pixels are read row by row, and
    positions count from 1.

    Args:
        mask: (height, width) of zeros and ones, bool or any number.
    """
    runs = segmentation_to_rle(np.asarray(mask) != 0, background=False)
    return runs[0] if runs else []


def segmentation_to_rle(segmentation: np.ndarray, background: bool = True) -> list[list[int]]:
    """`binary_mask_to_rle` for every id of a map, in rising order of the ids. It reads the map once.

    Args:
        segmentation: (height, width), integers or bool.
        background: whether id 0 is encoded too, as in transformers.
    """
    pixels = np.asarray(segmentation).ravel()
    if pixels.size == 0:
        return []
    starts = np.concatenate([[0], np.flatnonzero(pixels[1:] != pixels[:-1]) + 1])
    lengths = np.diff(starts, append=pixels.size)
    ids = pixels[starts]
    runs = np.stack([starts + 1, lengths], axis=1)
    return [runs[ids == wanted].ravel().tolist() for wanted in np.unique(ids) if background or wanted != 0]


def _segment(
    outputs: Any,
    threshold: float,
    mask_threshold: float,
    overlap_mask_area_threshold: float,
    label_ids_to_fuse: Collection[int],
    target_sizes: Sequence[Size] | None,
    distinct_ids: bool = False,
) -> list[dict[str, Any]]:
    """The common part of instance and panoptic segmentation: it keeps sure queries and merges their masks."""
    logits, masks, sizes = _checked(outputs, target_sizes)
    results: list[dict[str, Any]] = []
    for image_logits, image_masks, size in zip(logits, masks, sizes):
        probabilities = softmax(image_logits)
        labels, scores = probabilities.argmax(axis=-1), probabilities.max(axis=-1)
        kept = (labels != probabilities.shape[-1] - 1) & (scores > np.float32(threshold))
        if kept.any():
            segmentation, segments = merge_masks(
                _sigmoid(image_masks[kept]),
                scores[kept],
                labels[kept],
                size,
                mask_threshold,
                overlap_mask_area_threshold,
                label_ids_to_fuse,
                distinct_ids,
            )
        else:
            segmentation, segments = np.full(size, -1, dtype=np.float32), []
        results.append({"segmentation": segmentation, "segments_info": segments})
    return results


def _checked(outputs: Any, target_sizes: Sequence[Size] | None) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """The logits and masks as float32, and the size of every map. Raises InputError."""
    arrays = []
    for name, axes in (("logits", "(B, Q, C+1)"), ("pred_masks", "(B, Q, h, w)")):
        value = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if value is None:
            raise InputError(f"outputs have no {name}, expected {axes}; run a model exported for segmentation")
        array = np.asarray(value, dtype=np.float32)
        if array.ndim != axes.count(",") + 1:
            raise InputError(f"{name} has shape {array.shape}, expected {axes}")
        arrays.append(array)
    logits, masks = arrays
    if logits.shape[-1] < 2:
        raise InputError(f"logits have shape {logits.shape}, expected at least one class and no-object in the last axis")
    if logits.shape[:2] != masks.shape[:2]:
        raise InputError(
            f"logits are for {logits.shape[:2]} (images, queries) and pred_masks for {masks.shape[:2]}, expected the "
            "same; pass both from one run of the model"
        )
    if target_sizes is not None and len(target_sizes) != len(logits):
        raise InputError(
            f"{len(target_sizes)} target sizes were given for {len(logits)} images, expected one (height, width) each"
        )
    wanted = [masks.shape[2:]] * len(masks) if target_sizes is None else target_sizes
    return logits, masks, [checked_size(masks.shape[2:], size) for size in wanted]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    """The logistic function in float32. It gives exactly 0 or 1 where float32 has no nearer number."""
    values = np.negative(logits)
    with np.errstate(over="ignore"):  # exp of more than 88 is infinite, and 1 / infinity gives 0, as it should
        np.exp(values, out=values)
    values += 1
    return np.reciprocal(values, out=values)
