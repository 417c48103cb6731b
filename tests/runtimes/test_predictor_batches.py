"""Lists and streams of any length: how many images a run has, how far ahead they are read, in which order results come."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_export.benchmarks.accuracy.evaluation import evaluate
from detr_export.runtimes import Predictor
from detr_export.runtimes import predictor as predictor_module
from detr_export.runtimes import stream as stream_module
from detr_export.runtimes.errors import ArtifactError, BackendError, ImageError, InputError
from detr_export.runtimes.folder import predict_files
from detr_export.runtimes.grouping import AHEAD
from detr_export.runtimes.metadata import Metadata
from detr_export.runtimes.session import Session, TensorSpec

SIZES = [(20, 30), (30, 20), (21, 30), (40, 40)]  # (height, width); only the first and the third are similar
LABELS = {0: "table row", 1: "table column"}
SECONDS = 20
METHODS = ("detect", "tables", "segment_panoptic", "segment_instances", "segment_semantic", "detect_and_segment", "predict")


class Counted(Session):
    """Finds one object in each image, as far from the left as the image is bright. It notes the shapes that it runs on.

    Args:
        most: images of one run.
        before: is called before each run.
    """

    inputs = (
        TensorSpec("pixel_values", "float32", ("batch", 3, "height", "width")),
        TensorSpec("pixel_mask", "int64", ("batch", "height", "width")),
    )
    outputs = (
        TensorSpec("logits", "float32", ("batch", 1, 3)),
        TensorSpec("pred_boxes", "float32", ("batch", 1, 4)),
        TensorSpec("pred_masks", "float32", ("batch", 1, 5, 5)),
    )

    def __init__(self, most: int | None = None, before: Callable[[], None] = lambda: None) -> None:
        settings = {"do_resize": False, "do_rescale": False, "do_normalize": False}
        self.metadata = Metadata("segmentation", LABELS, settings, True, ranges={"batch": (1, most)})
        self.before = before
        self.shapes: list[tuple[int, ...]] = []
        self.padding: list[float] = []

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.before()
        pixels, batch = inputs["pixel_values"], len(inputs["pixel_values"])
        self.shapes.append(pixels.shape)
        self.padding.append(1 - float(inputs["pixel_mask"].mean()))
        boxes = np.full((batch, 1, 4), 0.5, np.float32)
        boxes[:, 0, 0] = pixels[:, 0, 0, 0] / 255
        boxes[:, 0, 2:] = 0
        masks = np.ones((batch, 1, 5, 5), np.float32)
        return {"logits": np.array([[[9, 0, 0]]] * batch, np.float32), "pred_boxes": boxes, "pred_masks": masks}

    def close(self) -> None:
        pass

    @property
    def batches(self) -> list[int]:
        return [shape[0] for shape in self.shapes]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def picture(number: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """It has its number as its brightness."""
    return np.full((*(size or SIZES[number % len(SIZES)]), 3), number, np.uint8)


def number_of(found: Any) -> int:
    return round(float(found.boxes[0, 0]) / found.image_size[1] * 255)


# ---- lists --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "count", "largest"), [(None, 100, 8), (3, 100, 3), (1, 10, 1), (64, 100, 64), (64, 40, 40), (None, 8, 8)]
)
def test_a_run_has_a_limit(batch_size: int | None, count: int, largest: int) -> None:
    session = Counted()
    found = Predictor(session).detect([picture(number) for number in range(count)], batch_size=batch_size)
    assert [number_of(item) for item in found] == list(range(count))
    assert [item.image_size for item in found] == [SIZES[number % 4] for number in range(count)]
    assert sum(session.batches) == count
    if largest == 64:  # the similar sizes are 50 images
        assert sorted(session.batches) == [25, 25, 50]
    else:
        assert max(session.batches) == largest


def test_a_short_list_is_one_padded_batch() -> None:
    session = Counted()
    Predictor(session).detect([picture(number) for number in range(8)])
    assert session.shapes == [(8, 3, 40, 40)]


def test_a_long_list_has_little_padding() -> None:
    session = Counted()
    Predictor(session).detect([picture(number) for number in range(96)])
    assert max(session.padding) <= 0.1
    assert max(session.padding) > 0  # the similar sizes run together
    assert session.batches == [8] * 12


@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_to_the_limit(method: str) -> None:
    images = [picture(number, SIZES[0]) for number in range(20)]
    for options, expected in (({}, [8, 8, 4]), ({"batch_size": 5}, [5] * 4)):
        session = Counted()
        assert len(getattr(Predictor(session), method)(images, **options)) == 20
        assert session.batches == expected


@pytest.mark.parametrize("method", [name for name in METHODS if name.startswith("segment")])
def test_segmentations_are_never_padded(method: str) -> None:
    for count in (8, 50):
        session = Counted()
        maps = getattr(Predictor(session), method)([picture(number) for number in range(count)])
        assert [found.image_size for found in maps] == [SIZES[number % 4] for number in range(count)]
        assert set(session.padding) == {0}


def test_the_default_is_no_more_than_the_model_takes() -> None:
    session = Counted(most=2)
    images = [picture(number, SIZES[0]) for number in range(5)]
    assert [number_of(item) for item in Predictor(session).detect(images)] == [0, 1, 2, 3, 4]
    assert session.batches == [2, 2, 1]
    with pytest.raises(InputError, match="batch is 3; this model takes 1 to 2"):
        Predictor(session).detect(images, batch_size=3)
    for size in (0, -1):
        with pytest.raises(InputError, match=f"^batch_size is {size}; expected at least 1"):
            Predictor(session).detect(images, batch_size=size)


def test_images_are_read_when_their_batch_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for number in range(20):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(picture(number, SIZES[0])).save(files[-1])
    opened: list[Any] = []
    at_each_run: list[int] = []
    read = predictor_module.borrow_pixels
    monkeypatch.setattr(predictor_module, "borrow_pixels", lambda *source: (opened.append(source), read(*source))[1])
    session = Counted(before=lambda: at_each_run.append(len(opened)))
    assert [number_of(item) for item in Predictor(session).detect(files)] == list(range(20))
    assert at_each_run == [8, 16, 20]


def test_a_damaged_image_of_a_long_list(tmp_path: Path) -> None:
    images: list[Any] = [picture(number) for number in range(20)]
    images[13] = tmp_path / "nothing.png"
    with pytest.raises(ImageError, match=r"nothing.png does not exist"):
        Predictor(Counted()).detect(images)


# ---- streams ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize(("batch_size", "max_padding"), [(1, 0.0), (4, 0.0), (4, 0.1)])
def test_a_stream_is_read_a_little_ahead(batch_size: int, max_padding: float, workers: int) -> None:
    taken = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal taken
        for number in itertools.count():
            taken = number + 1
            yield picture(number % 200)

    session = Counted()
    options = {"batch_size": batch_size, "max_padding": max_padding, "workers": workers}
    results = Predictor(session).predict_stream(images(), **options)  # type: ignore[arg-type]
    assert taken == 0
    ahead = 2 * workers * batch_size + (AHEAD + 1) * batch_size * (batch_size > 1)
    for number in range(90):
        found = next(results)
        assert number_of(found) == number
        assert found.image_size == SIZES[number % 4]
        assert taken <= number + 1 + ahead
    results.close()
    assert max(session.batches) == batch_size
    assert (max(session.padding) > 0) == (max_padding > 0)
    assert max(session.padding) <= max_padding


def test_a_batch_may_be_larger_than_that_of_a_list(tmp_path: Path) -> None:
    """Or the default of lists would cut the batches of streams, files and scores."""
    images = [picture(number, SIZES[0]) for number in range(20)]
    files = [tmp_path / f"{number}.png" for number in range(20)]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image).save(file)
    record = {"height": SIZES[0][0], "width": SIZES[0][1]}
    document = {
        "images": [{"id": number, "file_name": file.name, **record} for number, file in enumerate(files)],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 0, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0},
        ],
        "categories": [{"id": number, "name": name} for number, name in LABELS.items()],
    }
    runs: list[Callable[[Predictor], Any]] = [
        lambda predictor: list(predictor.predict_stream(images, batch_size=20)),
        lambda predictor: list(predict_files(predictor, files, batch=20)),
        lambda predictor: evaluate(predictor, tmp_path, document, batch=20),
    ]
    for masks, run in itertools.product((True, False), runs):
        session = Counted()
        session.outputs = session.outputs if masks else session.outputs[:2]
        run(Predictor(session))
        assert session.batches == [20]


def test_the_iterable_ends_with_the_stream() -> None:
    ended = []

    def images() -> Iterator[np.ndarray]:
        try:
            yield from itertools.repeat(picture(0))
        finally:
            ended.append(True)

    results = Predictor(Counted()).predict_stream(images())
    next(results)
    assert not ended
    results.close()
    assert ended


@pytest.mark.parametrize("finish", [lambda results: results.close(), lambda results: None], ids=["closed", "dropped"])
def test_no_thread_is_left_by_a_stream_that_is_left(finish: Callable[[Any], None]) -> None:
    results = Predictor(Counted()).predict_stream(picture(number % 100) for number in itertools.count())
    assert number_of(next(results)) == 0
    assert {thread.name.partition("_")[0] for thread in threading.enumerate()} >= {"model", "pictures"}
    finish(results)
    del results


def test_images_are_read_while_the_model_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        Image.fromarray(picture(number)).save(tmp_path / f"{number}.png")
    last_one_read = threading.Event()
    read = stream_module.borrow_pixels

    def noted(source: Any, color: Any) -> Any:
        if source == tmp_path / "2.png":
            last_one_read.set()
        return read(source, color)

    monkeypatch.setattr(stream_module, "borrow_pixels", noted)
    waited: list[bool] = []
    session = Counted(before=lambda: waited.append(last_one_read.wait(SECONDS)))
    found = Predictor(session).predict_stream((tmp_path / f"{number}.png" for number in range(3)), workers=3)
    assert [number_of(item) for item in found] == [0, 1, 2]
    assert waited == [True] * 3


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("bad", [b"hello", np.zeros((4, 4)), None], ids=["bytes", "an array", "nothing"])
def test_an_error_comes_in_its_place(bad: Any, batch_size: int, workers: int) -> None:
    images: list[Any] = [picture(number) for number in range(30)]
    images[17] = bad
    results = Predictor(Counted()).predict_stream(images, batch_size=batch_size, workers=workers)
    assert [number_of(item) for item in itertools.islice(results, 17)] == list(range(17))
    with pytest.raises(ImageError, match=r"^image 17: "):
        next(results)
    assert list(results) == []


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_exception_of_the_iterable_comes_in_its_place(batch_size: int, workers: int) -> None:
    def images() -> Iterator[np.ndarray]:
        yield from (picture(number) for number in range(17))
        raise ZeroDivisionError("the camera is gone")

    results = Predictor(Counted()).predict_stream(images(), batch_size=batch_size, workers=workers)
    assert [number_of(item) for item in itertools.islice(results, 17)] == list(range(17))
    with pytest.raises(ZeroDivisionError, match=r"^the camera is gone$"):
        next(results)


def test_an_error_of_the_backend() -> None:
    runs = itertools.count()

    def fail() -> None:
        if next(runs) == 2:
            raise BackendError("the GPU is gone")

    results = Predictor(Counted(before=fail)).predict_stream(picture(number) for number in range(100))
    with pytest.raises(BackendError, match=r"^the GPU is gone$"):
        list(results)


@pytest.mark.parametrize("kind", ["array", "bgr", "PIL"])
def test_the_memory_of_a_frame_may_be_used_again(kind: str) -> None:
    def images() -> Iterator[Any]:
        frame = picture(0)
        image = Image.new("RGB", (30, 20))
        for number in range(40):
            frame[:] = number
            image.paste((number,) * 3, (0, 0, 30, 20))
            yield image if kind == "PIL" else frame

    results = Predictor(Counted()).predict_stream(images(), color="bgr" if kind == "bgr" else "rgb", batch_size=3)
    assert [number_of(item) for item in results] == list(range(40))


def test_the_channels_of_frames() -> None:
    frame = picture(0)
    frame[..., 2] = 50  # the red one, to which the model looks
    assert [number_of(item) for item in Predictor(Counted()).predict_stream([frame], color="bgr")] == [50]


@pytest.mark.parametrize("task", ["detection", "panoptic", "instances", "semantic", "tables"])
def test_a_stream_gives_what_one_image_gives(task: str) -> None:
    predictor = Predictor(Counted())
    images = [picture(number) for number in range(12)]
    assert task in predictor.tasks
    for image, found in zip(images, predictor.predict_stream(images, task, 0.6, batch_size=4), strict=True):
        alone = predictor.predict(image, task, 0.6)
        if task == "tables":
            assert [table.to_dict() for table in found] == [table.to_dict() for table in alone]
        else:
            assert found.to_dict() == alone.to_dict()
            assert len(found) == 1


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ("a.jpg", {}, "images is a str; expected an iterable of images"),
        (b"a", {}, "images is a bytes; expected an iterable of images"),
        (3, {}, "images is a int; expected an iterable of images"),
        ([], {"task": "x"}, "task is 'x'; expected one of detection, panoptic, instances, semantic, tables"),
        ([], {"threshold": 2}, "threshold is 2; expected a number from 0 to 1"),
        ([], {"color": "hsv"}, "color is 'hsv'"),
        ([], {"batch_size": 0}, "batch is 0; expected at least 1"),
        ([], {"batch_size": 5}, "batch is 5, but the model takes 4 at most"),
        ([], {"batch_size": 2, "max_padding": 1}, "max_padding is 1; expected a share"),
        ([], {"task": "panoptic", "batch_size": 2, "max_padding": 0.1}, "images are not padded for the task panoptic"),
        ([], {"task": "panoptic", "clip": False}, "the boxes of the task panoptic are those of its masks"),
        ([], {"workers": -1}, "workers is -1; expected a number of threads"),
    ],
)
def test_refuses_before_the_first_image(images: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Predictor(Counted(most=4)).predict_stream(images, **options)


def test_refuses_tasks_of_other_models() -> None:
    session = Counted()
    session.outputs = session.outputs[:2]
    session.metadata = Metadata("detection", {0: "cat", 1: "dog"}, {}, True)
    predictor = Predictor(session)
    assert predictor.tasks == ("detection",)
    for task, message in (("panoptic", "draws no masks"), ("tables", "has no class 'table row'")):
        for ask in (predictor.predict, predictor.predict_stream):
            with pytest.raises(ArtifactError, match=message):
                ask([], task)
