"""What is said of ONNX files: ours, others', and damaged ones."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.export import ExportOptions, export_onnx
from detr_export.graphs.inspection import inspect_onnx
from detr_export.runtimes.errors import ArtifactError
from detr_export.runtimes.metadata import METADATA_KEY
from detr_export.runtimes.session import TensorSpec
from tests import models


def foreign(path: Path, **properties: str) -> Path:
    """A model of one addition, with a weight in a file beside it and dimensions without names."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 3]) for name in "xy")
    weight = numpy_helper.from_array(np.arange(3, dtype=np.float32), "w")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, properties)
    onnx.save_model(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_our_file(tiny_onnx: Path, tiny_checkpoint: Path) -> None:
    found = inspect_onnx(tiny_onnx)
    assert found.path == str(tiny_onnx)
    assert found.size_bytes == tiny_onnx.stat().st_size
    assert found.sha256 == hashlib.sha256(tiny_onnx.read_bytes()).hexdigest()
    assert found.producer.startswith("detr-export ")
    assert found.opset == 18
    assert found.inputs == (
        TensorSpec("pixel_values", "float32", ("batch", 3, "height", "width")),
        TensorSpec("pixel_mask", "int64", ("batch", "height", "width")),
    )
    assert [spec.name for spec in found.outputs] == ["logits", "pred_boxes"]
    assert [spec.shape[1:] for spec in found.outputs] == [(9, 6), (9, 4)]
    weights = sum(value.numel() for value in load_file(tiny_checkpoint / "model.safetensors").values())
    assert found.parameters is not None
    assert found.operators is not None
    assert 0.9 * weights < found.parameters < 1.1 * weights  # batch norms are folded, some constants added
    assert found.operators["LayerNormalization"] == 10
    assert list(found.operators.values()) == sorted(found.operators.values(), reverse=True)
    assert found.external_data == ()
    assert found.metadata is not None
    assert found.metadata.id2label == models.LABELS
    summary = found.summary()
    for part in ("opset 18", "detection, 5 classes, fp32", "batch 1 to any", str(tiny_checkpoint), "parity     logits"):
        assert part in summary
    document = json.loads(json.dumps(found.to_dict()))
    assert document["inputs"][0] == {"name": "pixel_values", "dtype": "float32", "shape": ["batch", 3, "height", "width"]}


@pytest.mark.parametrize(
    ("changes", "input_", "line"),
    [
        ({}, "float", "times 0.00392157, minus (0.485, 0.456, 0.406), over (0.229, 0.224, 0.225), by the processor"),
        (
            {"do_rescale": False, "image_mean": [1, 2.5, 3]},
            "uint8",
            "minus (1, 2.5, 3), over (0.229, 0.224, 0.225), in the graph",
        ),
        ({"do_normalize": False, "rescale_factor": 0.5}, "float", "times 0.5, by the processor"),
        ({"do_normalize": False, "do_rescale": False}, "float", "as they are"),
    ],
)
def test_it_says_how_pixels_are_scaled(changes: dict[str, Any], input_: str, line: str, tiny_onnx: Path) -> None:
    found = inspect_onnx(tiny_onnx)
    assert found.metadata is not None
    about = replace(found.metadata, input=input_, processor={**found.metadata.processor, **changes})
    assert f"\n  values     {line}\n" in replace(found, metadata=about).summary()


def test_a_file_of_someone_else(tmp_path: Path) -> None:
    found = inspect_onnx(foreign(tmp_path / "a.onnx"))
    assert found.inputs == (TensorSpec("x", "float32", ("?", 3)),)
    assert found.parameters == 3
    assert found.external_data == ("weights.bin",)
    assert found.metadata is None
    assert "external   weights.bin" in found.summary()
    assert "metadata   none: detr-export did not make this file" in found.summary()
    json.dumps(found.to_dict())


def test_without_onnx(tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime reads the same of our files, but for what is in the graph; and less of other tools' files."""
    full, other = inspect_onnx(tiny_onnx), inspect_onnx(foreign(tmp_path / "a.onnx"))
    monkeypatch.setitem(sys.modules, "onnx", None)
    unread: dict[str, Any] = {"parameters": None, "operators": None, "external_data": None}
    assert inspect_onnx(tiny_onnx) == replace(full, producer="detr-export", **unread)
    summary = inspect_onnx(tiny_onnx).summary()
    assert "operators  not read: they need onnx" in summary
    assert "parity     logits" in summary
    found = inspect_onnx(tmp_path / "a.onnx")
    assert found == replace(other, producer="", opset=None, **unread)
    assert "opset unknown, by unknown" in found.summary()
    (tmp_path / "b.onnx").write_bytes(b"hello")
    with pytest.raises(ArtifactError, match=r"b.onnx cannot be loaded by ONNX Runtime"):
        inspect_onnx(tmp_path / "b.onnx")


def test_missing_external_data_is_no_obstacle(tmp_path: Path) -> None:
    file = foreign(tmp_path / "a.onnx")
    (tmp_path / "weights.bin").unlink()
    assert inspect_onnx(file).external_data == ("weights.bin",)


def test_unverified(tmp_path: Path) -> None:
    text = '{"format_version": 1, "task": "detection", "id2label": {}, "processor": {}, "pixel_mask": true, "source": {}}'
    summary = inspect_onnx(foreign(tmp_path / "a.onnx", **{METADATA_KEY: text})).summary()
    assert "parity     not verified" in summary
    assert "detection, 0 classes" in summary


def test_damaged_metadata_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"a.onnx: the file's metadata is not JSON"):
        inspect_onnx(foreign(tmp_path / "a.onnx", **{METADATA_KEY: "{"}))


@pytest.mark.parametrize(
    "content", [b"", b"hello world", b"\x00" * 100, b"{}", b"version https://git-lfs.github.com/spec/v1\n", b"\xff" * 9]
)
@pytest.mark.parametrize("name", ["a.onnx", "a.json", "a.textproto", "a"])
def test_refuses_what_is_no_model(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name} is not an ONNX model") as caught:
        inspect_onnx(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_refuses_truncated_models(tiny_onnx: Path, tmp_path: Path) -> None:
    whole = tiny_onnx.read_bytes()
    for length in (10, 1000, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.onnx").write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"a.onnx is not an ONNX model"):
            inspect_onnx(tmp_path / "a.onnx")


@pytest.mark.parametrize("name", ["nothing.onnx", "."])
def test_refuses_what_is_no_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is not a (regular )?file"):
        inspect_onnx(tmp_path / name)


def test_an_end_to_end_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions(verify=False, simplify=False, end_to_end=True, color="bgr", top_k=4)
    found = inspect_onnx(export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "whole.onnx", options).path)
    summary = found.summary()
    assert "input      image uint8 (batch, height, width, 3)" in summary
    assert "end to end BGR images of any size, resized by matmul, to the best 4 detections in pixels" in summary
    assert "height 1 to 16384, width 1 to 16384" in summary
    assert found.metadata is not None
    assert f"classes    0 {found.metadata.id2label[0]}, 1 {found.metadata.id2label[1]}" in summary
    assert found.to_dict()["metadata"]["end_to_end"] == {"color": "bgr", "resize": "matmul", "top_k": 4}
    # What the gate found end to end stands beside the rest.
    parity = {"max_abs_diff": {"logits": 1e-5}, "end_to_end": {"max_abs_diff": {"pixels": 1.0, "boxes": 0.25}}}
    verified = replace(found, metadata=replace(found.metadata, parity=parity))
    assert "logits 1.0e-05, end to end pixels 1.0e+00 levels, end to end boxes 2.5e-01 pixels" in verified.summary()
    many = replace(found, metadata=replace(found.metadata, id2label=dict.fromkeys(range(91), "x")))
    assert "9 x, and 81 more; --json has them all" in many.summary()
