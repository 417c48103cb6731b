"""Writes small ONNX files that look like end-to-end exports, and some that are wrong in one thing, for the tests.

The right ones say that there are three objects. What they say of an image depends on its pixels, so that a test sees whether
all of them arrived, in the right order:

    scores  0.9, 0.6, 0.3
    labels  1, 0, 7           of which 7 has no name
    boxes   (sum of all bytes + k, the first byte + k, width + k, height + k) for object k
    masks   0.25, 0.5, 0.75 in the first row and zeros in the second, plus k; panoptic.onnx alone has them

Usage: make_fake_model.py FOLDER
"""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

METADATA = {
    "format_version": 1,
    "task": "detection",
    "input": "image",
    "id2label": {"0": "cat", "1": "traffic light"},
    "end_to_end": {"color": "rgb", "resize": "matmul", "top_k": 3},
    "ranges": {"batch": [1, None], "height": [1, 16384], "width": [1, 16384]},
}
SCORES = np.array([[0.9, 0.6, 0.3]], np.float32)
LABELS = np.array([[1, 0, 7]], np.int64)
MASK = np.array([[0.25, 0.5, 0.75], [0, 0, 0]], np.float32)


def model(masks: bool = False, image: str = "image", box_size: int = 4, labels: int = TensorProto.INT64) -> onnx.ModelProto:
    """A file without metadata. The last three arguments make it a wrong one."""
    steps = np.arange(3, dtype=np.float32)
    constants = {
        "sides": np.array([1, 2, 3], np.int64),
        "one": np.array([1], np.int64),
        "zeros": np.zeros(3, np.int64),
        "ones": np.ones(3, np.int64),
        "first_axis": np.array([1, 2, 3], np.int64),
        "score": SCORES,
        "label": LABELS,
        "step": np.broadcast_to(steps[None, :, None], (1, 3, box_size)).copy(),
        "mask": (MASK[None, None] + steps[None, :, None, None]).astype(np.float32),
        "column": np.array([-1, 1, 1], np.int64),
        "mask_column": np.array([-1, 1, 1, 1], np.int64),
    }

    def node(kind: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
        return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)

    nodes = [
        node("Cast", image, "pixels", to=TensorProto.FLOAT),
        node("ReduceSum", "pixels sides", "sum", keepdims=0),
        node("Reshape", "sum column", "sums"),  # (batch, 1, 1)
        node("Sub", "sums sums", "nothing"),
        node("Slice", "pixels zeros ones first_axis", "corner"),  # (batch, 1, 1, 1)
        node("Reshape", "corner column", "first"),
        node("Shape", image, "shape"),
        node("Gather", "shape width_index", "width_int"),
        node("Gather", "shape height_index", "height_int"),
        node("Cast", "width_int", "width", to=TensorProto.FLOAT),
        node("Cast", "height_int", "height", to=TensorProto.FLOAT),
        node("Add", "nothing width", "widths"),
        node("Add", "nothing height", "heights"),
        node("Concat", "sums first widths heights" + " sums" * (box_size - 4), "box", axis=2),
        node("Add", "box step", "boxes"),
        node("Squeeze", "nothing one", "nothing_2d"),  # (batch, 1)
        node("Add", "score nothing_2d", "scores"),
        node("Cast", "nothing_2d", "nothing_int", to=TensorProto.INT64),
        node("Add", "label nothing_int", "labels_int"),
        node("Cast", "labels_int", "labels", to=labels),
    ]
    constants["width_index"], constants["height_index"] = np.array(2), np.array(1)
    outputs = [
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3]),
        helper.make_tensor_value_info("labels", labels, ["batch", 3]),
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["batch", 3, box_size]),
    ]
    if masks:
        nodes += [node("Reshape", "sum mask_column", "sums_4d"), node("Sub", "sums_4d sums_4d", "nothing_4d")]
        nodes.append(node("Add", "mask nothing_4d", "masks"))
        outputs.append(helper.make_tensor_value_info("masks", TensorProto.FLOAT, ["batch", 3, 2, 3]))
    graph = helper.make_graph(
        nodes,
        "fake",
        [helper.make_tensor_value_info(image, TensorProto.UINT8, ["batch", "height", "width", 3])],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


def write(path: Path, made: onnx.ModelProto, metadata: object) -> None:
    """Adds metadata, a document or a text or None, and writes the file."""
    if metadata is not None:
        text = metadata if isinstance(metadata, str) else json.dumps(metadata)
        helper.set_model_props(made, {"detr_export": text})
    onnx.save(made, path)


def changed(**values: object) -> dict:
    """The metadata with other values; None removes one."""
    document = {**copy.deepcopy(METADATA), **values}
    return {name: value for name, value in document.items() if value is not None}


def write_golden(folder: Path, name: str, shift: float) -> None:
    """A golden folder for right.onnx, whose boxes are wrong by `shift` pixels."""
    folder.mkdir()
    image = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
    row = np.stack([image.reshape(2, -1).sum(1), image[:, 0, 0, 0], [7, 7], [5, 5]], 1).astype(np.float32)
    arrays = {
        "inputs": {"image": image},
        "outputs": {
            "scores": np.repeat(SCORES, 2, 0),
            "labels": np.repeat(LABELS, 2, 0),
            "boxes": row[:, None] + np.arange(3, dtype=np.float32)[None, :, None] + np.float32(shift),
        },
    }
    case: dict = {"name": "noise"}
    for group, items in arrays.items():
        case[group] = {}
        for key, value in items.items():
            file = f"noise.{key}.bin"
            (folder / file).write_bytes(value.tobytes())
            case[group][key] = {"file": file, "dtype": str(value.dtype), "shape": list(value.shape)}
    index = {"format_version": 1, "model": name, "kind": "end-to-end"}
    tolerances = {"scores": 0.002, "boxes": 0.5}
    (folder / "index.json").write_text(json.dumps({**index, "tolerances": tolerances, "cases": [case]}))


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    write(folder / "right.onnx", model(), METADATA)
    write(folder / "panoptic.onnx", model(masks=True), METADATA)
    write(folder / "bgr.onnx", model(), changed(end_to_end={"color": "bgr", "resize": "matmul", "top_k": 3}))
    write(folder / "narrow.onnx", model(), changed(ranges={"batch": [1, 2], "height": [2, 8], "width": [3, 8]}))
    write(folder / "no-ranges.onnx", model(), changed(ranges=None))

    write(folder / "no-metadata.onnx", model(), None)
    write(folder / "not-json.onnx", model(), '{"format_version": 1, ')
    write(folder / "not-an-object.onnx", model(), "[1]")
    write(folder / "no-names.onnx", model(), changed(id2label=None))
    write(folder / "bad-label.onnx", model(), changed(id2label={"first": "cat"}))
    write(folder / "bad-color.onnx", model(), changed(end_to_end={"color": "grb", "resize": "matmul", "top_k": 3}))
    write(folder / "newer.onnx", model(), changed(format_version=2))
    write(folder / "prepared.onnx", model(image="pixel_values"), changed(input="float", end_to_end=None))
    write(folder / "old.onnx", model(image="pixel_values"), changed(input=None, end_to_end=None))
    write(folder / "other-input.onnx", model(image="picture"), METADATA)
    write(folder / "other-labels.onnx", model(labels=TensorProto.INT32), METADATA)
    write(folder / "other-boxes.onnx", model(box_size=5), METADATA)
    (folder / "text.onnx").write_text("This is not an ONNX file.\n")
    (folder / "empty.onnx").touch()
    (folder / "picture.ppm").write_bytes(b"P6\n# a comment\n4 1\n255\n" + bytes(range(12)))

    write_golden(folder / "golden", "right.onnx", 0)
    write_golden(folder / "wrong-golden", "right.onnx", 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
