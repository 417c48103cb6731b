"""Batches of uint8 images against the processor's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_export.runtimes import DetrImageProcessor, ImageError
from detr_export.runtimes.processing.image_processor_fast import DetrImageProcessorFast
from detr_export.runtimes.processing.transforms import FIRST, PixelScaling
from detr_export.runtimes.processing.uint8_batch import uint8_batch

SIZE = {"shortest_edge": 40, "longest_edge": 70}
OPTIONS: dict[str, dict[str, Any]] = {
    "padded to the largest": {},
    "padded to a size": {"pad_size": {"height": 70, "width": 75}},
    "not resized": {"do_resize": False},
    "one size": {"size": {"height": 30, "width": 50}, "do_pad": False},
}


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for height, width in ((50, 60), (33, 31), (60, 40))
    ]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", [DetrImageProcessor, DetrImageProcessorFast])
def test_scaling_the_batch_gives_what_the_processor_gives(kind: type[DetrImageProcessor], options: dict[str, Any]) -> None:
    processor = kind(**{"size": SIZE, **options})
    batch = uint8_batch(processor, pictures())
    assert batch["pixel_values"].dtype == np.uint8
    assert batch["valid_sizes"].dtype == np.int64
    expected = processor.preprocess(pictures(), return_tensors="np")
    scaling = PixelScaling(processor.rescale_factor, processor.image_mean, processor.image_std)
    assert batch["pixel_values"].shape[:3] == (3, *expected["pixel_values"].shape[2:])
    for index, (height, width) in enumerate(batch["valid_sizes"]):
        image = batch["pixel_values"][index, :height, :width]
        wanted = expected["pixel_values"][index, :, :height, :width]
        assert np.abs(scaling.apply(image.transpose(2, 0, 1), FIRST) - wanted).max() < 1e-5
        if "pixel_mask" in expected:
            assert expected["pixel_mask"][index].sum() == height * width
        assert not batch["pixel_values"][index, height:].any()
        assert not batch["pixel_values"][index, :, width:].any()


def test_refuses_what_the_processor_refuses() -> None:
    with pytest.raises(ImageError, match="is smaller than the batch"):
        uint8_batch(DetrImageProcessor(size=SIZE, pad_size={"height": 10, "width": 10}), pictures())
