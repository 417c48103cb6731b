"""A tiny panoptic DETR as a float graph, pictures, and what calibration makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.export import ExportOptions, export_onnx
from detr_export.graphs.int8.calibration import CalibratedGraph, calibrate
from detr_export.graphs.int8.watching import Feeds
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.image_runner import ImageRunner
from detr_export.runtimes.processing.images import load_image

PICTURES = 5


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures; not to be changed."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(PICTURES):
        pixels = np.random.default_rng(1000 + index).integers(0, 256, (60, 90, 3), dtype=np.uint8)
        pixels[10:40, 20 + 5 * index : 45] //= 4
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def float_file(segmenter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny panoptic DETR in fp32; not to be changed."""
    output = tmp_path_factory.mktemp("float") / "float.onnx"
    return export_onnx(load_checkpoint(segmenter), output, ExportOptions(verify=False)).path


@pytest.fixture(scope="session")
def feeds(float_file: Path, pictures: Path) -> list[Feeds]:
    """The inputs of that file for each picture."""
    with OrtSession(float_file) as session:
        runner = ImageRunner(session)
        return [runner.prepare([load_image(path)]) for path in sorted(pictures.iterdir())]


@pytest.fixture(scope="session")
def calibrated(float_file: Path, feeds: list[Feeds]) -> CalibratedGraph:
    """The file, calibrated for all that can be int8; not to be changed."""
    return calibrate(onnx.load(str(float_file)), feeds, "all", "minmax")


@pytest.fixture(scope="session")
def encoder(float_file: Path, feeds: list[Feeds]) -> CalibratedGraph:
    """The same for the default scope."""
    return calibrate(onnx.load(str(float_file)), feeds, "encoder", "minmax")
