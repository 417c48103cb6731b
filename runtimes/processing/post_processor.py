"""The post-processing functions as methods, with the names that they have in transformers' image processors.

Outputs of PyTorch give tensors, on the device of the outputs and without a gradient; all others give NumPy arrays. Target
sizes are pairs (height, width) in a list, an array (B, 2) or a tensor.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Optional

from detr_export.runtimes.processing import segmentation
from detr_export.runtimes.processing.detection import post_process_object_detection
from detr_export.runtimes.processing.torch_tensors import as_given, outputs_as_arrays, sizes_as_arrays


class PostProcessor:
    """Turns raw outputs of a model into results. Each method calls a function, which describes shapes, dtypes and errors."""

    def post_process_object_detection(
        self, outputs: Any, threshold: float = 0.5, target_sizes: Any = None
    ) -> list[dict[str, Any]]:
        """See `detr_export.runtimes.processing.detection.post_process_object_detection`."""
        arrays, device = outputs_as_arrays(outputs)
        return as_given(post_process_object_detection(arrays, threshold, sizes_as_arrays(target_sizes)), device)

    def post_process(self, outputs: Any, target_sizes: Any) -> list[dict[str, Any]]:
        """All queries of all images, whatever their scores. This is an older method, deprecated in transformers."""
        return self.post_process_object_detection(outputs, -1.0, target_sizes)

    def post_process_semantic_segmentation(self, outputs: Any, target_sizes: Any = None) -> list[Any]:
        """See `detr_export.runtimes.processing.segmentation.post_process_semantic_segmentation`."""
        arrays, device = outputs_as_arrays(outputs)
        maps = segmentation.post_process_semantic_segmentation(arrays, sizes_as_arrays(target_sizes))
        return as_given(maps, device)

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: Any = None,
        return_coco_annotation: bool = False,
    ) -> list[dict[str, Any]]:
        """See `detr_export.runtimes.processing.segmentation.post_process_instance_segmentation`."""
        arrays, device = outputs_as_arrays(outputs)
        sizes = sizes_as_arrays(target_sizes)
        results = segmentation.post_process_instance_segmentation(
            arrays, threshold, mask_threshold, overlap_mask_area_threshold, sizes, return_coco_annotation
        )
        return as_given(results, device)

    def post_process_panoptic_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse: Optional[Collection[int]] = None,
        target_sizes: Any = None,
    ) -> list[dict[str, Any]]:
        """See `detr_export.runtimes.processing.segmentation.post_process_panoptic_segmentation`."""
        arrays, device = outputs_as_arrays(outputs)
        sizes = sizes_as_arrays(target_sizes)
        results = segmentation.post_process_panoptic_segmentation(
            arrays, threshold, mask_threshold, overlap_mask_area_threshold, label_ids_to_fuse, sizes
        )
        return as_given(results, device)
