"""Export of a segmentation model as two files: both pass the gate together, and both reach their place or none does."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs import export
from detr_export.graphs.export import export_onnx, exported, verify_file
from detr_export.graphs.inspection import inspect_onnx
from detr_export.graphs.options import ExportOptions
from detr_export.runtimes.errors import ArtifactError, OutputError, VerificationError
from detr_export.runtimes.files import sha256_of_file
from detr_export.runtimes.mask_head import PYRAMID, mask_head_file


def dims(file: Path) -> dict[str, tuple[Any, ...]]:
    return {spec.name: spec.shape for spec in inspect_onnx(file).inputs}


@pytest.mark.parametrize(
    "changes",
    [{}, {"input": "uint8"}, {"pixel_mask": False}, {"precision": "fp16"}, {"precision": "fp16", "fp16_io": True}],
    ids=str,
)
def test_two_files_pass_the_gate_together(segmenter: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    result = export_onnx(load_checkpoint(segmenter), tmp_path / "a.onnx", ExportOptions(**changes))
    beside = tmp_path / "a.masks.onnx"
    assert sorted(tmp_path.iterdir()) == [beside, tmp_path / "a.onnx"]
    assert (result.mask_head, result.metadata.mask_head) == (beside, sha256_of_file(beside))
    assert result.size_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert result.summary().startswith(f"{tmp_path}/a.onnx and a.masks.onnx  ")
    assert result.parity is not None
    assert set(result.parity.max_abs_diff) == {"logits", "pred_boxes", "pred_masks"}
    about = inspect_onnx(beside).metadata
    assert about is not None
    assert (about.task, about.mask_head, about.precision) == ("masks", None, result.metadata.precision)
    assert about.ranges == {"batch": (1, None), "queries": (1, 9)}


def test_dimensions_say_what_they_are_of_the_image(segmenter_onnx: Path) -> None:
    """What the detector gives and what the mask head takes have the same names and dimensions."""
    inputs = dims(mask_head_file(segmenter_onnx))
    sides = [("ceil(height/16)", "ceil(width/16)"), ("ceil(height/8)", "ceil(width/8)"), ("ceil(height/4)", "ceil(width/4)")]
    assert [inputs[name][2:] for name in PYRAMID] == sides
    assert inputs["mask_keys"] == ("batch", 32, "ceil(height/32)", "ceil(width/32)")
    assert inputs["query_states"] == ("batch", "queries", 32)
    given = {spec.name: spec.shape for spec in inspect_onnx(segmenter_onnx).outputs}
    assert given["query_states"] == ("batch", 9, 32)
    assert {name: shape for name, shape in given.items() if name in inputs and name != "query_states"} == {
        name: shape for name, shape in inputs.items() if name != "query_states"
    }


def test_without_a_pixel_mask_there_is_no_feature_mask(segmenter: Path, tmp_path: Path) -> None:
    options = ExportOptions(pixel_mask=False, verify=False)
    file = export_onnx(load_checkpoint(segmenter), tmp_path / "a.onnx", options).path
    for part in (file, mask_head_file(file)):
        graph = onnx.load(str(part)).graph
        names = {value.name for value in [*graph.input, *graph.output]}
        assert not names & {"pixel_mask", "feature_mask"}
        assert not any(node.op_type in ("Where", "GreaterOrEqual", "Greater") for node in graph.node)


def test_verify_runs_both_files(segmenter_onnx: Path) -> None:
    parity = verify_file(segmenter_onnx)
    assert parity.passed
    assert "pred_masks" in parity.max_abs_diff


def disturbed(trace: Any) -> Any:
    """`trace_mask_head` with one weight of the result a little off."""

    def changed(*arguments: Any) -> onnx.ModelProto:
        proto: onnx.ModelProto = trace(*arguments)
        tensor = next(item for item in proto.graph.initializer if item.name.endswith("lay3.weight"))
        values = numpy_helper.to_array(tensor).copy()
        values.flat[0] += 0.01 * np.abs(values).max()
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return proto

    return changed


def test_a_wrong_mask_head_is_refused(segmenter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "trace_mask_head", disturbed(export.trace_mask_head))
    with pytest.raises(VerificationError, match="disagrees with its checkpoint: pred_masks differs"):
        export_onnx(load_checkpoint(segmenter), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_both_files_are_replaced_or_none(segmenter: Path, tmp_path: Path) -> None:
    checkpoint, output = load_checkpoint(segmenter), tmp_path / "a.onnx"
    beside = mask_head_file(output)
    beside.write_text("old")
    with pytest.raises(OutputError, match=r"a\.masks\.onnx exists; add --overwrite"):
        export_onnx(checkpoint, output, ExportOptions(verify=False))
    output.write_text("old")
    options = ExportOptions(verify=False, overwrite=True)
    with contextlib.suppress(KeyboardInterrupt), exported(checkpoint, output, options) as draft:
        assert mask_head_file(draft.path).is_file()
        raise KeyboardInterrupt
    assert (output.read_text(), beside.read_text(), len(list(tmp_path.iterdir()))) == ("old", "old", 2)
    result = export_onnx(checkpoint, output, options)
    assert result.metadata.mask_head == sha256_of_file(beside)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("changes", [{"task": "detection"}, {"end_to_end": True}], ids=str)
def test_one_graph_is_for_what_would_have_two(segmenter: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="have one graph anyway; leave --one-graph out"):
        export_onnx(load_checkpoint(segmenter), tmp_path / "a.onnx", ExportOptions(one_graph=True, **changes))
