"""Compares what the example program prints for golden pictures with what Python's Predictor finds in them.

Usage: equals_python.py PROGRAM GOLDEN_FOLDER MODEL.onnx
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from detr_export import Predictor
from detr_export.verification.golden.reading import read_golden

THRESHOLD = 0.1
DIGITS = 1e-5  # the program prints six


def main(program: str, folder: str, model: str) -> None:
    pictures = [image for case in read_golden(folder).cases for image in case.inputs["image"]]
    compared = 0
    with Predictor.load(model) as predictor, tempfile.TemporaryDirectory() as scratch:
        for picture in pictures:
            file = Path(scratch) / "picture.ppm"
            Image.fromarray(picture).save(file)
            found = predictor.detect(picture, THRESHOLD, clip=False)
            printed = subprocess.run([program, model, str(file), str(THRESHOLD)], capture_output=True, text=True, check=True)
            lines = [line.rsplit(" ", 5) for line in printed.stdout.splitlines()]
            assert [line[0] for line in lines] == list(found.names), (picture.shape, printed.stdout, found.names)
            numbers = np.array([[float(number) for number in line[1:]] for line in lines]).reshape(-1, 5)
            expected = np.column_stack([found.scores, found.boxes])
            assert np.allclose(numbers, expected, rtol=DIGITS, atol=DIGITS), np.abs(numbers - expected).max()
            compared += len(found)
    assert compared > len(pictures)
    print(f"{compared} detections in {len(pictures)} pictures are those of Python")


if __name__ == "__main__":
    main(*sys.argv[1:])
