"""Sends a picture to a model that `detr-export triton` wrote, and prints what the server found. It needs tritonclient[grpc].

python triton_client.py localhost:8001 NAME picture.jpg 0.7
"""

import json
import sys

import numpy as np
import tritonclient.grpc as triton
from PIL import Image, ImageOps


def main(address: str, model: str, file: str, threshold: float = 0.5) -> None:
    with triton.InferenceServerClient(address) as server, Image.open(file) as opened:
        picture = np.array(ImageOps.exif_transpose(opened).convert("RGB"))[np.newaxis]
        config = server.get_model_config(model).config
        names = json.loads(config.parameters["id2label"].string_value)
        inputs = [triton.InferInput("image", picture.shape, "UINT8").set_data_from_numpy(picture)]
        if any(item.name == "threshold" for item in config.input):  # an end-to-end file has none
            lowest = np.array([[threshold]], np.float32)
            inputs.append(triton.InferInput("threshold", lowest.shape, "FP32").set_data_from_numpy(lowest))
        answer = server.infer(model, inputs)
        for label, score, box in zip(*(answer.as_numpy(name)[0] for name in ("labels", "scores", "boxes")), strict=True):
            if score > threshold:
                print(names[str(label)], f"{score:.6f}", *(f"{side:.6g}" for side in box))


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:4], *map(float, sys.argv[4:]))
    except triton.InferenceServerException as error:
        sys.exit(str(error))
