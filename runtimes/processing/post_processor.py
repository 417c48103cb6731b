"""The post-processing functions as methods, with the names that they have in transformers' image processors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Optional

import numpy as np

from detr_export.runtimes.processing import segmentation
from detr_export.runtimes.processing.detection import TargetSizes, post_process_object_detection
from detr_export.runtimes.processing.segmentation import Size


class PostProcessor:
    """Turns raw outputs of a model into results. Each method calls a function, which describes shapes, dtypes and errors."""

    def post_process_object_detection(
        self, outputs: Any, threshold: float = 0.5, target_sizes: Optional[TargetSizes] = None
    ) -> list[dict[str, np.ndarray]]:
        """See `detr_export.runtimes.processing.detection.post_process_object_detection`."""
        return post_process_object_detection(outputs, threshold, target_sizes)

    def post_process(self, outputs: Any, target_sizes: TargetSizes) -> list[dict[str, np.ndarray]]:
        """All queries of all images, whatever their scores. This is an older method, deprecated in transformers."""
        return post_process_object_detection(outputs, -1.0, target_sizes)

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Optional[Sequence[Size]] = None
    ) -> list[np.ndarray]:
        """See `detr_export.runtimes.processing.segmentation.post_process_semantic_segmentation`."""
        return segmentation.post_process_semantic_segmentation(outputs, target_sizes)

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: Optional[Sequence[Size]] = None,
        return_coco_annotation: bool = False,
    ) -> list[dict[str, Any]]:
        """See `detr_export.runtimes.processing.segmentation.post_process_instance_segmentation`."""
        return segmentation.post_process_instance_segmentation(
            outputs, threshold, mask_threshold, overlap_mask_area_threshold, target_sizes, return_coco_annotation
        )

    def post_process_panoptic_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse: Optional[Collection[int]] = None,
        target_sizes: Optional[Sequence[Size]] = None,
    ) -> list[dict[str, Any]]:
        """See `detr_export.runtimes.processing.segmentation.post_process_panoptic_segmentation`."""
        return segmentation.post_process_panoptic_segmentation(
            outputs, threshold, mask_threshold, overlap_mask_area_threshold, label_ids_to_fuse, target_sizes
        )
