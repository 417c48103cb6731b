"""What `preprocessor_config.json` says, and what a caller says in Python, is typed and bounded before it is believed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import detr_export
from detr_export.checkpoints.processors import read_processor
from detr_export.runtimes.errors import CheckpointError, ImageError, OptionError
from detr_export.runtimes.limits import Limits
from detr_export.runtimes.processing.image_processor import CONFIG_NAME, DetrImageProcessor
from detr_export.runtimes.processing.image_processor_fast import DetrImageProcessorFast, processor_from_dict
from detr_export.runtimes.processing.uint8_batch import uint8_batch
from tests import models
from tests.hostile import values

CLASSES = [DetrImageProcessor, DetrImageProcessorFast]
INFINITE, NAN = float("inf"), float("nan")
IMAGE = np.full((20, 30, 3), 100, np.uint8)
POSITIVE = "expected a positive integer"
EDGE = "expected at most 65535; .*--limit edge=N"
SIZE = {"height": 40, "width": 50}

CASES: list[tuple[dict[str, Any], str]] = [
    *(
        ({name: value}, f"{name} is {found}; expected true or false")
        for name in ("do_resize", "do_rescale", "do_normalize", "do_pad", "do_convert_annotations")
        for value, found in (
            ("yes", "'yes'"),
            ("false", "'false'"),
            (1, "1"),
            (0, "0"),
            ([], "a list of 0"),
            ({"a": 1}, "an object of 1"),
        )
    ),
    *(
        ({"rescale_factor": value}, f"rescale_factor is {found}; expected a number from 1e-09 to 10000")
        for value, found in (
            (INFINITE, "inf"),
            (-INFINITE, "-inf"),
            (NAN, "nan"),
            (1e300, r"1e\+300"),
            (1e-300, "1e-300"),
            (0, "0"),
            (-1 / 255, "-0.00392.*"),
            (2**70, "an integer of 71 bits"),
            (10**5000, "an integer of 16610 bits"),
            ("0.1", "'0.1'"),
            (True, "true"),
            ([0.1], "a list of 1"),
            ({}, "an object of 0"),
        )
    ),
    *(
        ({name: value}, f"{message} from")
        for name in ("image_mean", "image_std")
        for value, message in (
            (NAN, f"{name} is nan; expected a number, or a list of numbers,"),
            (INFINITE, f"{name} is inf; expected a number, or a list of numbers,"),
            (1e300, rf"{name} is 1e\+300; expected a number, or a list of numbers,"),
            (2**70, f"{name} is an integer of 71 bits; expected a number, or a list of numbers,"),
            ("0.5", f"{name} is '0.5'; expected a number, or a list of numbers,"),
            (True, f"{name} is true; expected a number, or a list of numbers,"),
            ({"0": 0.5}, f"{name} is an object of 1; expected a number, or a list of numbers,"),
            ([0.5, "0.5", 0.5], rf"{name}\[1\] is '0.5'; expected a number"),
            ([0.5, None, 0.5], rf"{name}\[1\] is null; expected a number"),
            ([0.5, 0.5, NAN], rf"{name}\[2\] is nan; expected a number"),
            ([0.5, 0.5, INFINITE], rf"{name}\[2\] is inf; expected a number"),
            ([0.5, 0.5, 10**5000], rf"{name}\[2\] is an integer of 16610 bits; expected a number"),
            ([[0.5, 0.5, 0.5]], rf"{name}\[0\] is a list of 3; expected a number"),
            ([True, 0.5, 0.5], rf"{name}\[0\] is true; expected a number"),
        )
    ),
    ({"image_mean": []}, "image_mean is a list of 0; expected a number, or one for each channel"),
    ({"image_mean": [0.5] * 1000}, "image_mean is a list of 1000; expected a number, or one for each channel"),
    ({"image_std": 0}, "image_std is 0; expected a number"),
    ({"image_std": [0.5, 0, 0.5]}, r"image_std\[1\] is 0; expected a number from 0.0001 to"),
    ({"image_std": [0.5, -1, 0.5]}, r"image_std\[1\] is -1; expected a number from 0.0001 to"),
    ({"image_std": [0.5, 1e-30, 0.5]}, r"image_std\[1\] is 1e-30; expected a number from 0.0001 to"),
    # size
    ({"size": True}, rf"size\['shortest_edge'\] is true; {POSITIVE}"),
    ({"size": 2**70}, rf"size\['shortest_edge'\] is more than 10\^18; {EDGE}"),
    ({"size": 0}, rf"size\['shortest_edge'\] is 0; {POSITIVE}"),
    ({"size": -5}, rf"size\['shortest_edge'\] is -5; {POSITIVE}"),
    ({"size": 1.5}, rf"size\['shortest_edge'\] is 1.5; {POSITIVE}"),
    ({"size": "large"}, rf"size\['shortest_edge'\] is 'large'; {POSITIVE}"),
    ({"size": "x" * 10**6}, rf"size\['shortest_edge'\] is 'xxx.*; {POSITIVE}"),
    ({"size": []}, rf"size\['shortest_edge'\] is a list of 0; {POSITIVE}"),
    ({"size": [1, 2, 3]}, rf"size\['shortest_edge'\] is a list of 3; {POSITIVE}"),
    ({"size": [0, 5]}, rf"size\['height'\] is 0; {POSITIVE}"),
    ({"size": [[5], [5]]}, rf"size\['height'\] is a list of 1; {POSITIVE}"),
    ({"size": {}}, r"size has the keys \(none\); expected"),
    ({"size": {"height": 5}}, "size has the keys 'height'; expected"),
    ({"size": {"a\nb": 5}}, r"size has the keys 'a\\nb'; expected"),
    ({"size": {str(index): 1 for index in range(1000)}}, "size has the keys '0', '1', '2', '3'; expected"),
    ({"size": {"height": {"a": 1}, "width": 5}}, rf"size\['height'\] is an object of 1; {POSITIVE}"),
    ({"size": {"height": True, "width": 5}}, rf"size\['height'\] is true; {POSITIVE}"),
    ({"size": {"height": None, "width": 5}}, rf"size\['height'\] is null; {POSITIVE}"),
    ({"size": {"height": 5, "width": 10**5}}, rf"size\['width'\] is 100000; {EDGE}"),
    ({"size": {"shortest_edge": 5, "longest_edge": 2**40}}, rf"size\['longest_edge'\] is 1099511627776; {EDGE}"),
    ({"size": {"shortest_edge": None, "longest_edge": 5}}, rf"size\['shortest_edge'\] is null; {POSITIVE}"),
    ({"size": {"max_height": 5, "max_width": -1}}, rf"size\['max_width'\] is -1; {POSITIVE}"),
    ({"size": {"longest_edge": 10**6}}, rf"size\['longest_edge'\] is 1000000; {EDGE}"),
    # pad_size
    ({"pad_size": 5}, "pad_size is 5; expected None or a dict with the keys height and width"),
    ({"pad_size": True}, "pad_size is true; expected None or a dict"),
    ({"pad_size": []}, "pad_size is a list of 0; expected None or a dict"),
    ({"pad_size": {"height": 10**5, "width": 10**5}}, rf"pad_size\['height'\] is 100000; {EDGE}"),
    ({"pad_size": {"height": 2**70, "width": 5}}, rf"pad_size\['height'\] is more than 10\^18; {EDGE}"),
    ({"pad_size": {"height": 5, "width": 1.5}}, rf"pad_size\['width'\] is 1.5; {POSITIVE}"),
    ({"pad_size": {"height": 5, "width": False}}, rf"pad_size\['width'\] is false; {POSITIVE}"),
    # resample, format
    *(
        ({"resample": value}, f"resample is {found}; expected a PIL.Image.Resampling filter")
        for value, found in (
            (1.5, "1.5"),
            (2.0, "2.0"),
            (True, "true"),
            (17, "17"),
            (-1, "-1"),
            (10**5000, "an integer of 16610 bits"),
            ("bilinear", "'bilinear'"),
            (None, "null"),
            ([], "a list of 0"),
            ({}, "an object of 0"),
            (NAN, "nan"),
        )
    ),
    *(
        ({"format": value}, f"format is {found}; expected coco_detection or coco_panoptic")
        for value, found in (("voc", "'voc'"), (None, "null"), (3, "3"), ([], "a list of 0"), ("x" * 10**6, "'xxx.*"))
    ),
]


@pytest.mark.parametrize(("options", "message"), CASES, ids=range(len(CASES)))
def test_an_option_that_no_processor_can_have(options: dict[str, Any], message: str) -> None:
    for kind in CLASSES:
        for make in (kind.from_dict, lambda given, kind=kind: kind(**given)):
            with pytest.raises(OptionError, match=f"^{message}") as caught:
                make(options)
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("options", "message"),
    [(options, message) for options, message in CASES if None not in options.values()],
    ids=lambda value: "" if isinstance(value, dict) else None,
)
def test_an_option_of_one_call(options: dict[str, Any], message: str) -> None:
    processor = DetrImageProcessor(size=SIZE)
    with pytest.raises(OptionError, match=f"^{message}"):
        processor(IMAGE, **options)


@pytest.mark.parametrize(("options", "message"), [CASES[0], CASES[30], CASES[-1], ({"max_size": "x", "size": 5}, "size")])
def test_the_file_is_named(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / CONFIG_NAME).write_bytes(values.as_json(options))
    with pytest.raises(CheckpointError, match=f"^{tmp_path / CONFIG_NAME}(: {message}| is not JSON)") as caught:
        DetrImageProcessor.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"rescale_factor": np.float32(0.01)},
        {"rescale_factor": np.array(0.01)},
        {"rescale_factor": 2},
        {"image_mean": np.array([0.1, 0.2, 0.3]), "image_std": np.array([1, 2, 3], np.float16)},
        {"image_mean": torch.tensor([0.1, 0.2, 0.3]), "image_std": (0.5, np.float64(0.2), 1)},
        {"image_mean": np.float64(0.5), "image_std": 0.25},
        {"image_mean": (value / 10 for value in (1, 2, 3))},
        {"do_resize": np.bool_(False), "do_pad": np.True_},
        {"size": np.int64(40)},
        {"size": {"height": np.uint8(40), "width": np.int32(50)}},
        {"pad_size": {"height": np.int64(1400), "width": 1400}, "resample": np.int64(3)},
        {"resample": Image.Resampling.BICUBIC},
        {"size": (40, 50)},
        {"do_rescale": None, "do_normalize": None, "rescale_factor": None},
    ],
    ids=range(14),
)
def test_numbers_and_arrays_of_other_libraries_are_options(options: dict[str, Any]) -> None:
    made = DetrImageProcessor(**{"size": SIZE, **options})
    assert np.isfinite(made(IMAGE, return_tensors="np")["pixel_values"]).all()
    made(IMAGE)  # an iterator has not run out


# ---- how large the result would be --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([(20, 30)], {"pad_size": {"height": 65_535, "width": 65_535}}, "1 images of 65535x65535 is 4294836225"),
        ([(20, 30)] * 30, {"pad_size": {"height": 6_000, "width": 6_000}}, "30 images of 6000x6000 is 1080000000"),
        ([(20, 30)], {"size": {"height": 65_535, "width": 65_535}}, "1 images of 65535x65535 is 4294836225"),
        ([(20, 30)], {"size": {"max_height": 60_000, "max_width": 60_000}}, "1 images of 60000x40000 is 2400000000"),
        ([(20, 30)], {"size": {"longest_edge": 60_000}}, "1 images of 60000x40000 is 2400000000"),
        ([(1, 3000)], {"size": {"shortest_edge": 800, "longest_edge": None}}, "an image of 2400000x800 pixels is 2400000"),
        ([(3000, 1)], {"size": {"shortest_edge": 800, "longest_edge": None}}, "an image of 800x2400000 pixels is 2400000"),
        ([(1, 30_000), (30_000, 1)] * 2, {"size": {"longest_edge": 30_000}}, "4 images of 30000x30000 is 3600000000"),
    ],
)
@pytest.mark.parametrize("kind", CLASSES)
def test_a_batch_that_does_not_fit_is_refused_before_it_is_made(
    kind: type[DetrImageProcessor], images: list[tuple[int, int]], options: dict[str, Any], message: str
) -> None:
    pictures = [Image.new("RGB", (width, height)) for height, width in images]
    processor = kind(**{"size": SIZE, **options})
    for run in (processor, lambda given: uint8_batch(processor, given)):
        with pytest.raises(
            ImageError, match=rf"{message}; expected at most (1073741824|65535); .*--limit (batch_pixels|edge)=N"
        ):
            run(pictures)  # would take gigabytes


def test_many_images_without_padding() -> None:
    picture = Image.new("RGB", (30, 20))
    processor = DetrImageProcessor(size={"height": 30_000, "width": 30_000}, do_pad=False)
    with pytest.raises(ImageError, match="number of pixels of a batch is 1800000000; expected at most 1073741824"):
        processor([picture, picture])
    with pytest.raises(ImageError, match="2 images of 30000x30000 is 1800000000"):
        DetrImageProcessor().pad([IMAGE, IMAGE], pad_size={"height": 30_000, "width": 30_000})
    with pytest.raises(ImageError, match="65535x65535 is 4294836225; expected at most"):
        DetrImageProcessor().resize(IMAGE, {"height": 65_535, "width": 65_535})


def test_the_usual_batch_is_far_below_the_limits() -> None:
    assert Limits().batch_pixels > 64 * 1333 * 1333


# ---- files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"size": ' + b"[" * 70 + b"]" * 70 + b"}", "is nested too deeply"),
        (b'{"size": ' + b"9" * 5000 + b"}", "is not JSON: Integer value out of range"),
        (b'{"rescale_factor": NaN}', "is not JSON"),
        (b'{"rescale_factor": 1e999}', "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"null", "is null; expected an object"),
        (b"[1]", "is a list of 1; expected an object"),
        (b'"x"', "is 'x'; expected an object"),
        (b'{"image_processor_type": ["a"]}', "the configuration is of a a list of 1: expected one of DetrImageProcessor"),
        (b'{"image_processor_type": "A\\nB"}', r"the configuration is of a A\\nB: expected one of"),
    ],
    ids=range(13),
)
def test_a_file_that_is_no_settings(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / CONFIG_NAME
    file.write_bytes(content)
    for read in (DetrImageProcessor.from_pretrained, lambda path: read_processor(path, models.config())):
        with pytest.raises(CheckpointError, match=f"{file}:? {message}") as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.timeout(30)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
def test_a_pipe_and_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / CONFIG_NAME)
    with pytest.raises(CheckpointError, match=rf"{CONFIG_NAME} is not a regular file"):
        read_processor(tmp_path, models.config())
    (tmp_path / CONFIG_NAME).unlink()
    (tmp_path / CONFIG_NAME).symlink_to(tmp_path / "gone.json")
    with pytest.raises(CheckpointError, match=rf"cannot read .*{CONFIG_NAME}: No such file"):
        read_processor(tmp_path, models.config())


@pytest.mark.parametrize("version", ["5" * 5000, "5.24.0", "\u0665.1", "", None, 5, ["5"]])
def test_any_version_of_transformers(version: Any, tmp_path: Path) -> None:
    (tmp_path / CONFIG_NAME).write_text("{}")
    config = models.config(transformers_version=version)
    assert isinstance(read_processor(tmp_path, config), DetrImageProcessorFast if version in ("5.24.0", 5) else object)


DOCUMENTS = {
    "default": DetrImageProcessor().to_dict(),
    "old": {
        "size": 800,
        "max_size": 1333,
        "pad_and_return_pixel_mask": True,
        "feature_extractor_type": "DetrFeatureExtractor",
    },
    "sizes": {"size": {"max_height": 60, "max_width": 70}, "pad_size": {"height": 90, "width": 90}},
    **{
        name: json.loads((Path(detr_export.__file__).parent / name / CONFIG_NAME).read_text())
        for name in ("demo_checkpoint", "demo_tables_checkpoint")
    },
}


def run(document: dict[str, Any]) -> None:
    processor = processor_from_dict(document)
    made = processor(IMAGE, size={"height": 8, "width": 9}, pad_size=processor.pad_size, return_tensors="np")
    assert np.isfinite(made["pixel_values"]).all()
    processor_from_dict(processor.to_dict())


@pytest.mark.parametrize("value", values.VALUES.values(), ids=values.VALUES.keys())
@pytest.mark.parametrize("name", DOCUMENTS)
def test_any_value_in_any_field_is_read_or_refused(name: str, value: Any) -> None:
    for field, document in values.mutated(DOCUMENTS[name], value):
        values.read_or_refused(run, document, field)
