"""Annotations equal transformers 4.57.6's slow processor bit for bit; then what is refused."""

from __future__ import annotations

import builtins
import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from transformers import DetrImageProcessor as Oracle
from transformers import image_transforms as upstream_transforms
from transformers.models.detr import image_processing_detr as upstream
from transformers.utils import logging as oracle_logging

from detr_export.runtimes.errors import AnnotationError, BackendError
from detr_export.runtimes.processing.annotations.panoptic import id_to_rgb, masks_to_boxes, rgb_to_id
from detr_export.runtimes.processing.image_processor import BatchFeature, DetrImageProcessor
from tests.runtimes.processing.annotations import coco_records as coco

oracle_logging.set_verbosity_error()

# pycocotools' own decode, which upstream calls, was written against numpy 1.
OLD_PYCOCOTOOLS = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def assert_same_target(ours: dict[str, Any], expected: Any) -> None:
    """Keys in the same order, and the same type, dtype, shape and values under each."""
    assert list(ours) == list(expected.keys())
    for key, theirs in expected.items():
        mine = ours[key]
        if isinstance(theirs, tuple):
            assert mine == theirs, key
            continue
        assert isinstance(mine, np.ndarray), key
        assert mine.dtype == theirs.dtype, key
        assert mine.shape == theirs.shape, key
        assert np.array_equal(mine, theirs), key


def assert_same_labels(ours: BatchFeature, oracle: Any) -> None:
    assert set(ours) == set(oracle.keys())
    assert len(ours.labels) == len(oracle["labels"])
    for mine, theirs in zip(ours.labels, oracle["labels"], strict=True):
        assert isinstance(mine, BatchFeature)
        assert_same_target(mine, theirs)
    for key in ("pixel_values", "pixel_mask"):
        assert all(np.array_equal(a, b) for a, b in zip(ours.get(key, []), oracle.get(key, []), strict=True)), key


def draw_options(seed: int) -> dict[str, Any]:
    r = random.Random(seed)
    a, b = r.randint(20, 90), r.randint(20, 90)
    options = {
        "do_resize": r.random() < 0.7,
        "size": r.choice(
            [
                {"shortest_edge": a, "longest_edge": a + b},
                {"height": a, "width": b},
                {"max_height": a, "max_width": b},
            ]
        ),
        "do_pad": r.random() < 0.7,
        "do_convert_annotations": r.choice([True, True, False, None]),
        "do_normalize": r.random() < 0.8,
        "return_segmentation_masks": r.choice([True, True, False, None]),
        "data_format": r.choice(["channels_first", "channels_last"]),
    }
    if r.random() < 0.3:
        options["pad_size"] = {"height": 200, "width": 210}
    if r.random() < 0.5 and options["do_pad"]:
        options["return_tensors"] = "np"
    return options


@OLD_PYCOCOTOOLS
@pytest.mark.parametrize("seed", range(120))
def test_detection_labels_equal_the_oracle(seed: int) -> None:
    options = draw_options(seed)
    images = coco.images(seed, 1 + seed % 3)
    records = [coco.detection(10 * seed + i, x.shape[:2], keypoints=seed % 4 == 0) for i, x in enumerate(images)]
    if seed % 5 == 0 and not (options["return_segmentation_masks"] and options["do_resize"]):  # upstream fails on that
        records[0]["annotations"] = []
    before = copy.deepcopy(records)
    oracle = Oracle()(images, annotations=copy.deepcopy(records), **options)
    assert_same_labels(DetrImageProcessor()(images, records, **options), oracle)
    assert records == before


@pytest.mark.parametrize("seed", range(60))
def test_panoptic_labels_equal_the_oracle(seed: int, tmp_path: Path) -> None:
    options = {**draw_options(seed), "masks_path": tmp_path if seed % 2 else str(tmp_path)}
    images = coco.images(seed, 1 + seed % 3)
    mode = "RGBA" if seed % 7 == 0 else "RGB"
    records = [coco.panoptic(10 * seed + i, x.shape[:2], tmp_path, mode) for i, x in enumerate(images)]
    if seed % 5 == 0 and options["return_segmentation_masks"] is False:  # otherwise upstream fails on that
        records[0]["segments_info"] = []
    processor = {"format": "coco_panoptic"}
    oracle = Oracle(**processor)(images, annotations=copy.deepcopy(records), **options)
    assert_same_labels(DetrImageProcessor(**processor)(images, records, **options), oracle)


@OLD_PYCOCOTOOLS
def test_default_options_and_a_record_for_a_single_image_equal_the_oracle(photo: Path) -> None:
    with Image.open(photo) as image:
        record = coco.detection(7, (image.height, image.width))
        oracle = Oracle()(image, annotations=copy.deepcopy(record), return_segmentation_masks=True, return_tensors="np")
        ours = DetrImageProcessor()(image, record, return_segmentation_masks=True, return_tensors="np")
    assert_same_labels(ours, oracle)
    assert ours.labels[0].size.dtype == np.int64
    assert ours.labels[0].masks.shape[1:] == (800, 1199)


@pytest.mark.parametrize("convert", [True, False])
def test_boxes_say_what_the_docstring_says(convert: bool) -> None:
    """A box of half the image, in a batch where the image is a quarter of the padded one."""
    small, large = np.zeros((20, 30, 3), np.uint8), np.zeros((40, 60, 3), np.uint8)
    annotation = {"bbox": [0, 0, 15, 20], "category_id": 3, "area": 300}
    records = [{"image_id": i, "annotations": [annotation]} for i in range(2)]
    out = DetrImageProcessor(do_resize=False)([small, large], records, do_convert_annotations=convert)
    expected = [[0.125, 0.25, 0.25, 0.5]] if convert else [[0, 0, 15, 20]]
    assert out.labels[0].boxes.tolist() == expected
    assert out.labels[0]["size"] == (40, 60)
    assert out.labels[0].orig_size.tolist() == [20, 30]


def test_an_image_without_annotations_has_masks_that_resize() -> None:
    """Upstream raises IndexError there."""
    image = np.zeros((20, 30, 3), np.uint8)
    crowd = {"bbox": [0, 0, 5, 5], "category_id": 1, "area": 25, "iscrowd": 1}
    for objects in ([], [crowd]):
        out = DetrImageProcessor(size={"height": 8, "width": 9})(
            [image], [{"image_id": 1, "annotations": objects}], return_segmentation_masks=True
        )
        assert out.labels[0].masks.shape == (0, 8, 9)
        assert out.labels[0].masks.dtype == bool
        assert out.labels[0].boxes.shape == (0, 4)


@pytest.mark.parametrize("as_text", [True, False])
def test_compressed_run_lengths_are_read_as_uncompressed_ones(as_text: bool) -> None:
    """Upstream reads the uncompressed form only."""
    image = coco.images(3, 1)[0]
    mask = coco.blob(np.random.default_rng(3), *image.shape[:2])
    compressed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    if as_text:
        compressed["counts"] = compressed["counts"].decode()
    annotation = {"bbox": [0, 0, 5, 5], "category_id": 1, "area": 25, "segmentation": compressed}
    target = DetrImageProcessor().prepare_annotation(
        image, {"image_id": 1, "annotations": [annotation]}, return_segmentation_masks=True
    )
    assert mask.any()
    assert np.array_equal(target["masks"][0], mask)


# ---- the single steps -----------------------------------------------------------------------------------------------


@OLD_PYCOCOTOOLS
@pytest.mark.parametrize("seed", range(8))
def test_single_steps_equal_the_oracle(seed: int, tmp_path: Path) -> None:
    ours, oracle = DetrImageProcessor(), Oracle()
    image = coco.images(seed, 1)[0]
    size = image.shape[:2]
    record = coco.detection(seed, size, keypoints=True)
    layout = {"input_data_format": "channels_last"}
    mine = ours.prepare_annotation(image, record, return_segmentation_masks=True, **layout)
    theirs = oracle.prepare_annotation(image, copy.deepcopy(record), return_segmentation_masks=True, **layout)
    assert_same_target(mine, theirs)
    assert_same_target(ours.prepare_annotation(image, record), oracle.prepare_annotation(image, record, **layout))

    record = coco.panoptic(seed, size, tmp_path)
    options = {"format": "coco_panoptic", "masks_path": tmp_path, **layout}
    assert_same_target(
        ours.prepare_annotation(image, record, **options), oracle.prepare_annotation(image, record, **options)
    )
    without = {**options, "return_segmentation_masks": False}
    assert_same_target(
        ours.prepare_annotation(image, record, **without), oracle.prepare_annotation(image, record, **without)
    )

    before = copy.deepcopy(mine)
    for resample in (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS):
        assert_same_target(
            ours.resize_annotation(mine, size, (33, 75), resample),
            oracle.resize_annotation(theirs, size, (33, 75), resample),
        )
    mine_resized, theirs_resized = (p.resize_annotation(t, size, (33, 75)) for p, t in ((ours, mine), (oracle, theirs)))
    mine_relative, theirs_relative = (
        p.normalize_annotation(t, (33, 75)) for p, t in ((ours, mine_resized), (oracle, theirs_resized))
    )
    assert_same_target(mine_relative, theirs_relative)
    resized = np.zeros((33, 75, 3), np.uint8)
    for options in (
        {},
        {"update_bboxes": False},
        {"return_tensors": "np"},
        {"pad_size": {"height": 60, "width": 99}},
        {"return_pixel_mask": False},
    ):
        pair = [resized, np.zeros((50, 60, 3), np.uint8)]
        assert_same_labels(
            ours.pad(pair, [mine_relative, mine_relative], **options),
            oracle.pad(pair, [copy.deepcopy(theirs_relative) for _ in pair], **options),
        )
    assert_same_target(mine, before)  # upstream multiplies the caller's boxes in place


def test_pad_takes_the_dict_of_a_single_image_and_passes_unknown_keys_on() -> None:
    out = DetrImageProcessor().pad([np.zeros((4, 6, 3))], {"note": 1}, pad_size={"height": 8, "width": 6})
    assert out.labels == [{"size": (8, 6), "note": 1}]
    assert DetrImageProcessor().normalize_annotation({"note": 1}, (4, 6)) == {"note": 1}


@pytest.mark.parametrize("dtype", [np.uint8, bool])
def test_masks_to_boxes_equals_the_oracle(dtype: type) -> None:
    rng = np.random.default_rng(0)
    masks = np.stack([coco.blob(rng, 19, 31) for _ in range(12)] + [np.zeros((19, 31), bool), np.ones((19, 31), bool)])
    single = np.zeros((1, 19, 31), bool)
    single[0, 4, 30] = True
    for case in (masks, single, masks[:0]):
        mine, theirs = masks_to_boxes(case.astype(dtype)), upstream.masks_to_boxes(case.astype(dtype))
        assert mine.dtype == theirs.dtype
        assert np.array_equal(mine, theirs)


def test_ids_and_colours_equal_the_oracle() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 256**3, (11, 13))
    colours = id_to_rgb(ids)
    assert colours.dtype == np.uint8
    assert np.array_equal(colours, upstream_transforms.id_to_rgb(ids))
    assert id_to_rgb(70000) == upstream_transforms.id_to_rgb(70000)
    for dtype in (np.uint8, np.uint32):
        mine, theirs = (f(colours.astype(dtype)) for f in (rgb_to_id, upstream_transforms.rgb_to_id))
        assert mine.dtype == theirs.dtype
        assert np.array_equal(mine, theirs)
    assert np.array_equal(rgb_to_id(colours), ids)
    assert rgb_to_id([1, 2, 3]) == upstream_transforms.rgb_to_id([1, 2, 3])


# ---- errors ---------------------------------------------------------------------------------------------------------

IMAGE = np.full((20, 30, 3), 100, dtype=np.uint8)
GOOD = {"id": 5, "bbox": [1, 2, 8, 9], "category_id": 3, "area": 30.5, "segmentation": [[1, 1, 9, 1, 9, 9]], "iscrowd": 0}
KEYS = {**GOOD, "keypoints": [1, 2, 2]}


def one(**changes: Any) -> dict[str, Any]:
    """A record of one annotation; a change to `...` removes the key."""
    return {"image_id": 77, "annotations": [{k: v for k, v in {**GOOD, **changes}.items() if v is not ...}]}


BAD_DETECTIONS: list[tuple[Any, str]] = [
    ("text", "annotations is a str"),
    ([one(), one()], "2 annotations for 1 images"),
    ([], "0 annotations for 1 images"),
    ([[GOOD]], "annotation 0 is a list: expected a dict"),
    ({"annotations": []}, "annotation 0: no image_id; expected that key, found annotations"),
    ({"imageid": 3, "annotations": []}, "found annotations, imageid"),
    ({"image_id": "77", "annotations": []}, "image_id is '77'"),
    ({"image_id": 2**63, "annotations": []}, "image_id is 9223372036854775808"),
    ({"image_id": 77.0, "annotations": []}, "image_id is 77.0"),
    ({"image_id": 77}, "image 77: no annotations"),
    ({"image_id": 77, "annotation": []}, "image 77: no annotations; expected that key, found annotation, image_id"),
    ({"image_id": 77, "annotations": GOOD}, "image 77: annotations is a dict"),
    ({"image_id": 77, "annotations": [GOOD, 3]}, r"image 77, annotations\[1\] is a int"),
    ({"image_id": 77, "segments_info": [], "file_name": "a.png"}, "set format='coco_panoptic'"),
    ({"image_id": 77, "annotations": [GOOD, {**GOOD, "id": 6}, GOOD]}, r"\[0\] and annotations\[2\] both have id 5"),
    ({"image_id": 77, "annotations": [GOOD, {"id": 5, "iscrowd": 1}]}, "both have id 5"),
    (one(id="a"), "id is 'a'"),
    (one(bbox=...), r"annotations\[0\]: no bbox; .* found area, category_id, id"),
    (one(bbox=[1, 2, 3]), r"bbox is \[1, 2, 3\]"),
    (one(bbox=[1, 2, 3, 4, 5]), "expected four"),
    (one(bbox=[1, 2, float("nan"), 4]), "bbox is .*nan"),
    (one(bbox=[1, float("-inf"), 3, 4]), "bbox is .*inf"),
    (one(bbox=[1, 10**400, 3, 4]), "bbox is"),
    (one(bbox=[3e38, 1, 3e38, 4]), "bbox is"),
    (one(bbox=[1, 2, "3", 4]), "bbox is"),
    (one(bbox=[[1, 2, 3, 4]]), "bbox is"),
    (one(bbox=None), "bbox is None"),
    (one(bbox="1234"), "bbox is '1234'"),
    (one(bbox=np.array(5)), "bbox is array"),
    (one(bbox=[1, 2, 0, 4]), "has no area"),
    (one(bbox=[1, 2, 3, 0]), "has no area"),
    (one(bbox=[10, 10, -4, 5]), "has no area"),
    (one(category_id=...), "no category_id"),
    (one(category_id="cat"), "category_id is 'cat'"),
    (one(category_id=None), "category_id is None"),
    (one(category_id=2.5), "category_id is 2.5"),
    (one(category_id=True), "category_id is True"),
    (one(area=...), "no area"),
    (one(area=float("nan")), "area is nan"),
    (one(area=-1), "area is -1"),
    (one(area="9"), "area is '9'"),
    (one(iscrowd=2), "iscrowd is 2"),
    (one(iscrowd=None), "iscrowd is None"),
    (one(segmentation=...), "no segmentation"),
    (one(segmentation=[]), "segmentation has no polygon"),
    (one(segmentation=[[1, 2, 3, 4]]), r"segmentation\[0\] has 4 numbers"),
    (one(segmentation=[[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7]]), r"segmentation\[1\] has 7 numbers"),
    (one(segmentation=[1, 2, 3, 4, 5, 6]), r"segmentation\[0\] is 1"),
    (one(segmentation=[[1, 2, 3, 4, 5, float("nan")]]), r"segmentation\[0\] is .*nan"),
    (one(segmentation=[[1, 2, 3, 4, 5, 1e9]]), r"segmentation\[0\]: y is 1e\+09: expected -1000 to 1020"),
    (one(segmentation="polygon"), "segmentation is a str"),
    (one(segmentation={"counts": [600]}), "segmentation: .*expected size and counts"),
    (one(segmentation={"counts": [599], "size": [20, 30]}), "add up to 599"),
    (one(segmentation={"counts": [600], "size": [30, 20]}), r"has size \[30, 20\]: expected .* \[20, 30\]"),
    (one(segmentation={"counts": [700, -100], "size": [20, 30]}), "count of -100"),
    (one(segmentation={"counts": [[1], [2, 3]], "size": [20, 30]}), "segmentation: "),
    (one(segmentation={"counts": "\x01", "size": [20, 30]}), "segmentation: compressed"),
    ({"image_id": 77, "annotations": [{**GOOD, "id": 1}, KEYS]}, r"annotations\[0\]: no keypoints"),
    ({"image_id": 77, "annotations": [KEYS, {**GOOD, "id": 1}]}, r"annotations\[1\]: no keypoints"),
    (one(keypoints=[1, 2]), "keypoints is"),
    (one(keypoints=[]), "keypoints is"),
    (one(keypoints=[1, 2, float("inf")]), "keypoints is"),
    ({"image_id": 77, "annotations": [KEYS, {**KEYS, "id": 1, "keypoints": [1] * 6}]}, "has 6 numbers: expected 3"),
]  # fmt: skip


@pytest.mark.parametrize(("annotations", "message"), BAD_DETECTIONS)
def test_a_malformed_detection_record_is_one_clear_error(annotations: Any, message: str) -> None:
    with pytest.raises(AnnotationError, match=message) as caught:
        DetrImageProcessor(do_resize=False)(IMAGE, annotations, return_segmentation_masks=True)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    if isinstance(annotations, dict) and annotations.get("image_id") == 77:
        assert "image 77" in text or "image_id" in text


def test_the_record_that_the_bad_ones_are_made_of_is_good() -> None:
    out = DetrImageProcessor(do_resize=False)(IMAGE, one(), return_segmentation_masks=True)
    assert out.labels[0].masks.sum() > 20
    without = one(segmentation=..., iscrowd=..., id=...)
    assert "masks" not in DetrImageProcessor(do_resize=False)(IMAGE, without).labels[0]


SEGMENT = {"id": 9, "category_id": 2, "iscrowd": 0, "area": 12}


def segments(*changes: dict[str, Any], **top: Any) -> dict[str, Any]:
    infos = [{k: v for k, v in {**SEGMENT, **change}.items() if v is not ...} for change in changes]
    record = {"image_id": 77, "file_name": "good.png", "segments_info": infos, **top}
    return {k: v for k, v in record.items() if v is not ...}


BAD_PANOPTIC: list[tuple[Any, str]] = [
    ({"image_id": 77, "annotations": []}, "set format='coco_detection'"),
    (segments({}, image_id=...), "annotation 0: no image_id"),
    (segments({}, segments_info=...), "image 77: no segments_info; .* found file_name, image_id"),
    (segments({}, file_name=...), "image 77: no file_name"),
    (segments({}, file_name=5), "file_name is 5"),
    (segments({}, file_name=""), "file_name is ''"),
    (segments({}, segments_info={}), "segments_info is a dict"),
    (segments({}, file_name="none.png"), "none.png does not exist"),
    (segments({}, file_name="."), "cannot read"),
    (segments({}, file_name="small.png"), "small.png is 29x20 pixels: expected the 30x20"),
    (segments({}, file_name="grey.png"), "grey.png has mode L"),
    (segments({}, file_name="cut.png"), "cannot read .*cut.png"),
    (segments({}, file_name="text.png"), "cannot read .*text.png"),
    (segments({}, {"id": 8}), r"segments_info\[1\]: id is 8, but no pixel"),
    (segments({}, {}), r"segments_info\[0\] and segments_info\[1\] both have id 9"),
    (segments({"id": ...}), "no id"),
    (segments({"id": None}), "id is None"),
    (segments({"id": "9"}), "id is '9'"),
    (segments({"category_id": ...}), "no category_id"),
    (segments({"category_id": "sky"}), "category_id is 'sky'"),
    (segments({"iscrowd": ...}), "no iscrowd"),
    (segments({"iscrowd": 5}), "iscrowd is 5"),
    (segments({"area": ...}), "no area"),
    (segments({"area": float("inf")}), "area is inf"),
]


@pytest.fixture
def png_folder(tmp_path: Path) -> Path:
    ids = np.zeros((20, 30), np.int64)
    ids[3:6, 4:8] = 9
    picture = Image.fromarray(id_to_rgb(ids))
    picture.save(tmp_path / "good.png")
    picture.convert("L").save(tmp_path / "grey.png")
    picture.crop((0, 0, 29, 20)).save(tmp_path / "small.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


@pytest.mark.parametrize(("record", "message"), BAD_PANOPTIC)
def test_a_malformed_panoptic_record_is_one_clear_error(record: Any, message: str, png_folder: Path) -> None:
    with pytest.raises(AnnotationError, match=message) as caught:
        DetrImageProcessor(format="coco_panoptic")(IMAGE, record, masks_path=png_folder)
    assert "\n" not in str(caught.value)
    if record.get("image_id") == 77:
        assert "image 77" in str(caught.value)


@pytest.mark.parametrize("masks_path", [None, 5, b"folder"])
def test_panoptic_records_need_a_folder(masks_path: Any, png_folder: Path) -> None:
    processor = DetrImageProcessor(format="coco_panoptic")
    with pytest.raises(AnnotationError, match="image 77: masks_path"):
        processor(IMAGE, segments({}), masks_path=masks_path)
    assert processor(IMAGE, segments({}), masks_path=png_folder).labels[0].class_labels.tolist() == [2]


def test_pad_refuses_annotations_that_are_not_one_dict_an_image() -> None:
    with pytest.raises(AnnotationError, match="1 annotations for 2 images"):
        DetrImageProcessor().pad([IMAGE, IMAGE], [{}])
    with pytest.raises(AnnotationError, match="annotation 0 is a int"):
        DetrImageProcessor().pad([IMAGE], [3])


def test_only_polygons_need_pycocotools(monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def without_coco(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pycocotools"):
            raise ImportError(name)
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_coco)
    processor = DetrImageProcessor(do_resize=False)
    with pytest.raises(BackendError, match=r"pip install 'detr-export\[coco\]'"):
        processor(IMAGE, one(), return_segmentation_masks=True)
    rle = one(segmentation={"counts": [1, 2, 597], "size": [20, 30]})
    assert processor(IMAGE, rle, return_segmentation_masks=True).labels[0].masks.sum() == 2
    assert processor(IMAGE, one()).labels[0].class_labels.tolist() == [3]
