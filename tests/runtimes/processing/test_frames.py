"""Pixels of other programs: whose memory it is, in which order the pixels lie, and what is copied."""

from __future__ import annotations

import gc
import io
import json
import mmap
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detr_export.runtimes.errors import ImageError, InputError
from detr_export.runtimes.processing.frames import array_over, packed
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from detr_export.runtimes.processing.image_processor_fast import DetrImageProcessorFast
from detr_export.runtimes.processing.images import borrow_pixels, load_image
from detr_export.runtimes.processing.resizing.strips import ResizedFrame
from detr_export.runtimes.processing.transforms import LAST

FRAME = np.random.default_rng(0).integers(0, 256, (150, 70, 3), dtype=np.uint8)  # two strips and a part of one


class Interface:
    """An object of another library: it has `__array_interface__` and nothing else."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array  # which the memory belongs to
        self.__array_interface__ = array.__array_interface__


class Tensor:
    """An object of another library: it has DLPack and nothing else."""

    def __init__(self, array: np.ndarray, place: tuple[int, int] = (1, 0)) -> None:
        self._array, self._place = array, place

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._place


class CudaArray:
    """An array of Numba or PyCUDA, which are on the GPU and do not speak DLPack."""

    def __init__(self) -> None:
        self.__cuda_array_interface__ = {"shape": (4, 5, 3), "typestr": "|u1", "data": (0, False), "version": 3}


def padded_rows(frame: np.ndarray) -> np.ndarray:
    """The frame in rows that are longer than its pixels, as camera drivers and GStreamer align them."""
    height, width, _ = frame.shape
    step = width * 3 + 26
    view = np.ndarray(frame.shape, np.uint8, bytearray(height * step), strides=(step, 3, 1))
    view[...] = frame
    return view


def read_only(frame: np.ndarray) -> np.ndarray:
    frozen = frame.copy()
    frozen.setflags(write=False)
    return frozen


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": lambda frame: frame.copy(),
    "read only": read_only,
    "from BGR": lambda frame: np.ascontiguousarray(frame[..., ::-1])[..., ::-1],
    "crop": lambda frame: np.pad(frame, ((3, 4), (5, 6), (0, 0)))[3:-4, 5:-6],
    "crop of BGR": lambda frame: np.pad(frame[..., ::-1], ((3, 4), (5, 6), (0, 0)))[3:-4, 5:-6, ::-1],
    "padded rows": padded_rows,
    "bottom up": lambda frame: frame[::-1].copy()[::-1],
    "mirrored": lambda frame: frame[:, ::-1].copy()[:, ::-1],
    "planes": lambda frame: frame.transpose(2, 0, 1).copy().transpose(1, 2, 0),
    "without alpha": lambda frame: np.pad(frame, ((0, 0), (0, 0), (0, 1)))[..., :3],
    "BGR without alpha": lambda frame: np.pad(frame[..., ::-1], ((0, 0), (0, 0), (0, 1)))[..., 2::-1],
    "every second": lambda frame: frame.repeat(2, 0).repeat(2, 1)[::2, ::2],
}

HOLDERS: dict[str, Callable[[np.ndarray], Any]] = {
    "ndarray": lambda frame: frame,
    "memoryview": lambda frame: memoryview(frame),
    "bytearray with a shape": lambda frame: memoryview(bytearray(frame)).cast("B", frame.shape),
    "bytes with a shape": lambda frame: memoryview(bytes(frame)).cast("B", frame.shape),
    "array interface": Interface,
    "DLPack": Tensor,
    "pinned DLPack": lambda frame: Tensor(frame, (3, 0)),
    "torch": torch.from_numpy,
    "torch channels first": lambda frame: torch.from_numpy(frame.transpose(2, 0, 1).copy()).permute(1, 2, 0),
}


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


# ---- the right pixels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_pixels_as_a_plain_copy(layout: str) -> None:
    frame = LAYOUTS[layout](FRAME)
    assert np.array_equal(frame, FRAME)
    assert np.array_equal(np.asarray(load_image(frame)), FRAME)
    wanted = np.asarray(Image.fromarray(FRAME).resize((41, 97), Image.Resampling.BILINEAR))
    assert np.array_equal(ResizedFrame(frame, 97, 41, Image.Resampling.BILINEAR).image(), wanted)
    for processor in (DetrImageProcessor, DetrImageProcessorFast):
        given, expected = (
            processor(size={"height": 97, "width": 41}).preprocess(pixels, return_tensors="np", input_data_format=LAST)
            for pixels in (borrow_pixels(frame), load_image(FRAME))
        )
        assert np.array_equal(given["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_packed_frame_is_one_block(layout: str) -> None:
    frame = LAYOUTS[layout](FRAME)
    block = packed(frame)
    assert block.flags.c_contiguous
    assert np.array_equal(block, FRAME)
    assert (address(block) == address(frame)) == (layout in ("contiguous", "read only"))


@pytest.mark.parametrize("resample", list(Image.Resampling))
@pytest.mark.parametrize("source", [(1, 1), (3, 200), (63, 5), (64, 64), (65, 33), (129, 90)])
@pytest.mark.parametrize("target", [(1, 1), (7, 200), (64, 64), (200, 90)])
def test_strips_give_the_pixels_of_pillow(source: tuple[int, int], target: tuple[int, int], resample: int) -> None:
    frame = np.ascontiguousarray(np.resize(FRAME, (*source, 3)))
    wanted = np.asarray(Image.fromarray(frame).resize(target[::-1], resample))
    assert np.array_equal(ResizedFrame(frame, *target, resample).image(), wanted)


@pytest.mark.parametrize("source", [(100, 100), (240, 100), (300, 90), (100, 300)])
@pytest.mark.parametrize("columns", [-20, 0, 1, 17, 40])
@pytest.mark.parametrize("surplus", [-21, -1, 0, 1, 2])
def test_strips_where_pillow_may_begin_with_the_height(source: tuple[int, int], columns: int, surplus: int) -> None:
    """The border, at which `surplus` rows more are lost than twice the columns."""
    frame = np.ascontiguousarray(np.resize(FRAME, (*source, 3)))
    target = source[0] - 2 * columns - surplus, source[1] - columns
    wanted = np.asarray(Image.fromarray(frame).resize(target[::-1], Image.Resampling.BILINEAR))
    assert np.array_equal(ResizedFrame(frame, *target, Image.Resampling.BILINEAR).image(), wanted)


@pytest.mark.parametrize("holder", HOLDERS)
def test_every_holder_shows_its_pixels(holder: str) -> None:
    source = HOLDERS[holder](FRAME.copy())
    assert np.array_equal(borrow_pixels(source), FRAME)
    assert np.array_equal(borrow_pixels(source, "bgr"), FRAME[..., ::-1])
    assert np.array_equal(np.asarray(load_image(source)), FRAME)


@pytest.mark.parametrize("layout", ["padded rows", "crop", "bottom up", "from BGR"])
@pytest.mark.parametrize("holder", [memoryview, Interface])
def test_holders_of_any_strides(holder: Any, layout: str) -> None:
    assert np.array_equal(borrow_pixels(holder(LAYOUTS[layout](FRAME))), FRAME)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_bytes_in_one_dimension_are_the_content_of_a_file(format: str, tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(FRAME).save(stream, format)
    content = stream.getvalue()
    wanted = np.asarray(load_image(content))
    (tmp_path / "image").write_bytes(content)
    with open(tmp_path / "image", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        array = np.frombuffer(content, np.uint8)
        for source in (bytearray(content), memoryview(content), array, torch.from_numpy(array.copy()), mapped):
            assert np.array_equal(np.asarray(load_image(source)), wanted)
            borrowed = borrow_pixels(source)
            assert np.array_equal(np.asarray(borrowed), wanted)


# ---- what is copied -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("holder", ["ndarray", "memoryview", "array interface", "DLPack", "torch"])
def test_borrowed_pixels_lie_where_the_caller_has_them(holder: str) -> None:
    frame = FRAME.copy()
    source = HOLDERS[holder](frame)
    assert address(borrow_pixels(source)) == address(frame)
    assert address(borrow_pixels(source, "bgr")) == address(frame) + 2  # the first pixel's red
    frame[...] = 7
    assert np.all(borrow_pixels(source) == 7)


COPIES = r"""
import json, re
import numpy as np
from PIL import Image
from detr_export.runtimes.processing.frames import frame_to_image
from detr_export.runtimes.processing.resizing.strips import ResizedFrame

def peak():  # of this process, bytes
    return int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]) * 1024

block = np.ones((3000, 4100, 3), np.uint8)
crop = block[:, 50:-50]
frame_to_image(block[:64]).resize((64, 64))
grown = {}
for name, work in {
    "resized": lambda: ResizedFrame(block, 64, 64, 2).image(),
    "crop": lambda: ResizedFrame(crop, 64, 64, 2).image(),
    "bgr": lambda: ResizedFrame(block[..., ::-1], 64, 64, 2).image(),
    "copied": lambda: frame_to_image(block),
}.items():
    before = peak()
    work()
    grown[name] = (peak() - before) / block.nbytes
print(json.dumps(grown))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak memory in a file")
def test_resizing_copies_no_whole_frame() -> None:
    """Peak memory of a process. Pillow's own memory is in it, which tracemalloc would not see."""
    done = subprocess.run([sys.executable, "-c", COPIES], capture_output=True, text=True, check=True)
    grown = json.loads(done.stdout)
    assert grown["copied"] > 1  # a copy shows
    assert max(grown["resized"], grown["crop"], grown["bgr"]) < 0.25, grown


def test_nothing_holds_the_pixels_afterwards() -> None:
    """A host takes its buffer back after a call, without waiting for Python's garbage collector."""
    processor = DetrImageProcessor(size={"height": 30, "width": 40})
    owner = bytearray(FRAME)
    view = memoryview(owner).cast("B", FRAME.shape)
    gc.disable()
    try:
        processor.preprocess([borrow_pixels(view, "bgr")], return_tensors="np", input_data_format=LAST)
        view.release()
        owner.clear()  # BufferError while anything still looks at it
    finally:
        gc.enable()


# ---- what is refused ----------------------------------------------------------------------------------------------------


def released() -> memoryview:
    view = memoryview(bytearray(FRAME)).cast("B", FRAME.shape)
    view.release()
    return view


def closed() -> mmap.mmap:
    mapped = mmap.mmap(-1, 100)
    mapped.close()
    return mapped


class Broken:
    def __init__(self) -> None:
        self.__array_interface__ = {"version": 3, "shape": (4, 5, 3), "typestr": "|u1", "data": "nowhere"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: memoryview(FRAME[..., 0].copy()), r"shape \(150, 70\) .*; repeat the grey channel"),
        (lambda: torch.zeros(4, 5, 1, dtype=torch.uint8), r"shape \(4, 5, 1\) .*; repeat the grey channel"),
        (lambda: Interface(np.zeros((4, 5, 4), np.uint8)), r"shape \(4, 5, 4\) .*; drop the alpha channel"),
        (lambda: torch.zeros(3, 40, 50, dtype=torch.uint8), r"transpose it from channels-first: .*permute\(1, 2, 0\)"),
        (lambda: torch.zeros(40, 50, 3), r"dtype float32 is not an RGB image: expected uint8 .*; scale it to 0..255"),
        (lambda: memoryview(np.zeros((40, 50, 3))), r"dtype float64 .*; scale it to 0..255"),
        (lambda: memoryview(np.zeros((40, 50, 3), np.int8)), r"dtype int8 .*; cast it to uint8"),
        (lambda: Tensor(np.zeros((2, 40, 50, 3), np.uint8)), r"shape \(2, 40, 50, 3\) .*; pass the images .* one by one"),
        (lambda: torch.zeros(0, 50, 3, dtype=torch.uint8), r"shape \(0, 50, 3\) .*; pass an image with at least one pixel"),
        (lambda: np.array([FRAME, None], object), r"dtype object .* expected uint8 .* or pass a list of images"),
        (lambda: memoryview(bytes(FRAME)), r"memoryview object of length 31500 is not an image .*cast\('B', \(H, W, 3\)\)"),
        (lambda: bytearray(FRAME), r"bytearray object of length 31500 is not an image .* give them their shape"),
        (lambda: FRAME.ravel(), r"ndarray object of length 31500 is not an image .* give them their shape"),
        (bytearray, "the image bytes are empty: expected the content of an image file"),
        (released, r"the memoryview does not show its pixels \(.*released.*\): expected memory that is open"),
        (closed, r"the mmap does not show its pixels \(mmap closed.*\): expected memory that is open"),
        (Broken, r"the Broken does not show its pixels \(.*\): expected memory that is open and that numpy reads"),
        (lambda: Tensor(FRAME, (2, 0)), r"the Tensor lies on a GPU: expected .* host memory; .*\.cpu\(\) .* \.get\(\)"),
        (lambda: Tensor(FRAME, (13, 0)), "the Tensor lies on a GPU"),
        (CudaArray, r"the CudaArray lies on a GPU: expected .* \.get\(\) for CuPy"),
        (lambda: torch.zeros(4, 5, 3, device="meta"), r"the Tensor does not show its pixels"),
        (lambda: torch.zeros(4, 5, 3, dtype=torch.bfloat16), r"the Tensor does not show its pixels"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(source: Callable[[], Any], message: str) -> None:
    for read in (load_image, borrow_pixels):
        with pytest.raises(ImageError) as caught:
            read(source())
        assert re.search(message, str(caught.value)), str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source", ["a.png", Path("a.png"), b"\x89PNG", bytearray(9), Image.new("RGB", (4, 5)), np.zeros(9, np.uint8)], ids=type
)
def test_only_arrays_have_an_order_of_channels(source: Any) -> None:
    with pytest.raises(InputError, match=rf"color is 'bgr' and an image is a {type(source).__name__}, .*; leave color out"):
        borrow_pixels(source, "bgr")


@pytest.mark.parametrize("color", ["BGR", "rgba", "", None])
def test_other_orders_are_refused(color: Any) -> None:
    for source in (FRAME, "a.png"):
        with pytest.raises(InputError, match=rf"color is {color!r}; expected 'rgb' or 'bgr'"):
            borrow_pixels(source, color)


def test_objects_without_memory_are_none() -> None:
    for source in (None, 7, "a.png", [FRAME], Path("a.png"), object()):
        assert array_over(source) is None
