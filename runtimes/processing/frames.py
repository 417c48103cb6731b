"""Images that lie in memory: numpy arrays, tensors, and the buffers of a camera, a decoder or a C++ program.

A frame is a numpy array, uint8 (H, W, 3) in RGB order, that shares the memory of the object that it was made from. Its
strides are any: a crop, padded rows, and BGR pixels are views. Nothing is copied until the pixels are read.
"""

from __future__ import annotations

from typing import Any, Literal, Optional, Protocol

import numpy as np
from PIL import Image

from detr_export.runtimes.errors import ImageError, InputError, first_line

Color = Literal["rgb", "bgr"]

_IN_HOST_MEMORY = (1, 3, 11)  # DLDeviceType of dlpack.h: the CPU, and memory that CUDA or ROCm pinned


class ArrayInterface(Protocol):
    """An object whose memory numpy can read, such as another library's array."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


class DLPack(Protocol):
    """A tensor that can be shared, such as that of PyTorch or JAX."""

    def __dlpack__(self) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, int]: ...


def array_over(source: object) -> Optional[np.ndarray]:
    """A numpy array over the memory of `source`, or None if it does not show any. Nothing is copied.

    `source` has the buffer protocol (bytes, memoryview, mmap, objects of pybind11), `__array_interface__`, or DLPack. The
    array keeps it alive. Dtype, shape and strides are those of `source`.

    Raises ImageError if the memory is on a GPU, was released, or has a type that numpy does not have.
    """
    if isinstance(source, np.ndarray):
        return np.asarray(source)  # a subclass becomes a plain view
    name = type(source).__name__
    try:
        place = source.__dlpack_device__() if hasattr(source, "__dlpack_device__") else None
        if (place is not None and int(place[0]) not in _IN_HOST_MEMORY) or (
            place is None and hasattr(source, "__cuda_array_interface__")
        ):
            raise ImageError(
                f"the {name} lies on a GPU: expected an image in host memory; copy it first, with .cpu() for PyTorch "
                "or .get() for CuPy"
            )
        buffer = _buffer(source)
        if buffer is not None:
            return np.asarray(buffer)
        if hasattr(source, "__array_interface__"):
            return np.asarray(source)
        if place is not None:
            return np.from_dlpack(source)  # type: ignore[arg-type]
    except ImageError:
        raise
    except Exception as error:  # what another library's object raises is its own affair
        raise ImageError(
            f"the {name} does not show its pixels ({first_line(error)}): expected memory that is open and that numpy reads; "
            "pass it before it is released or closed, or pass numpy.array(it)"
        ) from error
    return None


def is_file_content(array: np.ndarray) -> bool:
    """Whether an array is the content of an image file: bytes in one dimension."""
    return array.ndim == 1 and array.dtype.kind in "uiS" and array.itemsize == 1


def require_frame(array: np.ndarray) -> np.ndarray:
    """The array, if it is uint8 (H, W, 3). Raises ImageError with what mends it for any other."""
    remedies = [remedy for remedy in (_shape_remedy(array), _dtype_remedy(array)) if remedy is not None]
    if remedies:
        nan = " containing NaN" if array.dtype.kind == "f" and np.isnan(array).any() else ""
        raise ImageError(
            f"array of shape {array.shape} and dtype {array.dtype}{nan} is not an RGB image: "
            f"expected uint8 of shape (H, W, 3); {', and '.join(remedies)}"
        )
    return array


def require_color(color: str) -> None:
    """Raises InputError for anything but "rgb" and "bgr"."""
    if color not in ("rgb", "bgr"):
        raise InputError(f"color is {color!r}; expected 'rgb' or 'bgr'")


def frame_to_image(frame: np.ndarray) -> Image.Image:
    """The frame as a PIL image. This copies it, because Pillow keeps four bytes for a pixel."""
    pixels, order = _stored(frame)
    pixels = np.ascontiguousarray(pixels)
    return Image.frombuffer("RGB", (pixels.shape[1], pixels.shape[0]), pixels, "raw", order, 0, 1)


def packed(frame: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) in C order, for a model that takes images as they are. A frame that lies so is not copied.

    BGR pixels are copied channel by channel, which is nine times as fast as numpy's own way through them.
    """
    if frame.strides[2] >= 0:
        return np.ascontiguousarray(frame)
    copy = np.empty(frame.shape, np.uint8)
    for channel in range(3):
        copy[..., channel] = frame[..., channel]
    return copy


def _buffer(source: object) -> Optional[memoryview]:
    try:
        return memoryview(source)  # type: ignore[arg-type]
    except TypeError:  # it has no buffer protocol
        return None


def _stored(frame: np.ndarray) -> tuple[np.ndarray, str]:
    """The pixels in the order in which they lie in memory, and that order. Pillow swaps BGR while it reads."""
    return (frame[..., ::-1], "BGR") if frame.strides[2] < 0 else (frame, "RGB")


def _shape_remedy(array: np.ndarray) -> Optional[str]:
    if array.size == 0:
        return "pass an image with at least one pixel"
    if array.ndim == 2:
        return "repeat the grey channel: np.repeat(array[..., None], 3, axis=2)"
    if array.ndim == 4:
        return "pass the images of the batch one by one"
    if array.ndim != 3:
        return "reshape it to (H, W, 3)"
    if array.shape[2] == 3:
        return None
    if array.shape[0] == 3:
        return "transpose it from channels-first: array.transpose(1, 2, 0), or tensor.permute(1, 2, 0)"
    if array.shape[2] == 4:
        return "drop the alpha channel: array[..., :3]"
    if array.shape[2] == 1:
        return "repeat the grey channel: np.repeat(array, 3, axis=2)"
    return "pass three channels, last"


def _dtype_remedy(array: np.ndarray) -> Optional[str]:
    if array.dtype == np.uint8:
        return None
    if array.dtype.kind == "f":
        return "scale it to 0..255, round, and cast to uint8"
    if array.dtype == np.uint16:
        return "scale it to 8 bit: ((array.astype(np.int64) + 128) // 257).astype(np.uint8)"
    if array.dtype.kind == "b":
        return "scale it to 0..255: array.astype(np.uint8) * 255"
    if array.dtype.kind == "O":
        return "cast it to uint8, or pass a list of images if it holds images"
    return "cast it to uint8"
