"""The processor equals transformers 4.57.6's PIL-based one bit for bit; then options, configuration and errors."""

from __future__ import annotations

import copy
import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor
from transformers import DetrImageProcessor as Oracle
from transformers.utils import logging as oracle_logging

from detr_export.runtimes.errors import CheckpointError, ImageError, OptionError, OutputError
from detr_export.runtimes.processing.image_processor import CONFIG_NAME, BatchFeature, DetrImageProcessor
from tests import models

oracle_logging.set_verbosity_error()

# How one image of a batch is handed over. The arrays of a batch share a layout, so a batch draws one kind.
KINDS = {
    "pil": lambda a: Image.fromarray(a),
    "hwc": lambda a: a,
    "chw": lambda a: np.ascontiguousarray(a.transpose(2, 0, 1)),
    "chw_view": lambda a: a.transpose(2, 0, 1),
    "hwc_strided": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "float01": lambda a: (a / 255).astype(np.float32),
    "float01_chw64": lambda a: (a / 255).transpose(2, 0, 1),
    "float255": lambda a: a.astype(np.float64),
    "float16": lambda a: a.astype(np.float16),
    "int64": lambda a: a.astype(np.int64),
    "bool_chw": lambda a: (a > 127).transpose(2, 0, 1),
}


def photo(rng: np.random.Generator, height: int, width: int, channels: int = 3) -> np.ndarray:
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def assert_same(ours: dict[str, Any], oracle: Any) -> None:
    assert set(ours) == set(oracle.keys())
    for key, expected in oracle.items():
        got = ours[key]
        assert type(got) is type(expected), key
        assert len(got) == len(expected), key
        for mine, theirs in zip(got, expected, strict=True):
            assert mine.dtype == theirs.dtype, key
            assert mine.shape == theirs.shape, key
            assert np.array_equal(mine, theirs), key


def draw_size(r: random.Random) -> dict[str, int]:
    a, b = r.randint(8, 70), r.randint(8, 70)
    return r.choice(
        [
            {"shortest_edge": a, "longest_edge": r.choice([a, a + 1, a + b, 3 * a])},
            {"height": a, "width": b},
            {"max_height": a, "max_width": b},
        ]
    )


def draw_channel_values(r: random.Random, low: float, high: float) -> Any:
    values = [r.uniform(low, high) for _ in range(3)]
    return r.choice([values[0], values, tuple(values), np.array(values), None])


def draw_case(seed: int) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """Images, constructor options and call options; each option is drawn at random or left at its default."""
    r, rng = random.Random(seed), np.random.default_rng(seed)
    kind = r.choice(["pil", "pil", *KINDS])
    shapes = [(r.randint(4, 60), r.randint(4, 60)) for _ in range(r.randint(1, 3))]
    if r.random() < 0.2:
        shapes = shapes[:1] * len(shapes)
    images = [KINDS[kind](photo(rng, *shape)) for shape in shapes]
    drawn = {
        "do_resize": r.random() < 0.75,
        "size": draw_size(r),
        "resample": r.choice([*Image.Resampling]),
        "do_rescale": r.random() < 0.75,
        "rescale_factor": r.choice([1 / 255, 1 / 127.5, 2, 0.1]),
        "do_normalize": r.random() < 0.75,
        "image_mean": draw_channel_values(r, 0, 1),
        "image_std": draw_channel_values(r, 0.1, 1),
        "do_pad": r.random() < 0.75,
        "pad_size": r.choice([None, None, {"height": 240, "width": 250}]),
    }
    constructor = {k: v for k, v in drawn.items() if r.random() < 0.7}
    constructor.setdefault("size", drawn["size"])  # the default is 800 pixels, which is tested on its own
    call = {k: v for k, v in drawn.items() if r.random() < 0.3}
    call["data_format"] = r.choice(["channels_first", "channels_first", "channels_last"])
    if r.random() < 0.3:
        call["input_data_format"] = "channels_first" if "chw" in kind else "channels_last"
        if "chw" not in kind and kind != "pil" and call.get("do_pad", constructor.get("do_pad", True)):
            call["data_format"] = r.choice([call["data_format"], None])
    return images, constructor, call


@pytest.mark.parametrize("seed", range(300))
def test_preprocess_equals_the_oracle_bit_for_bit(seed: int) -> None:
    images, constructor, call = draw_case(seed)
    before = [np.array(image) for image in images]
    oracle = Oracle(**constructor)(copy.deepcopy(images), **call)
    ours = DetrImageProcessor(**constructor)
    listed = ours.preprocess(images, **call)
    assert_same(listed, oracle)
    assert all(np.array_equal(np.array(image), kept) for image, kept in zip(images, before, strict=True))

    if len({array.shape for array in oracle["pixel_values"]}) == 1:
        stacked = ours(images, return_tensors="np", **call)
        assert_same(stacked, Oracle(**constructor)(images, return_tensors="np", **call))
        for array in stacked.values():  # the caller owns the result
            array[...] = 0
        assert all(np.array_equal(np.array(image), kept) for image, kept in zip(images, before, strict=True))


@pytest.mark.parametrize("shape", [(480, 640), (640, 427), (1500, 400), (90, 2000), (800, 800), (1, 3), (2, 1)])
def test_default_options_equal_the_oracle(shape: tuple[int, int]) -> None:
    image = Image.fromarray(photo(np.random.default_rng(0), *shape))
    format_ = {"input_data_format": "channels_last"}  # upstream would misread an image one pixel high
    oracle = Oracle()([image], return_tensors="np", **format_)
    assert_same(DetrImageProcessor()(image, return_tensors="np"), oracle)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_an_unchanged_image_is_still_a_copy(layout: str) -> None:
    array = photo(np.random.default_rng(0), 5, 7)
    off = {"do_resize": False, "do_rescale": False, "do_normalize": False, "do_pad": False}
    out = DetrImageProcessor(**off)(array, data_format=layout)
    assert not np.shares_memory(out.pixel_values[0], array)
    assert out.pixel_values[0].flags.writeable
    assert_same(out, Oracle(**off)(array, data_format=layout))


def test_images_are_accepted_in_the_containers_that_upstream_accepts() -> None:
    rng = np.random.default_rng(1)
    a, b = photo(rng, 20, 30), photo(rng, 20, 30)
    options: dict[str, Any] = {"size": {"shortest_edge": 16, "longest_edge": 40}, "return_tensors": "np"}
    pil = [Image.fromarray(x) for x in (a, b)]
    for images in (a, np.stack([a, b]), [np.stack([a, b]), np.stack([b, a])], (a, b), [[a], [b]], pil, [pil]):
        assert_same(DetrImageProcessor()(images, **options), Oracle()(images, **options))


def test_a_batch_may_mix_pil_images_and_channels_last_arrays_of_any_dtype() -> None:
    rng = np.random.default_rng(2)
    images = [
        Image.fromarray(photo(rng, 20, 30)),
        photo(rng, 31, 12),
        photo(rng, 9, 9) / 255,
        photo(rng, 9, 11).astype(float),
    ]
    for options in (
        {},
        {"do_resize": False},
        {"do_rescale": False, "do_normalize": False},
        {"do_rescale": False, "do_resize": False},
    ):
        call = {"size": {"max_height": 24, "max_width": 25}, **options}
        assert_same(DetrImageProcessor()(images, **call), Oracle()(images, **call))


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_other_channel_counts_equal_the_oracle_when_the_layout_is_given(channels: int, layout: str) -> None:
    array = photo(np.random.default_rng(3), 17, 23, channels)
    image = array if layout == "channels_last" else array.transpose(2, 0, 1)
    call: dict[str, Any] = {"size": {"height": 12, "width": 31}, "image_mean": [0.4] * channels, "image_std": 0.2}
    call["input_data_format"] = layout
    assert_same(DetrImageProcessor()(image, **call), Oracle()(image, **call))


def test_an_ambiguous_array_is_channels_first_and_a_thin_pil_image_is_not() -> None:
    array = photo(np.random.default_rng(4), 3, 40)  # (3, 40, 3)
    call: dict[str, Any] = {"size": {"height": 10, "width": 20}, "return_tensors": "np"}
    ambiguous = DetrImageProcessor()(array, **call)
    assert_same(ambiguous, Oracle()(array, **call))
    pil = DetrImageProcessor()(Image.fromarray(array), **call)
    assert_same(pil, Oracle()(array, input_data_format="channels_last", **call))
    assert not np.array_equal(pil.pixel_values, ambiguous.pixel_values)


def test_padding_is_zero_after_normalisation_and_masked() -> None:
    rng = np.random.default_rng(5)
    out = DetrImageProcessor(do_resize=False)([photo(rng, 5, 9), photo(rng, 8, 4)], return_tensors="np")
    assert out.pixel_values.shape == (2, 3, 8, 9)
    assert out.pixel_mask.tolist()[1] == [[1] * 4 + [0] * 5] * 8
    assert out.pixel_mask[0].sum() == 45
    outside = np.broadcast_to(out.pixel_mask[:, None] == 0, out.pixel_values.shape)
    assert not out.pixel_values[outside].any()


# ---- the single steps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "pil"])
@pytest.mark.parametrize("data_format", [None, "channels_first", "channels_last"])
def test_single_steps_equal_the_oracle(kind: str, data_format: str | None) -> None:
    rng = np.random.default_rng(6)
    images = [KINDS[kind](photo(rng, *shape)) for shape in ((14, 22), (19, 10))]
    ours, oracle = DetrImageProcessor(), Oracle()
    image, formats = images[0], {"data_format": data_format}
    size = {"shortest_edge": 18, "longest_edge": 25}
    pairs = [
        (ours.resize(image, size, **formats), oracle.resize(image, size, **formats)),
        (ours.resize(image, size, Image.Resampling.LANCZOS), oracle.resize(image, size, Image.Resampling.LANCZOS)),
        (ours.rescale(image, 1 / 255, **formats), oracle.rescale(image, 1 / 255, **formats)),
        (
            ours.normalize(image, [0.1, 0.2, 0.3], 0.5, **formats),
            oracle.normalize(image, [0.1, 0.2, 0.3], 0.5, **formats),
        ),
    ]
    for mine, theirs in pairs:
        assert mine.dtype == theirs.dtype
        assert np.array_equal(mine, theirs)
    for extra in (
        {},
        {"return_tensors": "np", "pad_size": {"height": 30, "width": 31}},
        {"return_pixel_mask": False, "constant_values": 1},
        {"constant_values": ((0, 1), (0, 0))},
        {"constant_values": (0, 1)},
    ):
        assert_same(ours.pad(images, **formats, **extra), oracle.pad(images, **formats, **extra))


def test_pad_uses_the_processors_pad_size() -> None:
    pad_size = {"height": 12, "width": 13}
    out = DetrImageProcessor(pad_size=pad_size).pad([np.ones((3, 4, 5))], return_tensors="np")
    assert_same(out, Oracle(pad_size=pad_size).pad([np.ones((3, 4, 5))], return_tensors="np"))
    assert out.pixel_values.shape == (1, 3, 12, 13)


# ---- configuration --------------------------------------------------------------------------------------------------

CONFIGS: list[dict[str, Any]] = [
    {},
    {"size": 600},
    {"size": 600, "max_size": 900},
    {"size": 600, "max_size": None},
    {"max_size": 900},
    {"size": [300, 400]},
    {"size": {"shortest_edge": 800, "longest_edge": None}},
    {"size": {"max_height": 300, "max_width": 500}, "resample": 3},
    {"pad_and_return_pixel_mask": False},
    {"do_normalize": False},
    {"do_normalize": False, "do_convert_annotations": True, "format": "coco_panoptic"},
    {
        "image_mean": 0.5,
        "image_std": [0.5, 0.4, 0.3],
        "rescale_factor": 1 / 127.5,
        "pad_size": {"height": 9, "width": 8},
    },
    {"image_processor_type": "DetrImageProcessor", "processor_class": "DetrProcessor", "note": [1, {"a": None}]},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_configuration_is_read_and_written_as_upstream_does(config: dict[str, Any], tmp_path: Path) -> None:
    oracle = Oracle.from_dict(config)
    ours = DetrImageProcessor.from_dict(config)
    assert ours.to_dict() == json.loads(oracle.to_json_string())

    oracle.save_pretrained(tmp_path / "oracle")
    assert DetrImageProcessor.from_pretrained(tmp_path / "oracle").to_dict() == ours.to_dict()

    file = ours.save_pretrained(tmp_path / "new" / "ours")
    assert file == tmp_path / "new" / "ours" / CONFIG_NAME
    assert [p.name for p in file.parent.iterdir()] == [CONFIG_NAME]
    assert file.read_text() == (tmp_path / "oracle" / CONFIG_NAME).read_text()
    assert DetrImageProcessor.from_pretrained(file).to_dict() == ours.to_dict()
    loaded = AutoImageProcessor.from_pretrained(file.parent, use_fast=False)
    assert type(loaded) is Oracle
    assert loaded.to_json_string() == oracle.to_json_string()


@pytest.mark.parametrize(
    "options",
    [
        {"size": {"height": 40, "width": 50}, "do_resize": False},
        {"size": {"shortest_edge": 30, "longest_edge": 60}, "format": "coco_panoptic"},
        {"do_pad": False, "do_normalize": False, "image_mean": [0.1, 0.2, 0.3]},
        {"do_convert_annotations": False, "pad_size": {"height": 90, "width": 91}, "resample": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("config", [{}, {"max_size": 900, "size": 700, "pad_and_return_pixel_mask": True}], ids=str)
def test_options_take_the_place_of_the_files(config: dict[str, Any], options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config))
    expected = json.loads(Oracle.from_pretrained(tmp_path, **options).to_json_string())
    assert DetrImageProcessor.from_pretrained(tmp_path, **options).to_dict() == expected


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    DetrImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(OptionError, match="do_resise: expected some of format, do_resize"):
        DetrImageProcessor.from_pretrained(tmp_path, do_resise=False)
    with pytest.raises(OptionError, match="resample"):
        DetrImageProcessor.from_pretrained(tmp_path, resample=17)


def test_settings_on_the_hub(hub_cache: Path, tmp_path: Path) -> None:
    for revision, edge in (("main", 300), ("small", 100)):
        DetrImageProcessor(size=edge).save_pretrained(tmp_path / revision)
        commit = str(edge % 7) * 40
        models.publish(hub_cache, "someone/detr", tmp_path / revision, revision=revision, commit=commit)
    assert DetrImageProcessor.from_pretrained("someone/detr").size["shortest_edge"] == 300
    assert DetrImageProcessor.from_pretrained("someone/detr", revision="small", do_pad=False).size["shortest_edge"] == 100
    with pytest.raises(CheckpointError, match="nobody/detr is neither an existing path nor in the hub's cache"):
        DetrImageProcessor.from_pretrained("nobody/detr")
    with pytest.raises(CheckpointError, match="revision goes with a hub id"):
        DetrImageProcessor.from_pretrained(tmp_path / "main", revision="small")


def test_keys_that_are_no_option_survive_a_round_trip() -> None:
    config = {
        "image_processor_type": "DetrImageProcessorFast",
        "feature_extractor_type": "DetrFeatureExtractor",
        "x": 1,
    }
    kept = DetrImageProcessor.from_dict(config).to_dict()
    assert {key: kept[key] for key in config} == config
    assert DetrImageProcessor.from_dict({"feature_extractor_type": "DetrFeatureExtractor"}).to_dict()[
        "image_processor_type"
    ] == ("DetrImageProcessor")


def test_numpy_options_are_saved_as_json(tmp_path: Path) -> None:
    processor = DetrImageProcessor(
        image_mean=np.array([0.5, 0.25, 0.125]), image_std=(1, 2, 3), size={"height": np.int64(5), "width": 6}
    )
    processor.save_pretrained(tmp_path)
    loaded = DetrImageProcessor.from_pretrained(str(tmp_path))
    assert loaded.image_mean == [0.5, 0.25, 0.125]
    assert loaded.image_std == [1, 2, 3]
    assert loaded.size == {"height": 5, "width": 6}


def test_an_option_may_not_be_shared_with_the_dictionary_it_came_from() -> None:
    config = {"size": {"height": 5, "width": 6}, "image_mean": [0.1, 0.2, 0.3]}
    processor = DetrImageProcessor.from_dict(config)
    processor.size["height"] = 7
    processor.to_dict()["size"]["width"] = 8
    processor.to_dict()["image_mean"][0] = 9
    assert config == {"size": {"height": 5, "width": 6}, "image_mean": [0.1, 0.2, 0.3]}
    assert processor.to_dict()["size"] == {"height": 7, "width": 6}
    assert processor.to_dict()["image_mean"] == [0.1, 0.2, 0.3]


def test_a_failed_save_leaves_what_was_there(tmp_path: Path) -> None:
    processor = DetrImageProcessor()
    file = processor.save_pretrained(tmp_path)
    before = file.read_text()
    processor.image_mean = [object()]
    with pytest.raises(TypeError):
        processor.save_pretrained(tmp_path)
    assert file.read_text() == before
    with pytest.raises(OutputError, match=CONFIG_NAME):
        DetrImageProcessor().save_pretrained(file)  # a file, not a folder
    assert [p.name for p in tmp_path.iterdir()] == [CONFIG_NAME]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("{", "is not JSON"),
        ("\udcff", "is not JSON"),
        ("[1]", "is a list of 1; expected an object"),
        ('{"size": {"edge": 3}}', "keys"),
        ('{"size": {"height": 3, "width": -1}}', "positive"),
        ('{"resample": 17}', "resample"),
        ('{"image_processor_type": "YolosImageProcessor"}', "YolosImageProcessor"),
    ],
)
def test_a_bad_configuration_file_is_one_clear_error(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / CONFIG_NAME).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=message) as caught:
        DetrImageProcessor.from_pretrained(tmp_path)
    assert CONFIG_NAME in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- errors ---------------------------------------------------------------------------------------------------------

IMAGE = np.full((20, 30, 3), 100, dtype=np.uint8)
RGB = Image.fromarray(IMAGE)
NAN = np.where(np.arange(20)[:, None, None] == 3, np.nan, IMAGE / 255)
DEFAULT = {"size": {"shortest_edge": 16, "longest_edge": 40}}

BAD_IMAGES: list[tuple[Any, dict[str, Any], str]] = [
    ([], {}, "no images"),
    ("photo.jpg", {}, "load_image"),
    (None, {}, "NoneType"),
    ([RGB, None], {}, "NoneType"),
    (IMAGE[..., 0], {}, r"\(20, 30\)"),
    (np.zeros((2, 2, 2, 20, 3), np.uint8), {}, "is not an image"),
    (np.zeros((20, 30, 4), np.uint8), {}, "neither 1 nor 3 channels"),
    (np.zeros((0, 30, 3), np.uint8), {}, "no pixels"),
    (Image.new("RGB", (0, 4)), {}, "no pixels"),
    (IMAGE.astype(complex), {}, "does not hold numbers"),
    (IMAGE.astype(object), {}, "does not hold numbers"),
    (RGB.convert("L"), {}, "not RGB"),
    (RGB.convert("L"), {"input_data_format": "channels_last"}, "not RGB"),
    (RGB.convert("P"), {}, "not RGB"),
    (RGB.convert("YCbCr"), {}, "not RGB"),
    (RGB.convert("RGBA"), {}, "not RGB"),
    (RGB, {"input_data_format": "channels_first"}, "one layout"),
    ([IMAGE, IMAGE.transpose(2, 0, 1)], {}, "one layout"),
    ([IMAGE.transpose(2, 0, 1), IMAGE], {}, "one layout"),
    ([IMAGE.transpose(2, 0, 1), RGB], {}, "one layout"),
    ([RGB, IMAGE.transpose(2, 0, 1)], {}, "one layout"),
    (NAN, {}, "contains NaN"),
    ([IMAGE, NAN], {"do_resize": False}, "contains NaN"),
    (np.where(np.isnan(NAN), -np.inf, NAN), {}, "contains infinity"),
    (IMAGE + 0.5, {}, "from 100.5 to 100.5"),
    (IMAGE.astype(int) - 101, {}, "from -1 to -1"),
    (IMAGE.astype(int) + 200, {}, "from 300 to 300"),
    (IMAGE * 1e30, {}, "expected whole numbers"),
    (np.zeros((20, 30, 5), np.uint8), {"input_data_format": "channels_last"}, "5 channels"),
    (np.zeros((1, 5000, 3), np.uint8), {"size": {"shortest_edge": 800, "longest_edge": 1333},
     "input_data_format": "channels_last"}, "too thin"),
    (Image.new("RGB", (1, 5000)), {"size": {"max_height": 100, "max_width": 100}}, "too thin"),
    (IMAGE, {"pad_size": {"height": 15, "width": 90}}, "pad_size 90x15 is smaller"),
    (IMAGE, {"pad_size": {"height": 90, "width": 15}}, "pad_size 15x90 is smaller"),
    ([IMAGE, IMAGE[:9]], {"do_pad": False, "return_tensors": "np"}, "do not stack"),
]  # fmt: skip


@pytest.mark.parametrize(("images", "options", "message"), BAD_IMAGES)
def test_an_image_that_cannot_be_processed_is_one_clear_error(images: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        DetrImageProcessor()(images, **{**DEFAULT, **options})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_truncated_lazy_image_is_an_image_error(tmp_path: Path) -> None:
    file = tmp_path / "cut.png"
    Image.fromarray(photo(np.random.default_rng(7), 60, 60)).save(file)
    file.write_bytes(file.read_bytes()[:3000])
    with Image.open(file) as image, pytest.raises(ImageError, match="truncated"):
        DetrImageProcessor()(image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": {"shortest_edge": 3, "height": 4}}, "keys"),
        ({"size": {"shortest_edge": 800}}, "cannot resize"),
        ({"size": 20}, "cannot resize"),
        ({"size": {"height": 0, "width": 4}}, "positive"),
        ({"size": {"height": 4.5, "width": 4}}, "positive"),
        ({"size": "large"}, "positive"),
        ({"pad_size": {"height": 90}}, "pad_size"),
        ({"pad_size": 90}, "pad_size"),
        ({"pad_size": {"height": 90, "width": None}}, "positive"),
        ({"resample": 17}, "resample"),
        ({"resample": "bilinear"}, "resample"),
        ({"image_mean": [0.5, 0.5]}, "image_mean has 2 values for 3 channels"),
        ({"image_std": [0.5] * 4}, "image_std has 4 values for 3 channels"),
        ({"image_std": [0.5, 0, 0.5]}, r"image_std\[1\] is 0; expected a number from"),
        ({"image_mean": float("nan")}, "image_mean is nan; expected a number"),
        ({"return_tensors": "tf"}, "expected None, 'np' or 'pt'"),
        ({"data_format": "first"}, "data_format"),
        ({"input_data_format": "none"}, "input_data_format"),
    ],
)
def test_a_bad_option_is_one_clear_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        DetrImageProcessor()(IMAGE, **{**DEFAULT, **options})
    assert isinstance(caught.value, OptionError)  # and so a DetrError, which the command line prints on one line
    assert "\n" not in str(caught.value)


def test_a_step_without_its_value_is_refused_and_not_left_out() -> None:
    with pytest.raises(ValueError, match="rescale_factor is None"):
        DetrImageProcessor.from_dict({"rescale_factor": None, **DEFAULT})(IMAGE)
    out = DetrImageProcessor.from_dict({"rescale_factor": None, "do_rescale": False, **DEFAULT})(IMAGE)
    assert out.pixel_values[0].dtype == np.float32


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="coco_panoptic"):
        DetrImageProcessor(format="voc")
    with pytest.raises(ValueError, match="coco_panoptic"):
        DetrImageProcessor()(IMAGE, format="voc")


def test_the_batch_is_a_dict_with_attributes() -> None:
    batch = BatchFeature(pixel_values=1)
    assert batch.pixel_values == batch["pixel_values"] == 1
    assert copy.deepcopy(batch) == pickle.loads(pickle.dumps(batch)) == {"pixel_values": 1}
    assert not hasattr(batch, "pixel_mask")
    with pytest.raises(AttributeError, match="pixel_mask"):
        batch.pixel_mask  # noqa: B018
