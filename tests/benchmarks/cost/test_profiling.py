"""Sharing out of a profile, on events of our own and on those of a small model."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest

from detr_export.benchmarks.cost.parts import PARTS, parts_of, parts_of_optimized
from detr_export.benchmarks.cost.profiling import node_events, profile_ort, summarize
from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.export import export_onnx
from detr_export.graphs.options import ExportOptions
from detr_export.runtimes.errors import ArtifactError, BackendError, InputError


def node(name: str, operator: str, start: int, duration: int) -> dict[str, Any]:
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": duration, "args": {"op_name": operator}}


def run(start: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": 90}


def test_warm_up_and_all_that_is_no_kernel_are_left_out() -> None:
    fence = {"cat": "Node", "name": "b_fence_before", "ts": 210, "dur": 9, "args": {"op_name": "Conv"}}
    load = {"cat": "Session", "name": "model_loading_uri", "ts": 0, "dur": 9}
    # a run is written to the profile after its nodes
    events = [load, node("a", "Conv", 20, 70), run(10), node("a", "Conv", 120, 50), run(110), fence]
    events += [node("a", "Conv", 220, 30), node("b", "Add", 260, 10), run(200)]
    assert [event["ts"] for event in node_events(events, 1)] == [120, 220, 260]
    assert [event["ts"] for event in node_events(events, 2)] == [220, 260]
    with pytest.raises(BackendError, match="holds 3 runs; expected more than 3"):
        node_events(events, 3)


def test_times_are_of_one_run_and_shares_of_the_whole() -> None:
    events = [node("a", "Conv", 0, 6000), node("b", "Conv", 1, 1000), node("c", "Add", 2, 500)]
    events += [node("a", "Conv", 3, 2000), node("b", "Conv", 4, 0), node("c", "Add", 5, 500)]
    found = summarize(events, {"a": "backbone", "b": "decoder"}, runs=2)
    assert found["operators"] == [
        {"operator": "Conv", "calls": 2, "total_ms": 4.5, "share": 0.9},
        {"operator": "Add", "calls": 1, "total_ms": 0.5, "share": 0.1},
    ]
    expected = {"backbone": 0.8, "decoder": 0.1, "other": 0.1}
    assert found["parts"] == {part: expected.get(part, 0) for part in PARTS}


def test_a_profile_of_nothing_divides_by_something() -> None:
    assert summarize([node("a", "Conv", 0, 0)], {}, runs=1)["operators"][0]["share"] == 0


def test_a_detector_is_profiled(tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = profile_ort(tiny_onnx, 96, 131, 2, threads=1, runs=2)
    assert {key: found[key] for key in ("variant", "height", "width", "batch")} == {
        "variant": "tiny.onnx",
        "height": 96,
        "width": 131,
        "batch": 2,
    }
    assert sum(row["share"] for row in found["operators"]) == pytest.approx(1)
    assert sum(found["parts"].values()) == pytest.approx(1)
    assert all(found["parts"][part] > 0 for part in ("backbone", "encoder", "decoder", "heads"))
    assert found["parts"]["mask_head"] == 0
    assert found["parts"]["other"] < 0.01
    convolutions = sum(item.op_type == "Conv" for item in onnx.load(str(tiny_onnx)).graph.node)
    assert {row["operator"]: row["calls"] for row in found["operators"]}["Conv"] == convolutions
    assert list(tmp_path.iterdir()) == []  # neither the profile nor the optimised model is left


@pytest.fixture(scope="module")
def half_onnx(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In fp16, and it takes uint8 images; not to be changed."""
    output = tmp_path_factory.mktemp("half") / "half.onnx"
    return export_onnx(
        load_checkpoint(tiny_checkpoint), output, ExportOptions(precision="fp16", input="uint8", verify=False)
    ).path


def test_fp16_and_uint8_images_change_no_part(half_onnx: Path) -> None:
    """A CPU computes such a file in fp32, under names of its own and with nodes that have none."""
    parts = profile_ort(half_onnx, 96, 131, 2, threads=1, runs=2)["parts"]
    assert all(parts[part] > 0.05 for part in ("backbone", "encoder", "decoder"))
    assert parts["heads"] < parts["decoder"]
    assert parts["other"] < 0.01


def test_a_segmenter_has_a_mask_head(segmenter_onnx: Path) -> None:
    assert profile_ort(segmenter_onnx, 96, 131, 1, threads=1, runs=1)["parts"]["mask_head"] > 0


@pytest.mark.parametrize("level", ["ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize("fixture", ["tiny_onnx", "segmenter_onnx", "half_onnx"])
def test_optimisation_changes_no_node_s_part(
    fixture: str, level: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """What is not merged away, convolutions and normalisations, is in the same part before and after."""
    file = request.getfixturevalue(fixture)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    before, after = (onnx.load(str(path)).graph for path in (file, tmp_path / "optimized.onnx"))
    original = parts_of(before)
    optimized = parts_of_optimized(after, original)
    assert set(optimized) == {item.name for item in after.node}

    def count(nodes: Any, *words: str) -> Counter[str]:
        return Counter(part for operator, part in nodes if any(word in operator for word in words))

    old = [(item.op_type, original[item.output[0]]) for item in before.node]
    new = [(item.op_type, optimized[item.name]) for item in after.node]
    for words in (("Conv",), ("LayerNormalization",), ("Softmax",), ("InstanceNormalization",)):
        assert count(new, *words) == count(old, *words)


def test_what_the_file_does_not_take_is_refused(tiny_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="runs is 0; expected at least 1"):
        profile_ort(tiny_onnx, 96, 131, 1, 1, runs=0)
    with pytest.raises(InputError, match="batch is -1; expected at least 1"):
        profile_ort(tiny_onnx, 96, 131, -1, 1)
    with pytest.raises(ArtifactError, match="does not exist"):
        profile_ort(tmp_path / "missing.onnx", 96, 131, 1, 1)
