"""The pixels that the graph makes against the processor's."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from detr_export.graphs.end_to_end.building import Nodes
from detr_export.graphs.end_to_end.pixels import add_pixels
from detr_export.runtimes import DetrImageProcessor
from detr_export.runtimes.metadata import BGR, MATMUL, OPERATOR, RGB, EndToEnd
from detr_export.runtimes.processing.image_processor_fast import DetrImageProcessorFast
from detr_export.verification.cases import Case, make_images
from tests.detr_export.graphs.end_to_end.running import run

LEVELS = {"do_rescale": False, "do_normalize": False}  # the processor then gives levels of 255
SIZES = {"shortest_edge": 240, "longest_edge": 400}
IMAGES = [(480, 640), (270, 480), (640, 427), (61, 37), (1, 1), (1, 3), (240, 320), (1200, 900), (333, 499)]


def _pixels(image: np.ndarray, processor: DetrImageProcessor, color: str, resize: str) -> np.ndarray:
    nodes = Nodes("pixels")
    pixels, _, _ = add_pixels(nodes, nodes.value("image"), processor, EndToEnd(color, resize, 1))
    return run(nodes, {"pixel_values": pixels}, {"image": image})["pixel_values"]


def _integer_weights(old: int, new: int) -> np.ndarray:
    """The same filter in integers and one float32 division: int64 (old, new), multiples of 2^-16."""
    centres = (2 * np.arange(new) + 1) * old, (2 * np.arange(old) + 1) * new
    heights = np.maximum(0, 2 * max(old, new) - np.abs(centres[1][:, None] - centres[0]))
    units = heights.astype(np.float32) / (heights.sum(axis=0) / 65536).astype(np.float32)
    return np.floor(units + np.float32(0.5)).astype(np.int64)


@pytest.mark.parametrize("size", IMAGES, ids=str)
def test_the_sums_are_exact(size: tuple[int, int]) -> None:
    """Bit for bit the levels of integer arithmetic."""
    processor = DetrImageProcessor(size=SIZES, **LEVELS)
    image = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = _pixels(image[None], processor, RGB, MATMUL)[0]
    rows, columns = (_integer_weights(old, new) for old, new in zip(size, found.shape[1:], strict=True))
    across = (np.einsum("hwc,wv->chv", image.astype(np.int64), columns) + 32768) >> 16
    expected = (np.einsum("chv,hu->cuv", across, rows) + 32768) >> 16
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("resize", [MATMUL, OPERATOR])
@pytest.mark.parametrize("size", IMAGES, ids=str)
def test_a_level_of_few_values(size: tuple[int, int], resize: str, photo: object) -> None:
    processor = DetrImageProcessor(size=SIZES, **LEVELS)
    noise = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    picture = np.asarray(Image.open(str(photo)).resize(size[::-1]))
    structure = make_images(Case(*size, (size,)), seed=2)["pixel_values"][0]
    for image in (noise, picture, structure):
        expected = processor.preprocess([image], return_tensors="np", input_data_format="channels_last")["pixel_values"]
        found = _pixels(image[None], processor, RGB, resize)
        assert found.shape == expected.shape
        difference = np.abs(found - expected.astype(np.float32))
        assert difference.max() <= 2
        assert (difference > 0).mean() < 0.03
        assert (difference > 1).mean() < 1e-4


@pytest.mark.parametrize(
    "processor",
    [
        DetrImageProcessor(size=SIZES),
        DetrImageProcessorFast(size=SIZES),
        DetrImageProcessor(size=SIZES, image_mean=[0.1, 0.2, 0.3], image_std=[1.5, 0.2, 0.7], rescale_factor=1 / 127),
        DetrImageProcessor(size=SIZES, do_normalize=False),
        DetrImageProcessor(size=SIZES, do_rescale=False, image_mean=[120.0, 110.0, 100.0], image_std=[60.0, 61.0, 62.0]),
        DetrImageProcessor(do_resize=False),
        DetrImageProcessor(size={"height": 100, "width": 77}),
    ],
    ids=["default", "fast", "other values", "rescaled only", "normalised only", "not resized", "one size"],
)
@pytest.mark.parametrize("color", [RGB, BGR])
def test_settings_and_colors(processor: DetrImageProcessor, color: str) -> None:
    image = make_images(Case(120, 90, ((120, 90),)), seed=4)["pixel_values"]
    expected = processor.preprocess(list(image), return_tensors="np")["pixel_values"]
    found = _pixels(image if color == RGB else np.ascontiguousarray(image[..., ::-1]), processor, color, MATMUL)
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    level = factor / (min(processor.image_std) if processor.do_normalize else 1.0)
    assert np.abs(found - expected).max() <= 1.001 * level
    assert np.median(np.abs(found - expected)) <= 4 * np.finfo(np.float32).eps * np.abs(expected).max()
    assert expected.std() > 20 * level


def test_images_of_a_batch_do_not_mix() -> None:
    images = make_images(Case(50, 70, ((50, 70),) * 3), seed=5)["pixel_values"]
    processor = DetrImageProcessor(size=SIZES)
    together = _pixels(images, processor, RGB, MATMUL)
    for image, found in zip(images, together, strict=True):
        assert np.abs(_pixels(image[None], processor, RGB, MATMUL)[0] - found).max() <= 0.02  # a rounding of a level
