"""Models made of a plain function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.session import Session, TensorSpec

Arrays = dict[str, np.ndarray]
PIXELS = TensorSpec("pixel_values", "float32", ("batch", 3, "height", "width"))
HALF = TensorSpec("pixel_values", "float16", ("batch", 3, "height", "width"))
MASK = TensorSpec("pixel_mask", "int64", ("batch", "height", "width"))
BYTES = TensorSpec("pixel_values", "uint8", ("batch", "height", "width", 3))
SIZES = TensorSpec("valid_sizes", "int64", ("batch", 2))


def about(**changes: Any) -> Metadata:
    """What a file says of itself."""
    processor = DetrImageProcessor(size={"shortest_edge": 40, "longest_edge": 60}, **changes.pop("processor", {}))
    return Metadata("detection", {0: "a"}, processor.to_dict(), pixel_mask=True, **changes)


def no_change(outputs: Arrays) -> Arrays:
    return outputs


class FakeSession(Session):
    """Gives the means and maxima of each image; `change` spoils them. It keeps what it was given."""

    def __init__(
        self,
        inputs: Sequence[TensorSpec] = (PIXELS, MASK),
        change: Callable[[Arrays], Arrays] = no_change,
        metadata: Metadata | None = None,
        outputs: Sequence[str] = ("logits", "pred_boxes"),
    ) -> None:
        self.inputs, self.metadata, self._change = tuple(inputs), metadata, change
        if metadata is not None and any(spec.dtype == "uint8" for spec in inputs):
            self.metadata = replace(metadata, input="uint8")
        self.outputs = tuple(TensorSpec(name, "float32", ()) for name in outputs)  # of no declared shape
        self.seen: list[Arrays] = []

    def _run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        self.seen.append(dict(inputs))
        pixels = inputs["pixel_values"].astype(np.float64)
        axes = (1, 2) if inputs["pixel_values"].dtype == np.uint8 else (2, 3)
        outputs = {"logits": pixels.mean(axis=axes), "pred_boxes": pixels.max(axis=axes)}
        return self._change({name: value.astype(np.float32) for name, value in outputs.items()})

    def close(self) -> None:
        pass
