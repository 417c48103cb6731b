"""Files in batches: the results are those of one image at a time, in order, and an error stays with its file."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_export.runtimes import Detections, Predictor, Segmentation
from detr_export.runtimes.errors import BackendError, ImageError, InputError
from detr_export.runtimes.folder import RESULTS_NAME, predict_files
from detr_export.runtimes.metadata import EndToEnd, Metadata
from detr_export.runtimes.session import Session, TensorSpec
from tests import models

SIZES = [(200, 150), (150, 200), (200, 150), (400, 300), (180, 150), (150, 200), (200, 150)]  # (width, height)
BAD = 4  # the file at this place has a good header and a cut body


class Counted(Session):
    """Another session, with the shapes that it was run on."""

    def __init__(self, session: Session) -> None:
        self.inputs, self.outputs, self.metadata = session.inputs, session.outputs, session.metadata
        self.shapes: list[tuple[int, ...]] = []
        self.session = session

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.shapes.append(next(iter(inputs.values())).shape)
        return self.session.run(inputs)

    def close(self) -> None:
        self.session.close()

    @property
    def batches(self) -> list[int]:
        return sorted(shape[0] for shape in self.shapes)


@pytest.fixture(scope="module")
def predictor(tiny_onnx: Path) -> Iterator[Predictor]:
    with Predictor.load(tiny_onnx, spinning=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def segmenting(segmenter_onnx: Path) -> Iterator[Predictor]:
    with Predictor.load(segmenter_onnx, spinning=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def files(photo: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Parts of a photograph in a few sizes, one file that is damaged, and one that is no picture."""
    folder = tmp_path_factory.mktemp("files")
    whole, paths = Image.open(photo), []
    for number, (width, height) in enumerate(SIZES):
        path = folder / f"{number}.jpg"
        whole.crop((20 * number, 10 * number, 20 * number + width, 10 * number + height)).save(path, quality=95)
        paths.append(path)
    paths[BAD].write_bytes(paths[BAD].read_bytes()[:-4000])
    paths.append(folder / "text.jpg")
    paths[-1].write_bytes(b"hello")
    return paths


def assert_same(found: Any, expected: Any, atol: float = 1e-3) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, Segmentation):
        assert found.map.shape == expected.map.shape
        assert (found.map != expected.map).mean() < 1e-3
        return
    assert isinstance(expected, Detections)
    assert found.names == expected.names
    assert found.image_size == expected.image_size
    np.testing.assert_allclose(found.scores, expected.scores, atol=atol)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=atol * max(expected.image_size))


@pytest.mark.parametrize(("batch", "workers"), [(1, 4), (3, 0), (3, 1), (3, 4), (8, 2)])
def test_detections_are_those_of_one_image_at_a_time(
    batch: int, workers: int, predictor: Predictor, files: list[Path], tmp_path: Path
) -> None:
    session = Counted(predictor.session)
    out = tmp_path / "out"
    outcomes = list(predict_files(Predictor(session), files, 0.0, out, batch=batch, workers=workers))
    assert [outcome.image for outcome in outcomes] == files
    for number, outcome in enumerate(outcomes):
        if number in (BAD, len(files) - 1):
            assert isinstance(outcome.error, ImageError)
            assert str(files[number]) in str(outcome.error)
        else:
            assert outcome.error is None
            assert_same(outcome.result, predictor.detect(files[number], 0.0))
    assert json.loads((out / RESULTS_NAME).read_text()) == [outcome.to_dict() for outcome in outcomes]
    # 200x150 and 400x300 are the same for the model: four upright files and two lying ones
    assert session.batches == {1: [1] * 6, 3: [1, 2, 3], 8: [2, 4]}[batch]


@pytest.mark.parametrize("task", ["panoptic", "instances", "semantic"])
def test_segmentations_are_those_of_one_image_at_a_time(task: str, segmenting: Predictor, files: list[Path]) -> None:
    session = Counted(segmenting.session)
    outcomes = list(predict_files(Predictor(session), files[:4], 0.2, task=task, batch=4))
    assert session.batches == [1, 3]
    for outcome in outcomes:
        assert outcome.result is not None
        assert_same(outcome.result, predictor_call(segmenting, task, outcome.image))


def predictor_call(predictor: Predictor, task: str, image: Path) -> Segmentation:
    if task == "semantic":
        return predictor.segment_semantic(image)
    return predictor.segment_panoptic(image, 0.2) if task == "panoptic" else predictor.segment_instances(image, 0.2)


def test_padding_joins_sizes_up_to_its_limit(predictor: Predictor, files: list[Path]) -> None:
    shapes = {}
    for share in (0.0, 0.45):
        session = Counted(predictor.session)
        outcomes = list(predict_files(Predictor(session), files[:4], 0.0, batch=4, max_padding=share))
        assert all(outcome.error is None for outcome in outcomes)
        assert [outcome.image for outcome in outcomes] == files[:4]
        shapes[share] = session.shapes
    assert sorted(shape[0] for shape in shapes[0.0]) == [1, 3]
    ((count, _, height, width),) = shapes[0.45]
    assert (count, height, width) == (4, 128, 128)


def test_what_a_header_says_is_checked_again(
    predictor: Predictor, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detr_export.runtimes.sources.size_of_file", lambda *_: (100, 100))  # the same for all
    session = Counted(predictor.session)
    outcomes = list(predict_files(Predictor(session), files[:4], 0.0, batch=4))
    assert session.batches == [1, 3]
    for outcome in outcomes:
        assert_same(outcome.result, predictor.detect(outcome.image, 0.0))


class Picky(Session):
    """An end-to-end file, or something like it, that refuses batches with a black image."""

    inputs = (TensorSpec("image", "uint8", ("batch", "height", "width", 3)),)
    outputs = (
        TensorSpec("scores", "float32", ("batch", 1)),
        TensorSpec("labels", "int64", ("batch", 1)),
        TensorSpec("boxes", "float32", ("batch", 1, 4)),
    )
    metadata = Metadata("detection", models.LABELS, {}, pixel_mask=False, input="image", end_to_end=EndToEnd("rgb", "", 1))

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.failing = False

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        image = inputs["image"]
        self.shapes.append(image.shape)
        if self.failing:
            raise BackendError("it failed")
        if not image.any(axis=(1, 2, 3)).all():
            raise InputError("an image is black")
        count = len(image)
        scores = image[:, 0, 0, :1] / np.float32(255)
        return {"scores": scores, "labels": np.ones((count, 1), np.int64), "boxes": np.ones((count, 1, 4), np.float32)}

    def close(self) -> None:
        pass


@pytest.fixture
def colours(tmp_path: Path) -> list[Path]:
    """Images of one colour each; the third one is black, and the fourth one is smaller."""
    paths = []
    for number, red in enumerate((50, 100, 0, 150, 200)):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (30, 20) if number == 3 else (60, 40), (red, 0, 0)).save(paths[-1])
    return paths


def test_an_end_to_end_file_gets_images_of_one_original_size_and_an_error_stays_with_its_file(colours: list[Path]) -> None:
    session = Picky()
    outcomes = list(predict_files(Predictor(session), colours, 0.0, batch=8))
    assert (4, 40, 60, 3) in session.shapes
    assert (1, 20, 30, 3) in session.shapes
    assert str(outcomes[2].error) == f"{colours[2]}: an image is black"
    for number, red in ((0, 50), (1, 100), (3, 150), (4, 200)):
        result = outcomes[number].result
        assert isinstance(result, Detections)
        assert result.scores.tolist() == [np.float32(red) / np.float32(255)]


def test_a_failing_model_reaches_the_caller_and_leaves_no_thread(colours: list[Path], tmp_path: Path) -> None:
    before, session = set(threading.enumerate()), Picky()
    outcomes = predict_files(Predictor(session), [colours[0]] * 50, output=tmp_path / "out")
    next(outcomes)
    session.failing = True
    with pytest.raises(BackendError, match="it failed"):
        list(outcomes)
    assert set(threading.enumerate()) <= before
    assert len(session.shapes) < 20
    assert RESULTS_NAME not in [path.name for path in (tmp_path / "out").iterdir()]


def test_an_interrupt_leaves_whole_pictures_and_no_thread(colours: list[Path], tmp_path: Path) -> None:
    before, out = set(threading.enumerate()), tmp_path / "out"
    outcomes = predict_files(Predictor(Picky()), [colours[0], colours[1], *[colours[4]] * 50], 0.0, out)
    next(outcomes)
    assert isinstance(outcomes, Iterator)
    with pytest.raises(KeyboardInterrupt):
        outcomes.throw(KeyboardInterrupt())
    assert set(threading.enumerate()) <= before
    assert {path.suffix for path in out.iterdir()} == {".png"}
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch is 0; expected at least 1"),
        ({"batch": 2, "task": "attention"}, "attention is read off one image at a time"),
        ({"max_padding": 0.1}, r"batch \(--batch\) is 1; give a larger one"),
        ({"batch": 2, "max_padding": 1.0}, "max_padding is 1.0; expected a share"),
        ({"batch": 2, "max_padding": 0.1, "task": "panoptic"}, "not padded for the task panoptic"),
        ({"workers": -1}, "workers is -1"),
    ],
)
def test_refuses(options: dict[str, Any], message: str, predictor: Predictor, files: list[Path]) -> None:
    with pytest.raises(InputError, match=message):
        list(predict_files(predictor, files, **options))


def test_a_model_without_padding_or_with_small_batches_says_so(colours: list[Path]) -> None:
    with pytest.raises(InputError, match="the model takes no padded images"):
        list(predict_files(Predictor(Picky()), colours, batch=2, max_padding=0.1))
    small = Picky()
    small.inputs = (TensorSpec("image", "uint8", (2, "height", "width", 3)),)
    with pytest.raises(InputError, match="batch is 3, but the model takes 2 at most"):
        list(predict_files(Predictor(small), colours, batch=3))
