"""A picture that was made ready in another process gives the result of the picture itself, bit for bit."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.export import ExportOptions, export_onnx
from detr_export.runtimes.errors import ImageError
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.processing.image_processor_fast import DetrImageProcessorFast
from detr_export.runtimes.processing.images import load_image

SIZES = ((64, 96), (96, 64), (200, 130), (64, 96))


@pytest.fixture(scope="module", params=["float", "uint8", "end to end"])
def predictor(request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    options = ExportOptions(simplify=False, verify=False)
    if request.param == "uint8":
        options = replace(options, input="uint8")
    if request.param == "end to end":
        options = replace(options, end_to_end=True)
    output = tmp_path_factory.mktemp("ready") / "model.onnx"
    return Predictor.load(export_onnx(load_checkpoint(tiny_checkpoint), output, options).path, threads=1)


@pytest.fixture(scope="module")
def pictures(photo: Path) -> list[Any]:
    whole = load_image(photo)
    return [whole.crop((40 * n, 30 * n, 40 * n + 220, 30 * n + 180)).resize(size) for n, size in enumerate(SIZES)]


def test_results_are_equal(predictor: Predictor, pictures: list[Any]) -> None:
    preparation = pickle.loads(pickle.dumps(predictor.preparation))
    ready = [pickle.loads(pickle.dumps(preparation.make_ready(picture))) for picture in pictures]
    for one, picture in zip(ready, pictures, strict=True):
        assert one.pixels.dtype == np.uint8
        assert one.size == (picture.height, picture.width)
        assert predictor.predict(one, threshold=0.0) == predictor.predict(picture, threshold=0.0)
    assert len(predictor.predict(pictures[0], threshold=0.0)) > 0
    for batch in (1, 2, 4):
        found = predictor.predict(ready, threshold=0.0, batch_size=batch)
        assert found == predictor.predict(pictures, threshold=0.0, batch_size=batch)


def test_torchvisions_pixels(tiny_onnx: Path, pictures: list[Any]) -> None:
    with Predictor.load(tiny_onnx, threads=1) as predictor:
        inputs = predictor._runner
        inputs.processor = DetrImageProcessorFast.from_dict(predictor.processor.to_dict())
        inputs._for_ready = DetrImageProcessorFast.from_dict({**predictor.processor.to_dict(), "do_resize": False})
        for picture in pictures:
            ready, whole = inputs.prepare([inputs.preparation.make_ready(picture)]), inputs.prepare([picture])
            assert ready.keys() == whole.keys()
            assert all(np.array_equal(ready[name], whole[name]) for name in whole)


def test_a_picture_that_is_too_thin(tiny_onnx: Path) -> None:
    with Predictor.load(tiny_onnx, threads=1) as predictor:
        thin = Image.new("RGB", (3000, 1))
        with pytest.raises(ImageError) as whole:
            predictor.predict(thin)
        with pytest.raises(ImageError) as ready:
            predictor.preparation.make_ready(thin)
        assert str(ready.value) == str(whole.value)
