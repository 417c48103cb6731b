"""Frames of a video through a predictor: their channels, and memory that does not grow."""

from __future__ import annotations

import ctypes
import gc
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from detr_export.runtimes import Detections, Predictor, Segmentation
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.errors import ImageError, InputError
from detr_export.runtimes.processing.images import load_image
from detr_export.verification.cases import Case, make_inputs

RUNS = 200  # of one frame buffer, after those that warm up
FRAME = (240, 320, 3)


@pytest.fixture(scope="module")
def predictor(tiny_onnx: Path) -> Iterator[Predictor]:
    with Predictor.load(tiny_onnx, threads=1) as opened:
        yield opened


def noise(shape: tuple[int, ...] = FRAME, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def same(given: Any, wanted: Any) -> bool:
    if isinstance(given, tuple):
        return all(same(*pair) for pair in zip(given, wanted, strict=True))
    if isinstance(given, Detections):
        return np.array_equal(given.scores, wanted.scores) and np.array_equal(given.boxes, wanted.boxes)
    return np.array_equal(given.map, wanted.map) if isinstance(given, Segmentation) else np.array_equal(given, wanted)


# ---- frames -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [FRAME, (3, 90, 3), (90, 3, 3), (120, 40, 3)])
def test_frames_of_all_kinds_give_what_a_picture_gives(shape: tuple[int, int, int], predictor: Predictor) -> None:
    frame = noise(shape)
    wanted = predictor.detect(Image.fromarray(frame), 0.0)
    bgr = np.ascontiguousarray(frame[..., ::-1])
    for given in (
        frame,
        memoryview(frame),
        torch.from_numpy(frame),
        bgr[..., ::-1],
        np.pad(frame, ((2, 2), (3, 3), (0, 0)))[2:-2, 3:-3],
    ):
        assert same(predictor.detect(given, 0.0), wanted)
    assert same(predictor.detect(bgr, 0.0, color="bgr"), wanted)
    assert not same(predictor.detect(bgr, 0.0), wanted)
    assert wanted.image_size == shape[:2]


def test_a_batch_mixes_frames_and_files(predictor: Predictor, photo: Path) -> None:
    frame, turned = noise(), noise((320, 240, 3), 1)
    together = predictor.detect([frame, photo, turned], 0.0)
    pictures = predictor.detect([Image.fromarray(frame), Image.open(photo), Image.fromarray(turned)], 0.0)
    assert all(same(*pair) for pair in zip(together, pictures, strict=True))


def test_every_method_takes_bgr(segmenter: Path, tiny_checkpoint: Path) -> None:
    frame = noise((60, 80, 3))
    bgr = np.ascontiguousarray(frame[..., ::-1])
    with Predictor.load(segmenter) as predictor:
        for method in (
            predictor.detect,
            predictor.segment_panoptic,
            predictor.segment_instances,
            predictor.segment_semantic,
            predictor.detect_and_segment,
        ):
            wanted = method(frame)
            assert same(method(bgr, color="bgr"), wanted)
            assert same(method([bgr], color="bgr")[0], wanted)
            with pytest.raises(InputError, match=r"color is 'bgr' and an image is a Image, .* leave color out"):
                method([bgr, Image.fromarray(frame)], color="bgr")
    with Predictor.load(tiny_checkpoint, attentions=True) as predictor:
        assert same(predictor.explain(bgr, 0.0, color="bgr"), predictor.explain(frame, 0.0))


def test_bad_frames_are_refused_before_the_model_runs(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor.session, "_run", lambda inputs: pytest.fail("the model ran"))
    for bad in (noise((9, 9, 4)), noise((9, 9)), noise((0, 9, 3)), np.zeros(FRAME, np.float32), noise((1, 9, 9, 3))):
        with pytest.raises(ImageError, match=r"is not an RGB image: expected uint8 of shape \(H, W, 3\); "):
            predictor.detect([noise(), bad])
    with pytest.raises(InputError, match="color is 'BGR'; expected 'rgb' or 'bgr'"):
        predictor.detect(noise(), color="BGR")  # type: ignore[call-overload]


# ---- memory -------------------------------------------------------------------------------------------------------------


def growth(work: Callable[[int], object]) -> tuple[int, int]:
    """By how many bytes a loop grows: what Python and numpy hold, and the whole process, with Pillow and ONNX Runtime."""
    process, libc = psutil.Process(), ctypes.CDLL(None)

    def memory() -> tuple[int, int]:
        gc.collect()
        if hasattr(libc, "malloc_trim"):  # what is free goes back to the system, or it would hide new memory
            libc.malloc_trim(0)
        return tracemalloc.get_traced_memory()[0], process.memory_info().rss

    tracemalloc.start()
    try:
        for run in range(RUNS // 4):  # caches, arenas and threads come about in the first runs
            work(run)
        held, resident = memory()
        for run in range(RUNS):
            work(run)
        held_after, resident_after = memory()
        return held_after - held, resident_after - resident
    finally:
        tracemalloc.stop()


def assert_steady(grown: tuple[int, int], size: int) -> None:
    """Less than one buffer of `size` bytes in all that Python holds, and less than a tenth of one a run in the process."""
    held, resident = grown
    assert held < size, f"Python holds {held} bytes more after {RUNS} runs"
    assert resident < RUNS * size // 10, f"the process has {resident} bytes more after {RUNS} runs"


def test_one_frame_buffer_again_and_again(predictor: Predictor) -> None:
    frame = noise()

    def detect(run: int) -> None:
        frame[run % len(frame)] = run % 256  # the next frame of the video, in the same memory
        predictor.detect(frame, color="bgr")

    assert_steady(growth(detect), frame.nbytes)


def test_errors_keep_no_frame(predictor: Predictor) -> None:
    frame = noise()

    def fail(run: int) -> None:
        with pytest.raises(ImageError):
            predictor.detect([frame, frame[..., :1]])

    assert_steady(growth(fail), frame.nbytes)


def test_one_set_of_output_arrays_again_and_again(tiny_onnx: Path) -> None:
    inputs = make_inputs(Case(96, 128, ((96, 128),)), 3, True, seed=0)
    size = inputs["pixel_values"].nbytes
    with OrtSession(tiny_onnx, threads=1) as session:
        outputs = session.run(inputs)

        def run_into(run: int) -> None:
            inputs["pixel_values"][..., 0] = run
            session.run_into(inputs, outputs)

        assert_steady(growth(run_into), size)


def test_four_threads_with_a_frame_each(predictor: Predictor) -> None:
    frames = [noise(seed=seed) for seed in range(4)]
    wanted = [predictor.detect(frame, 0.0) for frame in frames]
    with ThreadPoolExecutor(4) as pool:

        def detect(run: int) -> None:
            if run % 4 == 0:  # four at a time
                found = pool.map(lambda frame: predictor.detect(frame, 0.0), frames)
                assert all(same(*pair) for pair in zip(found, wanted, strict=True))

        assert_steady(growth(detect), sum(frame.nbytes for frame in frames) // 4)


@pytest.mark.parametrize(
    "leak", [lambda frame: frame.copy(), load_image, lambda frame: bytes(frame)], ids=["array", "Pillow", "bytes"]
)
def test_the_measure_sees_one_frame_that_is_kept_a_run(leak: Callable[[np.ndarray], object]) -> None:
    frame, kept = noise(), []
    grown = growth(lambda run: kept.append(leak(frame)))
    with pytest.raises(AssertionError, match="bytes more after"):
        assert_steady(grown, frame.nbytes)
    assert grown[1] > RUNS * frame.nbytes // 2
