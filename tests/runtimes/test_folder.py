"""Files in, pictures and one document out, and one bad file among good ones."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_export.runtimes import Detections, Predictor
from detr_export.runtimes.errors import BackendError, ImageError, InputError, OutputError
from detr_export.runtimes.folder import RESULTS_NAME, predict_files
from detr_export.runtimes.processing.images import load_image


@pytest.fixture(scope="module")
def predictor(tiny_onnx: Path) -> Iterator[Predictor]:
    with Predictor.load(tiny_onnx) as opened:
        yield opened


@pytest.fixture
def images(photo: Path, tmp_path: Path) -> list[Path]:
    """Two images and between them a file that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(photo, folder / "a.jpg")
    (folder / "b.jpg").write_bytes(b"hello")
    Image.open(photo).crop((0, 0, 200, 300)).save(folder / "c.png")
    return [folder / name for name in ("a.jpg", "b.jpg", "c.png")]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_bad_file_is_passed_over(predictor: Predictor, images: list[Path], tmp_path: Path) -> None:
    outcomes = list(predict_files(predictor, images, 0.0, tmp_path / "out"))
    assert [outcome.image for outcome in outcomes] == images
    assert isinstance(outcomes[1].error, ImageError)
    assert outcomes[1].result is None
    assert outcomes[1].picture is None
    assert "b.jpg" in outcomes[1].summary()
    for outcome, size in ((outcomes[0], (427, 640)), (outcomes[2], (300, 200))):
        assert outcome.error is None
        assert isinstance(outcome.result, Detections)
        assert outcome.result.image_size == size
        assert outcome.picture is not None
        assert load_image(outcome.picture).size == size[::-1]
        assert outcome.summary().startswith(f"{outcome.image}: ")
        assert np.array_equal(outcome.result.boxes, predictor.detect(outcome.image, 0.0).boxes)
        drawn = outcome.result.draw(outcome.image)
        assert np.array_equal(np.array(load_image(outcome.picture)), np.array(drawn))
    assert names(tmp_path / "out") == ["a.png", "c.png", RESULTS_NAME]
    document = json.loads((tmp_path / "out" / RESULTS_NAME).read_text())
    assert document == [outcome.to_dict() for outcome in outcomes]
    assert set(document[1]) == {"image", "file", "error"}
    assert set(document[0]) == {"image", "file", "picture", "image_size", "detections"}


def test_a_file_is_decoded_once_and_its_pixels_are_copied_once(
    predictor: Predictor, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, copied = [], []
    original_open, original_copy = Image.open, Image.Image.copy
    monkeypatch.setattr(Image, "open", lambda *args, **how: (opened.append(args), original_open(*args, **how))[1])
    monkeypatch.setattr(Image.Image, "copy", lambda image: (copied.append(image.size), original_copy(image))[1])
    (outcome,) = predict_files(predictor, [photo], 0.0, tmp_path / "out")
    assert outcome.error is None
    assert len(opened) == 1
    assert copied.count((640, 427)) <= 2  # one of the decoder's, and the one that is drawn on


def test_without_an_output_nothing_is_written(predictor: Predictor, images: list[Path], tmp_path: Path) -> None:
    before = names(tmp_path)
    outcomes = list(predict_files(predictor, images, 1.0))
    assert names(tmp_path) == before
    assert outcomes[0].picture is None
    assert outcomes[0].summary() == f"{images[0]}: nothing found"


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_outcomes_come_one_by_one(workers: int, predictor: Predictor, images: list[Path], tmp_path: Path) -> None:
    before = threading.enumerate()
    outcomes = predict_files(predictor, images, 0.5, tmp_path / "out", workers=workers)
    next(outcomes)
    assert "a.png" in names(tmp_path / "out")
    outcomes.close()
    assert set(names(tmp_path / "out")) <= ({"a.png", "c.png"} if workers else {"a.png"})
    assert [thread for thread in threading.enumerate() if thread not in before] == []


def test_the_same_stem_gets_a_number(predictor: Predictor, photo: Path, tmp_path: Path) -> None:
    paths = []
    for folder, name in (("1", "a.jpg"), ("2", "a.jpg"), ("1", "a.png"), ("1", "a-2.jpg")):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.open(photo).resize((40, 30)).save(tmp_path / folder / name)
        paths.append(tmp_path / folder / name)
    outcomes = list(predict_files(predictor, paths, output=tmp_path / "out"))
    assert len({outcome.picture for outcome in outcomes}) == 4
    assert len(names(tmp_path / "out")) == 5
    assert outcomes[0].picture == tmp_path / "out" / "a.png"


@pytest.mark.parametrize("there", ["c.png", RESULTS_NAME])
def test_overwriting_is_asked_for(there: str, predictor: Predictor, images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / there).write_bytes(b"old")
    with pytest.raises(OutputError, match=f"{there} exists; add --overwrite to replace it"):
        list(predict_files(predictor, images, output=tmp_path / "out"))
    assert names(tmp_path / "out") == [there]
    assert (tmp_path / "out" / there).read_bytes() == b"old"
    list(predict_files(predictor, images, output=tmp_path / "out", overwrite=True))
    assert (tmp_path / "out" / there).read_bytes() != b"old"


def test_an_image_is_never_drawn_over(predictor: Predictor, images: list[Path]) -> None:
    before = images[2].read_bytes()
    with pytest.raises(OutputError, match=r"c.png is one of the images, and would be overwritten; give another folder"):
        list(predict_files(predictor, images, output=images[0].parent, overwrite=True))
    assert images[2].read_bytes() == before
    assert names(images[0].parent) == ["a.jpg", "b.jpg", "c.png"]


def test_a_folder_that_cannot_be_written(predictor: Predictor, images: list[Path]) -> None:
    with pytest.raises(OutputError, match="cannot write to"):
        list(predict_files(predictor, images, output=images[0] / "below"))


def test_a_full_disk_is_an_output_error(
    predictor: Predictor, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OutputError, match=r"cannot write .*a.png: No space left on device"):
        list(predict_files(predictor, images[:1], output=tmp_path / "out"))
    assert names(tmp_path / "out") == []


def test_a_bad_threshold_stops_at_once(predictor: Predictor, images: list[Path]) -> None:
    with pytest.raises(InputError, match="threshold is 2; expected a number from 0 to 1"):
        list(predict_files(predictor, images, 2))


def test_a_failing_backend_stops(tiny_onnx: Path, images: list[Path], tmp_path: Path) -> None:
    closed = Predictor.load(tiny_onnx)
    closed.close()
    with pytest.raises(BackendError, match="the session is closed"):
        list(predict_files(closed, images, output=tmp_path / "out"))


def test_no_images(predictor: Predictor, tmp_path: Path) -> None:
    assert list(predict_files(predictor, [], output=tmp_path / "out")) == []
    assert json.loads((tmp_path / "out" / RESULTS_NAME).read_text()) == []
