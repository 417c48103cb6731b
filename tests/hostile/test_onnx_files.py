"""ONNX files whose inputs and outputs are not those of a DETR, refused when opened; and runs that return something else."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from detr_export.graphs.inspection import inspect_onnx
from detr_export.graphs.reading import load_graph
from detr_export.runtimes.errors import ArtifactError, BackendError, InputError
from detr_export.runtimes.opening import open_session
from detr_export.runtimes.predictor import Predictor
from tests.hostile.onnx_files import BOXES, DOCUMENT, END_TO_END, FLOAT, INT64, LOGITS, PIXELS, UINT8, Declared, detr

UINT8_DOCUMENT = {**DOCUMENT, "input": "uint8"}
IMAGE: dict[str, Declared] = {"image": (UINT8, ["b", "h", "w", 3])}
FOUND = {
    "scores": (np.zeros((1, 4), np.float32), None),
    "labels": (np.zeros((1, 4), np.int64), None),
    "boxes": (np.zeros((1, 4, 4), np.float32), None),
}
MASKS = np.zeros((1, 4, 5, 6), np.float32)

INPUTS: list[tuple[Mapping[str, Declared], Mapping[str, Any], str]] = [
    ({"pixel_values": (FLOAT, ["n"])}, DOCUMENT, r"input pixel_values is float32 \(n\); expected .*batch, channels, height"),
    ({"pixel_values": (FLOAT, [])}, DOCUMENT, "input pixel_values has no shape; expected float32"),
    ({"pixel_values": (FLOAT, None)}, DOCUMENT, "input pixel_values has no shape; expected float32"),
    ({"pixel_values": (FLOAT, ["b", 3, "h"])}, DOCUMENT, r"input pixel_values is float32 \(b, 3, h\)"),
    ({"pixel_values": (FLOAT, ["b", 3, "h", "w", 1])}, DOCUMENT, r"input pixel_values is float32 \(b, 3, h, w, 1\)"),
    ({"pixel_values": (FLOAT, ["b", 0, "h", "w"])}, DOCUMENT, r"input pixel_values is float32 \(b, 0, h, w\)"),
    ({"pixel_values": (FLOAT, ["b", 4, "h", "w"])}, DOCUMENT, "takes images of 4 channels; a Predictor feeds RGB"),
    ({"pixel_values": (FLOAT, ["b", "c", "h", "w"])}, DOCUMENT, "takes images of c channels; a Predictor feeds RGB"),
    ({"pixel_values": (INT64, ["b", 3, "h", "w"])}, DOCUMENT, "input pixel_values is int64 .*; expected float32 or"),
    ({"pixel_values": (TensorProto.BOOL, ["b", 3, "h", "w"])}, DOCUMENT, "input pixel_values is bool .*; expected float32"),
    ({"pixel_values": (TensorProto.INT8, ["b", 3, "h", "w"])}, DOCUMENT, "input pixel_values is int8 .*; expected float32"),
    (
        {"pixel_values": (TensorProto.STRING, ["b", 3, "h", "w"])},
        DOCUMENT,
        r"input pixel_values is tensor\(string\); expected a tensor of float32",
    ),
    (
        {"pixel_values": (TensorProto.BFLOAT16, ["b", 3, "h", "w"])},
        DOCUMENT,
        r"input pixel_values is tensor\(bfloat16\); expected a tensor of float32",
    ),
    (
        {"pixel_values": (TensorProto.COMPLEX64, ["b", 3, "h", "w"])},
        DOCUMENT,
        r"a\.onnx (: input pixel_values is tensor\(complex64\)|cannot be loaded by ONNX Runtime)",
    ),
    ({"x": PIXELS}, DOCUMENT, "is not a DETR: it maps x to logits, pred_boxes; expected pixel_values"),
    ({"pixel_values": PIXELS, "x": (FLOAT, [1])}, DOCUMENT, "is not a DETR: it maps pixel_values, x to"),
    ({}, DOCUMENT, "is not a DETR: it maps  to logits"),
    (
        {"pixel_values": PIXELS, "pixel_mask": (FLOAT, ["b", "h", "w"])},
        DOCUMENT,
        "input pixel_mask is float32 .*; expected",
    ),
    (
        {"pixel_values": PIXELS, "pixel_mask": (TensorProto.STRING, ["b", "h", "w"])},
        DOCUMENT,
        r"input pixel_mask is tensor\(string\)",
    ),
    ({"pixel_values": PIXELS, "pixel_mask": (INT64, ["b"])}, DOCUMENT, r"input pixel_mask is int64 \(b\); expected int64"),
    ({"pixel_values": PIXELS, "pixel_mask": (INT64, None)}, DOCUMENT, "input pixel_mask has no shape; expected int64"),
    (
        {"pixel_values": PIXELS, "pixel_mask": (INT64, ["b", 1, "h", "w"])},
        DOCUMENT,
        r"input pixel_mask is int64 \(b, 1, h, w\); expected int64 or int32 or uint8 or bool \(batch, height, width\)",
    ),
    (
        {"pixel_values": (FLOAT, [2, 3, "h", "w"]), "pixel_mask": (INT64, [3, "h", "w"])},
        DOCUMENT,
        r"input pixel_mask is int64 \(3, h, w\), and batch is 2 in input pixel_values",
    ),
    (
        {"pixel_values": (FLOAT, ["b", 3, 64, "w"]), "pixel_mask": (INT64, ["b", 32, "w"])},
        DOCUMENT,
        "and height is 64 in input pixel_values",
    ),
    ({"pixel_values": PIXELS, "valid_sizes": (FLOAT, ["b", 2])}, DOCUMENT, "takes valid_sizes with float pixel_values"),
    ({"pixel_values": PIXELS, "valid_sizes": (INT64, ["b", 2])}, DOCUMENT, "takes valid_sizes with float pixel_values"),
    (
        {"pixel_values": (UINT8, ["b", "h", "w", 3]), "pixel_mask": (INT64, ["b", "h", "w"])},
        UINT8_DOCUMENT,
        "takes pixel_mask with uint8 pixel_values; expected pixel_mask with float ones, or valid_sizes with uint8 ones",
    ),
    (
        {"pixel_values": (UINT8, ["b", "h", "w", 3]), "valid_sizes": (FLOAT, ["b", 2])},
        UINT8_DOCUMENT,
        r"input valid_sizes is float32 \(b, 2\); expected int64 or int32 \(batch, 2\)",
    ),
    (
        {"pixel_values": (UINT8, ["b", "h", "w", 3]), "valid_sizes": (INT64, ["b", 3])},
        UINT8_DOCUMENT,
        r"input valid_sizes is int64 \(b, 3\); expected int64 or int32 \(batch, 2\)",
    ),
    (
        {"pixel_values": (UINT8, ["b", "h", "w", 3])},
        DOCUMENT,
        "metadata describe another model than it holds: input is 'float', and the graph takes 'uint8'",
    ),
    ({"pixel_values": PIXELS}, UINT8_DOCUMENT, "input is 'uint8', and the graph takes 'float'"),
    ({"pixel_values": PIXELS}, END_TO_END, "input is 'image', and the graph takes 'float'"),
    (
        {"pixel_values": (FLOAT, [1, 3, "h", "w"])},
        {**DOCUMENT, "ranges": {"batch": [2, 4]}},
        "batch is 1 in input pixel_values, and the metadata's ranges say 2 to 4",
    ),
    (
        {"pixel_values": (FLOAT, ["b", 3, 16, "w"])},
        {**DOCUMENT, "ranges": {"height": [32, None]}},
        "height is 16 in input pixel_values, and the metadata's ranges say 32 to any",
    ),
    (
        {"pixel_values": (FLOAT, ["b", 3, "h", 2000])},
        {**DOCUMENT, "ranges": {"width": [32, 1600]}},
        "width is 2000 in input pixel_values, and the metadata's ranges say 32 to 1600",
    ),
]


def refused(file: Path, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        Predictor.load(file, spinning=False)
    assert "\n" not in str(caught.value)
    assert "a.onnx" in str(caught.value) or "channels" in message


@pytest.mark.parametrize(("inputs", "document", "message"), INPUTS)
def test_inputs_that_are_not_those_of_a_detr(
    inputs: Mapping[str, Declared], document: Mapping[str, Any], message: str, tmp_path: Path
) -> None:
    refused(detr(tmp_path / "a.onnx", inputs, metadata=document), message)


OUTPUTS: list[tuple[dict[str, Any], str]] = [
    ({"logits": None}, "is not a DETR: it maps pixel_values to pred_boxes"),
    ({"pred_boxes": None}, "is not a DETR: it maps pixel_values to logits"),
    ({"logits": LOGITS[0]}, r"output logits is float32 \(4, 3\); expected float32 .*batch, queries, classes \+ 1"),
    ({"logits": LOGITS[..., None]}, r"output logits is float32 \(1, 4, 3, 1\)"),
    ({"logits": LOGITS.astype(np.int64)}, r"output logits is int64 .*; expected float32"),
    ({"logits": LOGITS.astype(bool)}, r"output logits is bool .*; expected float32"),
    ({"logits": np.array([["a"]])}, r"output logits is tensor\(string\); expected a tensor of float32"),
    ({"logits": LOGITS[..., :2]}, "logits are of 1 classes and no object, and id2label has 2 classes; expected as many"),
    ({"logits": np.zeros((1, 4, 4), np.float32)}, "logits are of 3 classes and no object, and id2label has 2 classes"),
    ({"logits": LOGITS[:, :3]}, r"output pred_boxes is float32 \(1, 4, 4\), and queries is 3 in output logits"),
    ({"logits": np.zeros((2, 4, 3), np.float32)}, r"pred_boxes is float32 \(1, 4, 4\), and batch is 2 in output logits"),
    ({"logits": LOGITS[:, :0], "pred_boxes": BOXES[:, :0]}, r"output logits is float32 \(1, 0, 3\)"),
    (
        {"logits": np.zeros((1, 20_000, 3), np.float32), "pred_boxes": np.zeros((1, 20_000, 4), np.float32)},
        "the number of queries is 20000; expected at most 10000; if it is right, add --limit queries=N",
    ),
    ({"pred_boxes": BOXES[..., :3]}, r"output pred_boxes is float32 \(1, 4, 3\); expected .*\(batch, queries, 4\)"),
    ({"pred_boxes": BOXES[0]}, r"output pred_boxes is float32 \(4, 4\); expected"),
    ({"pred_boxes": BOXES.astype(np.int32)}, "output pred_boxes is int32 .*; expected float32"),
    ({"pred_masks": MASKS[0]}, r"output pred_masks is float32 \(4, 5, 6\); expected .*mask_height, mask_width"),
    ({"pred_masks": MASKS[:, :3]}, r"output pred_masks is float32 \(1, 3, 5, 6\), and queries is 4 in output logits"),
    ({"pred_masks": MASKS.astype(np.uint8)}, "output pred_masks is uint8 .*; expected float32"),
    ({"cross_attention": MASKS}, r"output cross_attention is float32 \(1, 4, 5, 6\); expected .*heads, queries"),
    ({"cross_attention": MASKS[:, None, :2]}, "output cross_attention is .*, and queries is 4 in output logits"),
]


@pytest.mark.parametrize(("changes", "message"), OUTPUTS)
def test_outputs_that_are_not_those_of_a_detr(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    values = {"logits": LOGITS, "pred_boxes": BOXES, **changes}
    outputs = {name: (value, None) for name, value in values.items() if value is not None}
    refused(detr(tmp_path / "a.onnx", outputs=outputs), message)


ENDS: list[tuple[dict[str, Any], str]] = [
    ({"image": (FLOAT, ["b", "h", "w", 3])}, r"input image is float32 .*; expected uint8 \(batch, height, width, 3\)"),
    ({"image": (UINT8, ["b", 3, "h", "w"])}, r"input image is uint8 \(b, 3, h, w\)|takes images of w channels"),
    ({"image": (UINT8, ["h", "w", 3])}, r"input image is uint8 \(h, w, 3\); expected uint8"),
    ({"image": (UINT8, ["b", "h", "w", 4])}, r"input image is uint8 \(b, h, w, 4\); expected uint8"),
    ({"image": (UINT8, None)}, "input image has no shape; expected uint8"),
    ({"scores": np.zeros((1, 4), np.int64)}, "output scores is int64 .*; expected float32"),
    ({"scores": np.zeros(4, np.float32)}, r"output scores is float32 \(4\); expected"),
    ({"labels": np.zeros((1, 4), np.float32)}, "output labels is float32 .*; expected int64 or int32"),
    ({"labels": np.zeros((1, 3), np.int64)}, r"output labels is int64 \(1, 3\), and queries is 4 in output scores"),
    ({"boxes": np.zeros((1, 4, 5), np.float32)}, r"output boxes is float32 \(1, 4, 5\); expected"),
    ({"boxes": np.zeros((2, 4, 4), np.float32)}, r"output boxes is float32 \(2, 4, 4\), and batch is 1"),
    ({"masks": np.zeros((1, 4, 5), np.float32)}, r"output masks is float32 \(1, 4, 5\); expected"),
]


@pytest.mark.parametrize(("changes", "message"), ENDS)
def test_end_to_end_files_that_are_none(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    inputs = {name: changes.get(name, declared) for name, declared in IMAGE.items()}
    outputs = {**FOUND, **{name: (value, None) for name, value in changes.items() if name not in inputs}}
    refused(detr(tmp_path / "a.onnx", inputs, outputs, END_TO_END), message)


NOTHING: dict[str, tuple[int, None]] = dict.fromkeys(("logits", "pred_boxes"), (FLOAT, None))
RETURNED: list[tuple[dict[str, np.ndarray], str]] = [
    ({"logits": np.float32(1)}, r"the run's output logits is float32 \(\); expected"),
    ({"logits": LOGITS[..., :1]}, r"the run's output logits is float32 \(1, 4, 1\), and classes \+ 1 is 3 in id2label"),
    ({"logits": np.zeros((1, 4, 9), np.float32)}, r"the run's output logits is .*, and classes \+ 1 is 3 in id2label"),
    ({"logits": np.zeros((2, 4, 3), np.float32)}, r"the run's output logits is .*, and batch is 1 in the input"),
    ({"logits": LOGITS[:0]}, r"the run's output logits is float32 \(0, 4, 3\), and batch is 1 in the input"),
    ({"pred_boxes": BOXES[:, :2]}, r"the run's output pred_boxes is .*, and queries is 4 in the run's output logits"),
    ({"pred_boxes": BOXES[..., :3]}, r"the run's output pred_boxes is float32 \(1, 4, 3\); expected"),
]


@pytest.mark.parametrize(("changes", "message"), RETURNED)
def test_what_a_run_returns_is_looked_at(changes: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    """The file declares no shapes, so it opens."""
    values = {"logits": LOGITS, "pred_boxes": BOXES, **changes}
    outputs: dict[str, tuple[np.ndarray, Declared | None]] = {
        name: (np.asarray(value), NOTHING[name]) for name, value in values.items()
    }
    file = detr(tmp_path / "a.onnx", outputs=outputs)
    with (
        Predictor.load(strip_shapes(file), spinning=False) as predictor,
        pytest.raises(ArtifactError, match=rf"a\.onnx: {message}") as caught,
    ):
        predictor.detect(np.zeros((40, 50, 3), np.uint8))
    assert "\n" not in str(caught.value)


def strip_shapes(file: Path) -> Path:
    """Lets the outputs depend on the input, or ONNX Runtime would find their shapes out on its own."""
    model = onnx.load(str(file))
    for node in model.graph.node:
        if node.op_type == "Identity":
            shape = f"{node.output[0]}_shape"
            node.op_type = "Reshape"
            node.input.append(shape)
            value = next(item for item in model.graph.node if item.output[0] == node.input[0]).attribute[0].t
            sizes = helper.make_tensor(f"{shape}_value", TensorProto.INT64, [len(value.dims)], list(value.dims))
            # The sizes, plus zeros that ONNX Runtime does not know to be zeros: 0 * the sum of the input
            model.graph.node.insert(0, helper.make_node("Constant", [], [f"{shape}_known"], value=sizes))
            model.graph.node.insert(1, helper.make_node("ReduceMin", ["pixel_values"], [f"{shape}_some"], keepdims=0))
            model.graph.node.insert(2, helper.make_node("Sign", [f"{shape}_some"], [f"{shape}_sign"]))
            model.graph.node.insert(3, helper.make_node("Cast", [f"{shape}_sign"], [f"{shape}_whole"], to=TensorProto.INT64))
            model.graph.node.insert(4, helper.make_node("Sub", [f"{shape}_whole", f"{shape}_whole"], [f"{shape}_zero"]))
            model.graph.node.insert(5, helper.make_node("Add", [f"{shape}_known", f"{shape}_zero"], [shape]))
            node.attribute.append(helper.make_attribute("allowzero", 1))
    onnx.save(model, str(file))
    return file


def test_the_files_that_were_changed_open_and_run(tmp_path: Path) -> None:
    """Or the cases above would show nothing."""
    picture = np.zeros((40, 50, 3), np.uint8)
    for name, inputs, outputs, document in (
        ("plain", None, None, DOCUMENT),
        ("mask", {"pixel_values": PIXELS, "pixel_mask": (INT64, ["b", "h", "w"])}, None, DOCUMENT),
        ("bool", {"pixel_values": PIXELS, "pixel_mask": (TensorProto.BOOL, ["b", "h", "w"])}, None, DOCUMENT),
        ("none", {"pixel_values": (FLOAT, [None, 3, None, None])}, None, DOCUMENT),
        ("uint8", {"pixel_values": (UINT8, ["b", "h", "w", 3]), "valid_sizes": (INT64, ["b", 2])}, None, UINT8_DOCUMENT),
        ("end", IMAGE, FOUND, END_TO_END),
        ("segments", None, {"logits": (LOGITS, None), "pred_boxes": (BOXES, None), "pred_masks": (MASKS, None)}, DOCUMENT),
    ):
        with Predictor.load(detr(tmp_path / f"{name}.onnx", inputs, outputs, document), spinning=False) as predictor:  # type: ignore[arg-type]
            assert predictor.detect(picture, threshold=0.9).scores.shape == (0,), name
    outputs = {"logits": (LOGITS, NOTHING["logits"]), "pred_boxes": (BOXES, NOTHING["pred_boxes"])}
    with Predictor.load(strip_shapes(detr(tmp_path / "undeclared.onnx", outputs=outputs)), spinning=False) as predictor:
        assert len(predictor.detect(picture, threshold=0.1).scores) == 4


def sequence(file: Path, kind: str) -> Path:
    """A file with another output that is no tensor."""
    detr(file)
    model = onnx.load(str(file))
    if kind == "sequence":
        model.graph.node.append(helper.make_node("SequenceConstruct", ["pixel_values"], ["more"]))
        made = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None))
    else:
        model.graph.node.append(helper.make_node("Optional", ["pixel_values"], ["more"]))
        made = helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, None))
    model.graph.output.append(helper.make_value_info("more", made))
    onnx.save(model, str(file))
    return file


@pytest.mark.parametrize("kind", ["sequence", "optional"])
def test_outputs_that_are_no_tensors(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"a\.onnx: output more is (seq|optional)\(.*; expected a tensor of float32"):
        open_session(sequence(tmp_path / "a.onnx", kind))


# ---- files that are no ONNX files ---------------------------------------------------------------------------------------


def _pickle() -> bytes:
    return pickle.dumps({"weights": [1, 2, 3]})


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("data.pkl", b"x")
    return stream.getvalue()


GARBAGE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "zeros": lambda: bytes(1000),
    "text": lambda: b"hello",
    "json": lambda: b'{"a": 1}',
    "gzip": lambda: gzip.compress(b"hello" * 100),
    "pickle": _pickle,
    "zip": _zip,
    "LFS pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "HTML": lambda: b"<!DOCTYPE html><html><body>404</body></html>",
    "a long length": lambda: b"\x3a\xff\xff\xff\xff\x0f",
    "a length of 2^64": lambda: b"\x3a" + b"\xff" * 9 + b"\x01",
    "an endless integer": lambda: b"\x08" + b"\xff" * 100,
    "a field without a number": lambda: b"\x00\x01",
    "a group": lambda: b"\x0b\x0c",
    "random": lambda: np.random.default_rng(0).bytes(4096),
}


@pytest.mark.parametrize("name", list(GARBAGE))
@pytest.mark.parametrize("opened", [open_session, inspect_onnx, load_graph], ids=["open", "inspect", "load"])
def test_files_that_are_no_onnx_files(name: str, opened: Callable[[Path], Any], tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(GARBAGE[name]())
    with pytest.raises(ArtifactError, match=r"a\.onnx (cannot be loaded by|is not an ONNX model)") as caught:
        opened(tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("opened", [Predictor.load, load_graph], ids=["open", "load"])
def test_files_that_are_cut_off(share: float, opened: Callable[[Path], Any], tmp_path: Path) -> None:
    content = detr(tmp_path / "a.onnx").read_bytes()
    (tmp_path / "a.onnx").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ArtifactError, match=r"a\.onnx") as caught:
        opened(tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)


def _folder(file: Path) -> None:
    file.mkdir()


def _pipe(file: Path) -> None:
    os.mkfifo(file)


def _socket(file: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        folder = os.getcwd()
        os.chdir(file.parent)  # a socket's path has at most 107 bytes
        try:
            made.bind(file.name)
        finally:
            os.chdir(folder)


def _device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def _pipe_by_link(file: Path) -> None:
    os.mkfifo(file.with_name("pipe"))
    file.symlink_to("pipe")


def _loop(file: Path) -> None:
    file.symlink_to(file.name)


PLACES = [_folder, _pipe, _socket, _device, _pipe_by_link, _loop]


@pytest.mark.skipif(os.name != "posix", reason="pipes with names and devices")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", PLACES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("opened", [open_session, inspect_onnx, load_graph], ids=["open", "inspect", "load"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(
    make: Callable[[Path], None], opened: Callable[[Path], Any], tmp_path: Path
) -> None:
    make(tmp_path / "a.onnx")
    with pytest.raises(ArtifactError, match=r"a\.onnx (is not a regular file: it is a|cannot be read: )") as caught:
        opened(tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)


# ---- weights in other files ---------------------------------------------------------------------------------------------


def external(file: Path, inside: str = "initializer", **entries: str) -> Path:
    """A file with a tensor whose values lie elsewhere."""
    detr(file)
    model = onnx.load(str(file))
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    if inside == "initializer":
        model.graph.initializer.append(tensor)
    else:
        branch = helper.make_graph(
            [helper.make_node("Constant", [], ["c"], value=tensor)],
            "b",
            [],
            [helper.make_tensor_value_info("c", FLOAT, [2])],
        )
        go = helper.make_node("Constant", [], ["go"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True]))
        model.graph.node.extend([go, helper.make_node("If", ["go"], ["i"], then_branch=branch, else_branch=branch)])
    file.write_bytes(model.SerializeToString())
    return file


EXTERNAL: list[tuple[dict[str, str], str]] = [
    ({"location": "/etc/passwd"}, "in '/etc/passwd'; expected a file in the folder of the ONNX file"),
    ({"location": "../w.bin"}, r"in '\.\./w.bin'; expected a file in the folder"),
    ({"location": "sub/../../w.bin"}, r"in 'sub/\.\./\.\./w.bin'; expected a file in the folder"),
    ({"location": "..\\w.bin"}, "expected a file in the folder"),
    ({"location": "C:\\w.bin"}, "expected a file in the folder"),
    ({"location": ""}, "in ''; expected a file in the folder"),
    ({"offset": "0"}, "in ''; expected a file in the folder"),
    ({"location": "missing.bin"}, r"in 'missing.bin': .*missing.bin does not exist or is not a file; copy it beside"),
    ({"location": "*/_ORT_MEM_ADDR_/*", "offset": "1", "length": "8"}, "does not exist or is not a file"),
    ({"location": "a\0b"}, "cannot be read: embedded null byte"),
    ({"location": "x" * 5000}, "cannot be read: File name too long"),
    ({"location": "folder"}, "folder is not a regular file: it is a folder"),
    ({"location": "short.bin", "length": "8"}, "in 'short.bin', which has 4 bytes; expected at least 8; copy it again"),
    ({"location": "short.bin", "offset": "100"}, "which has 4 bytes; expected at least 100"),
    ({"location": "short.bin", "offset": "-8"}, "and their offset is '-8'; expected a number of bytes"),
    ({"location": "short.bin", "length": "9" * 5000}, r"and their length is '999.*; expected a number of bytes"),
    ({"location": "short.bin", "offset": "1e3"}, "and their offset is '1e3'; expected a number of bytes"),
    ({"location": "short.bin", "offset": "\u0663"}, "and their offset is .*; expected a number of bytes"),
]


@pytest.mark.parametrize(("entries", "message"), EXTERNAL)
@pytest.mark.parametrize("inside", ["initializer", "branch"])
def test_weights_that_lie_where_they_must_not(entries: dict[str, str], message: str, inside: str, tmp_path: Path) -> None:
    (tmp_path / "short.bin").write_bytes(bytes(4))
    (tmp_path / "folder").mkdir()
    (tmp_path / "model").mkdir()
    file = external(tmp_path / "a.onnx", inside, **entries)
    for opened in (open_session, load_graph):
        with pytest.raises(ArtifactError, match=rf"a\.onnx: the weights of 'w' are .*{message}"):
            opened(file)


@pytest.mark.skipif(os.name != "posix", reason="pipes with names and devices")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("device", ["openvino", "cpu"])
def test_weights_in_a_pipe_are_not_waited_for(device: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.bin")
    with pytest.raises(ArtifactError, match=r"w.bin is not a regular file: it is a pipe"):
        open_session(external(tmp_path / "a.onnx", location="w.bin"), device)


@pytest.mark.parametrize("dims", [[2**40, 2**40], [2**62] * 1000, [-1]], ids=["2^80", "2^62000", "-1"])
def test_sizes_of_weights_that_no_memory_has(dims: list[int], tmp_path: Path) -> None:
    model = onnx.load(str(detr(tmp_path / "a.onnx")))
    model.graph.initializer.append(TensorProto(name="w", data_type=FLOAT, dims=dims))
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match=r"a\.onnx: the tensor 'w' has a size of .*; expected what fits memory"):
        inspect_onnx(tmp_path / "a.onnx")


@pytest.mark.parametrize("threads", [0, -1, 100_000, 2**70, True, 1.5])
@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_threads_are_bounded_by_the_cores(threads: Any, device: str, tmp_path: Path) -> None:
    file = detr(tmp_path / "a.onnx")
    with pytest.raises(InputError, match=r"threads is .*; expected 1 to \d+, the cores that this process may use"):
        open_session(file, device, threads=threads)


def test_a_run_that_fails_prints_nothing_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nodes = [
        helper.make_node("Constant", [], ["seven"], value=helper.make_tensor("s", INT64, [2], [7, -1])),
        helper.make_node("Reshape", ["pixel_values", "seven"], ["logits"]),
        helper.make_node("Reshape", ["pixel_values", "seven"], ["pred_boxes"]),
    ]
    pixels = helper.make_tensor_value_info("pixel_values", *PIXELS)
    outputs = [helper.make_tensor_value_info(name, FLOAT, None) for name in ("logits", "pred_boxes")]
    model = helper.make_model(helper.make_graph(nodes, "g", [pixels], outputs), opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with (
        open_session(tmp_path / "a.onnx", spinning=False) as session,
        pytest.raises(BackendError, match=r"ONNX Runtime failed: .*Reshape"),
    ):
        session.run({"pixel_values": np.zeros((1, 3, 8, 5), np.float32)})
    assert capfd.readouterr().err == ""


def test_telemetry_is_off() -> None:
    assert os.environ["ORT_DISABLE_TELEMETRY"]
    code = "import os; assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'"
    place = "import detr_export.runtimes.backends.ort.session, subprocess, sys\n"
    program = f"{place}subprocess.run([sys.executable, '-c', {code!r}], check=True)"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
