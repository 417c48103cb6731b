"""Results of frames: those of the same pictures, in order, with little in memory; and live sources that do not wait."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_export.runtimes import Detections, Predictor
from detr_export.runtimes.errors import ArtifactError, ImageError, InputError
from detr_export.runtimes.results.drawing_style import PLAIN, DrawingStyle
from detr_export.runtimes.tasks import document_of, drawing_of
from detr_export.runtimes.video import decoding
from detr_export.runtimes.video.frame import VideoFrame
from detr_export.runtimes.video.prediction import FramePrediction, predict_video
from detr_export.runtimes.video.reader import VideoReader
from detr_export.runtimes.video.sources import VideoSource
from tests.runtimes.video.drawn import decoded, pictures, shown_at, write_video

CAMERA = VideoSource("0", "camera", "camera-0")


@pytest.fixture(scope="module")
def predictor(tiny_onnx: Path) -> Iterator[Predictor]:
    with Predictor.load(tiny_onnx, threads=1, spinning=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "video.mp4", pictures(12))


def video_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("video", "pictures", "model"))]


@pytest.mark.parametrize("workers", [0, 4])
@pytest.mark.parametrize("batch", [1, 5])
def test_results_are_those_of_the_pictures(predictor: Predictor, video: Path, batch: int, workers: int) -> None:
    found = list(predict_video(predictor, video, threshold=0.0, batch_size=batch, workers=workers))
    frames = decoded(video)
    assert [item.number for item in found] == list(range(12))
    assert [item.frame.stamp for item in found] == shown_at(video)
    for item, pixels in zip(found, frames, strict=True):
        wanted = predictor.detect(pixels, 0.0)
        assert isinstance(item.result, Detections)
        assert len(wanted)
        if batch == 1:  # else up to rounding
            assert item.result == wanted
            assert item.to_dict() == {"frame": item.number, "time": item.time, **wanted.to_dict()}
        assert np.allclose(item.result.scores, wanted.scores, atol=1e-5)
        assert item.result.image_size == (48, 64)
    varied = {tuple(item.result.scores.tolist()) for item in found if isinstance(item.result, Detections)}
    assert len(varied) == 12
    assert not video_threads()


@pytest.mark.parametrize("task", ["panoptic", "instances", "semantic"])
def test_segmentations_are_drawn(task: str, segmenter_onnx: Path, tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.mp4", pictures(3))
    with Predictor.load(segmenter_onnx, threads=1, spinning=False) as predictor:
        found = list(predict_video(predictor, path, task, 0.1, style=PLAIN))
        for item, pixels in zip(found, decoded(path), strict=True):
            wanted = predictor.predict(pixels, task, 0.1)
            assert document_of(item.result) == document_of(wanted)
            assert item.drawn is not None
            assert np.array_equal(item.drawn, drawing_of(wanted, Image.fromarray(pixels)))


def test_classes_and_styles(predictor: Predictor, video: Path) -> None:
    name = predictor.detect(decoded(video)[0], 0.0).names[0]
    style = DrawingStyle(line_width=3, labels=False)
    (item,) = predict_video(predictor, VideoReader(video, frames=1), threshold=0.0, classes=[name], style=style)
    pixels = decoded(video)[0]
    wanted = predictor.detect(pixels, 0.0).of_classes([name])
    assert item.result == wanted
    assert item.drawn is not None
    assert np.array_equal(item.drawn, wanted.draw(pixels, style))


def test_frames_of_several_sizes_share_no_batch(predictor: Predictor, tmp_path: Path) -> None:
    sizes = [(48, 64), (80, 32)]
    parts = [write_video(tmp_path / f"{number}.ts", pictures(4, size)) for number, size in enumerate(sizes)]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    found = list(predict_video(predictor, path, threshold=0.0, batch_size=3))
    assert [item.number for item in found] == list(range(8))
    shown = [item.result.image_size for item in found if isinstance(item.result, Detections)]
    assert shown == [sizes[0]] * 4 + [sizes[1]] * 4


def test_what_is_refused_at_once(predictor: Predictor, video: Path) -> None:
    wrong: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"task": "panoptic"}, ArtifactError),
        ({"threshold": 2.0}, InputError),
        ({"batch_size": 0}, InputError),
        ({"workers": -1}, InputError),
        ({"classes": ["no such class"]}, InputError),
        ({"style": DrawingStyle(line_width=2), "task": "nothing"}, InputError),
    ]
    for arguments, kind in wrong:
        with pytest.raises(kind):
            predict_video(predictor, video, **arguments)
    assert not video_threads()


def test_a_frame_that_the_model_refuses_is_named(predictor: Predictor, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Predictor.predict

    def predict(self: Predictor, images: Any, *arguments: Any, **options: Any) -> Any:
        if images and np.array_equal(images[0], decoded(video)[7]):
            raise InputError("too something")
        return original(self, images, *arguments, **options)

    monkeypatch.setattr(Predictor, "predict", predict)
    found: list[FramePrediction] = []
    with pytest.raises(InputError) as caught:
        found.extend(predict_video(predictor, video))
    assert str(caught.value) == f"{video}: frame 7, at 0.70 s: too something"
    assert len(found) == 7
    assert not video_threads()


def test_a_cut_file_gives_its_results_first(predictor: Predictor, video: Path, tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.ts", pictures(12))
    path = tmp_path / "cut.ts"
    path.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.7)])
    found: list[FramePrediction] = []
    with pytest.raises(ImageError) as caught:
        found.extend(predict_video(predictor, path, threshold=0.0))
    assert f"its last frame is {found[-1].number}, at {found[-1].time:.2f} s" in str(caught.value)
    assert 5 < len(found) < 12


def test_few_frames_are_in_memory(predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "long.mp4", pictures(1) * 150)
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0
    original = decoding.Decoder._pixels

    def pixels(self: decoding.Decoder, frame: Any) -> np.ndarray:
        nonlocal most
        found = original(self, frame)
        alive.add(_Kept(found))
        most = max(most, sum(item.array() is not None for item in alive))
        return found

    class _Kept:
        """Lives as long as an array does, which cannot be in a set itself."""

        def __init__(self, array: np.ndarray) -> None:
            self.array = weakref.ref(array)
            kept.append(self)

    kept: list[_Kept] = []
    monkeypatch.setattr(decoding.Decoder, "_pixels", pixels)
    assert sum(1 for _ in predict_video(predictor, path)) == 150
    assert most <= 4 + 1 + 8 + 3  # ahead, at the door, with two for each worker, and in the hands of three


def test_leaving_early_ends_all_threads(predictor: Predictor, video: Path) -> None:
    found = predict_video(predictor, video)
    assert next(found).number == 0
    found.close()
    assert not video_threads()


# ---- live ---------------------------------------------------------------------------------------------------------------


def live_reader(monkeypatch: pytest.MonkeyPatch, given: Iterator[VideoFrame], **options: Any) -> VideoReader:
    """A camera that gives these frames."""

    @contextmanager
    def connection(self: VideoReader) -> Iterator[Iterator[VideoFrame]]:
        yield given

    monkeypatch.setattr(VideoReader, "_connection", connection)
    return VideoReader(CAMERA, reconnect=0, **options)


def test_a_slow_model_drops_old_frames_of_a_camera(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = pictures(1)[0]
    door = threading.Event()  # opened when all frames have been there
    given = 0

    def camera() -> Iterator[VideoFrame]:
        nonlocal given
        for number in range(500):
            given += 1
            yield VideoFrame(number, Fraction(number, 100), pixels)
        door.set()

    original = predictor.session.run

    def slow(*arguments: Any) -> Any:
        assert door.wait(30)
        return original(*arguments)

    monkeypatch.setattr(predictor.session, "run_chosen", lambda inputs, choose: slow(inputs))
    with live_reader(monkeypatch, camera()) as reader:
        found = list(predict_video(predictor, reader))
        assert given == 500
        assert len(found) + reader.dropped == 500
        assert reader.dropped >= 490  # four are at the model, one on its way there, and two wait
    numbers = [item.number for item in found]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 499


def test_a_result_does_not_wait_for_the_next_frame(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = threading.Event()

    def camera() -> Iterator[VideoFrame]:
        for number in itertools.count():
            yield VideoFrame(number, Fraction(number), pictures(1)[0])
            assert shown.wait(30)  # the next one comes when the result of this one has been seen
            shown.clear()

    with live_reader(monkeypatch, camera(), frames=3) as reader:
        seen = []
        for item in predict_video(predictor, reader):
            seen.append(item.number)
            shown.set()
    assert seen == [0, 1, 2]
    assert not video_threads()
