"""The fast processor equals transformers 4.57.6's torchvision-based one; the old class name; post-processing methods."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as torchvision
from transformers import AutoImageProcessor
from transformers import DetrFeatureExtractor as OracleFeatureExtractor
from transformers import DetrImageProcessor as OracleSlow
from transformers import DetrImageProcessorFast as Oracle
from transformers.models.detr import image_processing_detr_fast as upstream
from transformers.utils import logging as oracle_logging

from detr_export.runtimes.errors import ImageError
from detr_export.runtimes.processing import detection as post_processing
from detr_export.runtimes.processing import segmentation
from detr_export.runtimes.processing.image_processor import CONFIG_NAME, DetrFeatureExtractor, DetrImageProcessor
from detr_export.runtimes.processing.image_processor_fast import DetrImageProcessorFast
from detr_export.runtimes.processing.resizing.taps import fixed_point
from detr_export.runtimes.processing.resizing.tensors import (
    BICUBIC,
    BILINEAR,
    NEAREST,
    nearest_exact,
    resize_tensor,
)
from tests.runtimes.processing.annotations import coco_records as coco

oracle_logging.set_verbosity_error()

MODES = {
    NEAREST: InterpolationMode.NEAREST_EXACT,
    BILINEAR: InterpolationMode.BILINEAR,
    BICUBIC: InterpolationMode.BICUBIC,
}
# Where torchvision resizes uint8 natively; elsewhere it goes through float32 and rounds differently.
NATIVE_UINT8 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="torch has no uint8 kernel on this CPU"
)
OLD_PYCOCOTOOLS = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def by_torchvision(image: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    tensor = torch.from_numpy(np.ascontiguousarray(image))
    return torchvision.resize(tensor, list(size), interpolation=MODES[resample]).numpy()


# (height, width) before and after: up, down, both, one side kept, thin, ratios of integers and not.
RESIZES = [
    ((480, 640), (800, 1066)),
    ((427, 640), (800, 1199)),
    ((1000, 1500), (800, 1200)),
    ((900, 1333), (300, 444)),
    ((40, 60), (37, 90)),
    ((33, 47), (33, 90)),
    ((33, 47), (70, 47)),
    ((500, 20), (10, 300)),
    ((5, 7), (90, 80)),
    ((1, 9), (4, 3)),
    ((700, 3), (2, 2)),
    ((64, 64), (2, 3)),
]


@NATIVE_UINT8
@pytest.mark.parametrize("resample", MODES)
@pytest.mark.parametrize(("old", "new"), RESIZES)
def test_resized_bytes_are_those_of_torchvision(old: tuple[int, int], new: tuple[int, int], resample: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, *old), dtype=np.uint8)
    mine = resize_tensor(image, new, resample)
    assert mine.dtype == np.uint8
    assert np.array_equal(mine, by_torchvision(image, new, resample))


@NATIVE_UINT8
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("extreme", [False, True])
def test_resized_bytes_are_those_of_torchvision_at_many_sizes(channels: int, extreme: bool) -> None:
    """`extreme`: black and white only, where the sums and the overshoot of the cubic are the largest."""
    rng = np.random.default_rng(channels)
    for _ in range(40):
        # To a width of 1 torch fails an assertion of its own, or is wrong when it has five channels.
        old, new = (tuple(int(side) for side in rng.integers(least, 90, 2)) for least in (1, 2))
        image = rng.integers(0, 256, (channels, *old), dtype=np.uint8)
        image = np.where(image > 127, 255, 0).astype(np.uint8) if extreme else image
        for resample in (BILINEAR, BICUBIC):
            mine = resize_tensor(image, new, resample)
            assert np.array_equal(mine, by_torchvision(image, new, resample)), (old, new)


@pytest.mark.parametrize("resample", [BILINEAR, BICUBIC])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("old", "new"), RESIZES[4:])
def test_floats_are_resized_to_their_own_rounding(
    old: tuple[int, int], new: tuple[int, int], dtype: type, resample: int
) -> None:
    image = np.random.default_rng(1).random((3, *old)).astype(dtype)
    mine, theirs = resize_tensor(image, new, resample), by_torchvision(image, new, resample)
    assert mine.dtype == theirs.dtype
    # A cubic weight is a sum of terms up to 8, so its rounding is that much larger than a pixel's.
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=16 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.int16, bool])
def test_other_types_go_through_float32(dtype: type) -> None:
    values = np.random.default_rng(2).integers(0, 256, (3, 40, 60))
    image = (values > 127) if dtype is bool else values.astype(dtype)
    for resample in MODES:
        mine, theirs = resize_tensor(image, (37, 90), resample), by_torchvision(image, (37, 90), resample)
        assert mine.dtype == theirs.dtype
        # Rounding errors of float32 decide where the exact value is half a unit.
        unit = 0.25 if dtype is np.float16 else 1
        assert np.abs(mine.astype(float) - theirs.astype(float)).max() <= unit
        assert np.mean(mine != theirs) <= 1e-3


def test_nearest_exact_is_that_of_torchvision() -> None:
    for old in range(1, 50):
        ramp = np.arange(old, dtype=np.uint8)[None, None]
        for new in range(1, 50):
            theirs = by_torchvision(ramp, (1, new), NEAREST)[0, 0]
            assert np.array_equal(nearest_exact(old, new), theirs), (old, new)


def test_fixed_point_weights_use_all_but_the_sign_of_16_bits() -> None:
    for largest, bits in ((1.0, 14), (0.5, 15), (0.26, 16), (0.01, 21), (1e-5, 22)):
        weights, precision = fixed_point(np.array([[largest, -largest / 3]]))
        assert precision == bits
        assert np.abs(weights).max() < 2**15
        np.testing.assert_allclose(weights / 2**precision, [[largest, -largest / 3]], atol=0.5 / 2**precision)


# ---- the processor --------------------------------------------------------------------------------------------------


def draw_case(seed: int) -> tuple[list[Any], dict[str, Any]]:
    r, rng = random.Random(seed), np.random.default_rng(seed)
    shapes = [(r.randint(4, 60), r.randint(4, 60)) for _ in range(r.randint(1, 3))]
    a, b = r.randint(8, 70), r.randint(8, 70)
    options = {
        "do_resize": r.random() < 0.75,
        "size": r.choice(
            [
                {"shortest_edge": a, "longest_edge": a + b},
                {"height": a, "width": b},
                {"max_height": a, "max_width": b},
            ]
        ),
        "resample": r.choice([*MODES]),
        "do_rescale": r.random() < 0.75,
        "rescale_factor": r.choice([1 / 255, 1 / 127.5, 0.1]),
        "do_normalize": r.random() < 0.75,
        "image_mean": r.choice([0.4, [r.random() for _ in range(3)]]),
        "image_std": r.choice([0.3, [r.uniform(0.1, 1) for _ in range(3)]]),
        "do_pad": r.random() < 0.75,
    }
    if r.random() < 0.3:
        options["pad_size"] = {"height": 240, "width": 250}
    if not options["do_pad"]:  # upstream stacks whatever comes out
        shapes = shapes[:1] * len(shapes)
    arrays = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    kind = r.choice(["pil", "hwc", "chw"])
    if kind == "pil":
        return [Image.fromarray(array) for array in arrays], options
    return [array if kind == "hwc" else array.transpose(2, 0, 1) for array in arrays], options


@NATIVE_UINT8
@pytest.mark.parametrize("seed", range(150))
def test_pixels_and_masks_equal_the_oracle_bit_for_bit(seed: int) -> None:
    images, options = draw_case(seed)
    oracle = Oracle()(copy.deepcopy(images), **options)
    before = [np.array(image) for image in images]
    for ours in (
        DetrImageProcessorFast(**options)(images, return_tensors="np"),
        DetrImageProcessorFast()(images, return_tensors="np", **options),
    ):
        assert set(ours) == set(oracle.keys())
        for key, tensor in oracle.items():
            theirs = tensor.numpy()
            assert ours[key].dtype == theirs.dtype, key
            assert ours[key].shape == theirs.shape, key
            assert np.array_equal(ours[key], theirs), key
            ours[key][...] = 0  # the caller owns the result
    assert all(np.array_equal(np.array(image), kept) for image, kept in zip(images, before, strict=True))


@NATIVE_UINT8
def test_a_photograph_at_the_default_size_equals_the_oracle_and_not_the_slow_class(photo: Path) -> None:
    with Image.open(photo) as image:
        theirs = Oracle()(image)
        ours = DetrImageProcessorFast()(image, return_tensors="np")
        slow = DetrImageProcessor()(image, return_tensors="np")
    assert np.array_equal(ours.pixel_values, theirs["pixel_values"].numpy())
    assert np.array_equal(ours.pixel_mask, theirs["pixel_mask"].numpy())
    assert ours.pixel_values.shape == slow.pixel_values.shape
    grey_level = 1 / 255 / 0.224
    assert 1e-5 < np.mean(np.abs(ours.pixel_values - slow.pixel_values) > grey_level / 2) < 1e-2


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_arrays_of_other_types_equal_the_oracle(dtype: type) -> None:
    values = np.random.default_rng(3).random((3, 41, 63))
    array = (values * 255).astype(dtype) if dtype is np.int64 else values.astype(dtype)
    tolerance = 1e-3 if dtype in (np.float16, np.int64) else 1e-6
    for options in ({}, {"do_normalize": False}, {"do_rescale": False}, {"do_rescale": False, "do_normalize": False}):
        call = {"size": {"height": 30, "width": 80}, **options}
        theirs = Oracle()([array.copy()], **call)["pixel_values"].numpy()
        ours = DetrImageProcessorFast()([array], return_tensors="np", **call).pixel_values
        assert ours.dtype == theirs.dtype
        assert np.mean(~np.isclose(ours, theirs, rtol=tolerance, atol=tolerance)) <= 1e-3


@NATIVE_UINT8
def test_the_rest_of_the_interface_is_that_of_the_slow_class() -> None:
    rng = np.random.default_rng(4)
    images = [rng.integers(0, 256, (h, 30, 3), dtype=np.uint8) for h in (20, 25)]
    first = DetrImageProcessorFast(size={"height": 8, "width": 12})(images)
    last = DetrImageProcessorFast(size={"height": 8, "width": 12})(images, data_format="channels_last")
    assert isinstance(first.pixel_values, list)
    for a, b in zip(first.pixel_values, last.pixel_values, strict=True):
        assert np.array_equal(a, b.transpose(2, 0, 1))
    processor = DetrImageProcessorFast()
    resized = processor.resize(images[0], {"height": 8, "width": 12})
    assert np.array_equal(resized.transpose(2, 0, 1), by_torchvision(images[0].transpose(2, 0, 1), (8, 12), BILINEAR))
    single = processor.normalize(processor.rescale(images[0], 1 / 255), [0.4] * 3, [0.2] * 3)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, (images[0] / 255 - 0.4) / 0.2, atol=1e-5)
    same = processor.resize(images[0], {"height": 20, "width": 30})
    assert np.array_equal(same, images[0])
    assert not np.shares_memory(same, images[0])


@pytest.mark.parametrize("resample", [Image.Resampling.BOX, Image.Resampling.HAMMING, Image.Resampling.LANCZOS])
def test_a_filter_that_torch_may_not_have_is_refused(resample: int) -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    with pytest.raises(ValueError, match=r"DetrImageProcessorFast resizes with 0 NEAREST, 2 BILINEAR or 3 BICUBIC"):
        DetrImageProcessorFast(resample=resample)(image)
    assert len(DetrImageProcessorFast(resample=resample)(image, do_resize=False).pixel_values) == 1


def test_a_rescale_factor_of_0_is_refused() -> None:
    with pytest.raises(ValueError, match="rescale_factor is 0"):
        DetrImageProcessorFast(rescale_factor=0)(np.zeros((20, 30, 3), np.uint8))


def test_overshoot_beyond_an_integer_type_is_refused() -> None:
    image = np.repeat(np.array([0, 65535] * 8, np.uint16), 16).reshape(1, 16, 16).repeat(3, axis=0).transpose(0, 2, 1)
    with pytest.raises(ImageError, match="leaves the range"):
        DetrImageProcessorFast(resample=BICUBIC, size={"height": 20, "width": 21})(image)


# ---- annotations ----------------------------------------------------------------------------------------------------


def assert_same_labels(ours: Any, oracle: Any, padded: tuple[int, int] | None) -> None:
    for mine, theirs in zip(ours["labels"], oracle["labels"], strict=True):
        expected = {k: np.asarray(v) for k, v in theirs.items()}
        if padded is not None:
            # Upstream leaves `size` out of images that neither resizing nor padding changes.
            expected.setdefault("size", np.asarray(padded))
        assert set(mine) == set(expected)
        for key, value in expected.items():
            assert mine[key].dtype == value.dtype, key
            assert mine[key].shape == value.shape, key
            assert np.array_equal(mine[key], value), key


def draw_annotation_options(seed: int) -> dict[str, Any]:
    r = random.Random(seed)
    a, b = r.randint(20, 90), r.randint(20, 90)
    options = {
        "do_resize": r.random() < 0.7,
        "size": r.choice([{"shortest_edge": a, "longest_edge": a + b}, {"height": a, "width": b}]),
        "do_convert_annotations": r.choice([True, True, False]),
        "return_segmentation_masks": r.choice([True, True, False, None]),
    }
    return {**options, "pad_size": {"height": 200, "width": 210}} if r.random() < 0.4 else options


@OLD_PYCOCOTOOLS
@pytest.mark.parametrize("seed", range(40))
def test_detection_labels_equal_the_oracle(seed: int) -> None:
    options = draw_annotation_options(seed)
    images = coco.images(seed, 1 + seed % 3)
    records = [coco.detection(10 * seed + i, x.shape[:2], keypoints=seed % 4 == 0) for i, x in enumerate(images)]
    for annotation in (a for record in records for a in record["annotations"]):
        if options["return_segmentation_masks"]:  # upstream fails on crowds then
            annotation["iscrowd"] = 0
    oracle = Oracle()(images, annotations=copy.deepcopy(records), **options)
    ours = DetrImageProcessorFast()(images, records, return_tensors="np", **options)
    assert_same_labels(ours, oracle, tuple(oracle["pixel_values"].shape[2:]))


@pytest.mark.parametrize("seed", range(30))
def test_panoptic_labels_equal_the_oracle(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_image(path: Path) -> torch.Tensor:  # torchvision's own needs its C++ library
        with Image.open(path) as picture:
            return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    monkeypatch.setattr(upstream, "read_image", read_image)
    options = {**draw_annotation_options(seed), "masks_path": tmp_path, "format": "coco_panoptic"}
    images = coco.images(seed, 1 + seed % 3)
    records = [coco.panoptic(10 * seed + i, x.shape[:2], tmp_path) for i, x in enumerate(images)]
    if seed % 5 == 0 and options["return_segmentation_masks"] is False:  # otherwise upstream fails on that
        records[0]["segments_info"] = []
    oracle = Oracle()(images, annotations=copy.deepcopy(records), **options)
    ours = DetrImageProcessorFast()(images, records, return_tensors="np", **options)
    assert_same_labels(ours, oracle, tuple(oracle["pixel_values"].shape[2:]))


def test_masks_beside_crowds_are_those_of_the_other_annotations() -> None:
    """Upstream's fast class raises IndexError there."""
    image = coco.images(0, 1)[0]
    record = coco.detection(0, image.shape[:2])
    record["annotations"][1]["iscrowd"] = 1
    call = {"return_segmentation_masks": True, "do_resize": False}
    fast, slow = (p()(image, record, **call).labels[0] for p in (DetrImageProcessorFast, DetrImageProcessor))
    assert fast.masks.dtype == np.uint8
    assert np.array_equal(fast.masks, slow.masks)


# ---- configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, {"size": 600, "resample": 3}, {"do_pad": False, "image_mean": [0.5] * 3}], ids=str)
def test_the_fast_configuration_is_read_by_upstream_and_read_from_it(config: dict[str, Any], tmp_path: Path) -> None:
    ours = DetrImageProcessorFast.from_dict(config)
    ours.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / CONFIG_NAME).read_text())["image_processor_type"] == "DetrImageProcessorFast"
    theirs = AutoImageProcessor.from_pretrained(tmp_path / "ours", use_fast=True)
    assert type(theirs) is Oracle
    theirs.save_pretrained(tmp_path / "theirs")
    again = DetrImageProcessorFast.from_pretrained(tmp_path / "theirs")
    assert type(again) is DetrImageProcessorFast
    assert {key: again.to_dict()[key] for key in ours.to_dict()} == ours.to_dict()


def test_the_fast_class_reads_the_configuration_of_the_slow_one() -> None:
    assert DetrImageProcessorFast.from_dict(DetrImageProcessor().to_dict()).to_dict()["image_processor_type"] == (
        "DetrImageProcessorFast"
    )
    with pytest.raises(ValueError, match="YolosImageProcessor"):
        DetrImageProcessorFast.from_dict({"image_processor_type": "YolosImageProcessor"})


def test_the_old_class_name_warns_and_works(photo: Path) -> None:
    with pytest.warns(FutureWarning, match="DetrFeatureExtractor is deprecated; use DetrImageProcessor"):
        ours = DetrFeatureExtractor(size={"height": 30, "width": 40})
    with pytest.warns(FutureWarning, match="DetrFeatureExtractor"):
        theirs = OracleFeatureExtractor(size={"height": 30, "width": 40})
    assert isinstance(ours, DetrImageProcessor)
    assert ours.to_dict() == json.loads(theirs.to_json_string())
    with Image.open(photo) as image:
        assert np.array_equal(ours(image).pixel_values, theirs(image).pixel_values)
    with pytest.warns(FutureWarning, match="DetrFeatureExtractor"):
        loaded = DetrFeatureExtractor.from_dict(ours.to_dict())
    assert type(loaded) is DetrFeatureExtractor


# ---- post-processing methods ----------------------------------------------------------------------------------------

SIZES = [(40, 60), (33, 21)]


@pytest.fixture
def outputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(8)
    logits = rng.normal(0, 4, (2, 9, 6)).astype(np.float32)
    masks = rng.normal(0, 1, (2, 9, 10, 15)).astype(np.float32)
    masks += 6 * (np.arange(15) // 2 == np.arange(9)[:, None])[:, None] - 2
    return {"logits": logits, "pred_boxes": rng.random((2, 9, 4)).astype(np.float32), "pred_masks": masks.astype(np.float32)}


def test_post_process_gives_every_query_as_upstream_does(outputs: dict[str, np.ndarray]) -> None:
    tensors = SimpleNamespace(**{name: torch.from_numpy(array) for name, array in outputs.items()})
    theirs = OracleSlow().post_process(tensors, torch.tensor(SIZES))
    for mine, expected in zip(DetrImageProcessor().post_process(outputs, SIZES), theirs, strict=True):
        assert len(mine["scores"]) == 9
        np.testing.assert_array_equal(mine["labels"], expected["labels"].numpy())
        np.testing.assert_array_equal(mine["boxes"], expected["boxes"].numpy())
        np.testing.assert_allclose(mine["scores"], expected["scores"].numpy(), rtol=1e-6)


METHODS = [
    ("post_process_object_detection", post_processing, (0.3, SIZES)),
    ("post_process_semantic_segmentation", segmentation, (SIZES,)),
    ("post_process_instance_segmentation", segmentation, (0.3, 0.4, 0.2, SIZES, True)),
    ("post_process_panoptic_segmentation", segmentation, (0.3, 0.4, 0.2, {1, 2}, SIZES)),
]


@pytest.mark.parametrize("processor", [DetrImageProcessor, DetrImageProcessorFast])
@pytest.mark.parametrize(("name", "module", "arguments"), METHODS)
def test_methods_pass_all_their_arguments_on(
    outputs: dict[str, np.ndarray], processor: type, name: str, module: Any, arguments: tuple[Any, ...]
) -> None:
    """Positional arguments in upstream's order; every one of them changes the result."""
    method, function = getattr(processor(), name), getattr(module, name)
    result = method(outputs, *arguments)
    assert repr(result) == repr(function(outputs, *arguments))
    assert repr(result) != repr(method(outputs))
    tensors = SimpleNamespace(**{key: torch.from_numpy(array) for key, array in outputs.items()})
    theirs = getattr(OracleSlow(), name)(tensors, *arguments)
    for mine, expected in zip(result, theirs, strict=True):
        if not isinstance(mine, dict):
            assert np.mean(mine != expected.numpy()) <= 1e-3
        elif "segments_info" in mine:
            assert [s["id"] for s in mine["segments_info"]] == [s["id"] for s in expected["segments_info"]]
            assert len(mine["segments_info"]) > 1
        else:
            assert mine["labels"].tolist() == expected["labels"].tolist()
