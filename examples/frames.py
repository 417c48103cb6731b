"""Finds objects in raw frames from another program, and prints one line of JSON for each frame.

ffmpeg -i video.mp4 -f rawvideo -pix_fmt bgr24 - | python frames.py model.onnx 1920x1080
"""

import json
import sys

import numpy as np

from detr_export import Predictor
from detr_export.runtimes import DetrError


def main(model: str, size: str, threshold: float = 0.7) -> None:
    width, height = (int(side) for side in size.split("x"))
    frame = np.empty((height, width, 3), np.uint8)  # the one buffer that all frames go through
    with Predictor.load(model) as predictor, open(sys.stdin.fileno(), "rb") as stream:
        while (count := stream.readinto(frame.data.cast("B"))) == frame.nbytes:
            found = predictor.detect(frame, threshold, color="bgr")
            print(json.dumps(found.to_dict()["detections"]), flush=True)
    if count:
        raise DetrError(f"the last frame has {count} bytes; expected {frame.nbytes} for {size}: is the size right?")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(sys.argv[1], sys.argv[2])
    except DetrError as error:
        sys.exit(str(error))
