"""Which image processor a checkpoint gets: Pillow's or torchvision's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detr_export.checkpoints.processors import read_processor
from detr_export.checkpoints.reading import load_checkpoint
from detr_export.config import DetrConfig
from detr_export.runtimes.errors import CheckpointError
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from tests import models, transformers5

ARRAYS = np.load(transformers5.DATA)
SETTINGS: dict[str, str] = json.loads(ARRAYS["records"].tobytes())["processors"]
PLAIN, FAST = "DetrImageProcessor", "DetrImageProcessorFast"


def config(version: str | None) -> DetrConfig:
    return models.config(**({} if version is None else {"transformers_version": version}))


def read(
    folder: Path, settings: dict[str, Any] | None, version: str | None, backend: str | None = None
) -> DetrImageProcessor:
    if settings is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return read_processor(folder, config(version), backend)


def test_transformers_5_writes_the_same_for_both() -> None:
    """Or there would be nothing to choose."""
    assert SETTINGS["pil"] == SETTINGS["torchvision"]
    assert json.loads(SETTINGS["pil"])["image_processor_type"] == PLAIN


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_gives_the_pixels_of_transformers_5(backend: str, tmp_path: Path) -> None:
    processor = read(tmp_path, json.loads(SETTINGS[backend]), "5.24.0", backend)
    given = processor(transformers5.picture(), return_tensors="np")["pixel_values"][0]
    expected = ARRAYS[f"{backend}/pixel_values"]
    assert np.abs(given - expected).max() < 1e-5
    other = ARRAYS[f"{'pil' if backend == 'torchvision' else 'torchvision'}/pixel_values"]
    assert np.abs(expected - other).max() > 0.01  # a step of 255 is 0.017 or more


@pytest.mark.parametrize(
    ("settings", "version", "expected"),
    [
        ({"image_processor_type": PLAIN}, "5.24.0", FAST),
        ({"image_processor_type": PLAIN}, "4.57.6", PLAIN),
        ({"image_processor_type": PLAIN}, None, PLAIN),
        ({"image_processor_type": PLAIN, "pad_size": None}, "5.0.0", PLAIN),
        ({"image_processor_type": FAST}, "4.57.6", FAST),
        ({"image_processor_type": FAST}, "5.0.0", FAST),
        ({"feature_extractor_type": "DetrFeatureExtractor"}, "4.20.1", PLAIN),
        ({"feature_extractor_type": "DetrFeatureExtractor"}, "5.24.0", PLAIN),
        ({}, "5.24.0", FAST),
        ({}, "4.57.6", PLAIN),
        (None, "5.24.0", FAST),
        (None, "4.57.6", PLAIN),
        (None, "main", PLAIN),
    ],
)
def test_the_default(settings: dict[str, Any] | None, version: str | None, expected: str, tmp_path: Path) -> None:
    processor = read(tmp_path, settings, version)
    assert type(processor).__name__ == expected
    assert processor.to_dict()["image_processor_type"] == expected


@pytest.mark.parametrize("name", [PLAIN, FAST])
def test_the_choice_counts_and_is_written(name: str, tmp_path: Path) -> None:
    for backend, expected in (("pil", PLAIN), ("torchvision", FAST)):
        processor = read(tmp_path, {"image_processor_type": name}, "5.24.0", backend)
        assert type(processor).__name__ == expected
        processor.save_pretrained(tmp_path / backend)
        assert type(read_processor(tmp_path / backend, config("5.24.0"))).__name__ == expected


def test_refuses(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="processor is 'fast'; expected pil or torchvision"):
        load_checkpoint(tmp_path, processor="fast")
    with pytest.raises(CheckpointError, match="demo comes with the package; leave the other options out"):
        load_checkpoint("demo", processor="pil")
    (tmp_path / "a.pth").write_bytes(b"1")
    with pytest.raises(CheckpointError, match="leave --processor out"):
        load_checkpoint(tmp_path / "a.pth", processor="pil")
    (tmp_path / "preprocessor_config.json").write_text("{}{")
    with pytest.raises(CheckpointError, match=r"preprocessor_config.json.* is not JSON"):
        read_processor(tmp_path, config(None))
