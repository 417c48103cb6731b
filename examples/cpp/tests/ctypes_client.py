"""Calls libdetr.so from Python with ctypes alone, as a language without a C++ compiler would, from several threads.

Usage: ctypes_client.py LIBRARY FOLDER_OF_FAKES
"""

import ctypes
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

OK, ERROR_FILE, ERROR_INPUT = 0, 1, 2
EXPORTS = {"detr_open", "detr_close", "detr_detect", "detr_results_get", "detr_results_free", "detr_last_error"}


class Image(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_char_p),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("channels", ctypes.c_int32),
        ("color", ctypes.c_int32),
        ("row_stride", ctypes.c_size_t),
    ]


class Detection(ctypes.Structure):
    _fields_ = [
        ("label", ctypes.c_int64),
        ("name", ctypes.c_char_p),
        ("score", ctypes.c_float),
        ("x_min", ctypes.c_float),
        ("y_min", ctypes.c_float),
        ("x_max", ctypes.c_float),
        ("y_max", ctypes.c_float),
        ("mask_height", ctypes.c_int32),
        ("mask_width", ctypes.c_int32),
        ("mask", ctypes.POINTER(ctypes.c_float)),
    ]


def main(library_path: str, folder: str) -> None:
    # The library shows its interface and nothing else
    symbols = subprocess.run(["nm", "-D", "--defined-only", library_path], capture_output=True, text=True, check=True)
    exported = {line.split()[-1] for line in symbols.stdout.splitlines()}
    assert exported == EXPORTS, exported

    library = ctypes.CDLL(library_path)
    library.detr_results_get.restype = ctypes.POINTER(Detection)
    library.detr_last_error.restype = ctypes.c_char_p
    model = ctypes.c_void_p()
    path = f"{folder}/right.onnx".encode()
    assert library.detr_open(path, 1, 1, ctypes.byref(model)) == OK, library.detr_last_error()

    def detect(first: int) -> None:
        pixels = bytes([first, *range(1, 12)])  # 2 x 2 pixels
        image = Image(pixels, 2, 2, 3, 0, 0)
        results, count = ctypes.c_void_p(), ctypes.c_size_t()
        status = library.detr_detect(
            model, ctypes.byref(image), ctypes.c_size_t(1), ctypes.c_float(0.5), ctypes.byref(results)
        )
        assert status == OK, library.detr_last_error()
        found = library.detr_results_get(results, ctypes.c_size_t(0), ctypes.byref(count))
        assert count.value == 2
        assert (found[0].label, found[0].name, found[1].name) == (1, b"traffic light", b"cat")
        assert (found[0].x_min, found[0].y_min, found[0].x_max, found[1].y_max) == (first + 66, first, 2, 3)
        assert not found[0].mask
        library.detr_results_free(results)

        # Each thread has its own error
        image.channels = first + 4
        results = ctypes.c_void_p()
        threshold = ctypes.c_float(0.5)
        assert (
            library.detr_detect(model, ctypes.byref(image), ctypes.c_size_t(1), threshold, ctypes.byref(results))
            == ERROR_INPUT
        )
        assert f"{first + 4} channels".encode() in library.detr_last_error(), library.detr_last_error()

    with ThreadPoolExecutor(4) as threads:
        assert len(list(threads.map(detect, range(60)))) == 60
    library.detr_close(model)
    assert library.detr_open(b"missing.onnx", 1, 1, ctypes.byref(model)) == ERROR_FILE
    assert b"missing.onnx" in library.detr_last_error()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
