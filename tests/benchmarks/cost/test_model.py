"""Costs against hand-made graphs, a count by hooks on the PyTorch modules, and the published model's numbers."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils._python_dispatch import TorchDispatchMode

from detr_export.benchmarks.cost.model import model_cost
from detr_export.benchmarks.cost.parts import PARTS, parts_of
from detr_export.checkpoints.reading import load_checkpoint
from detr_export.config import DetrConfig
from detr_export.graphs.export import ExportOptions, export_onnx
from detr_export.loading import load_model
from detr_export.modeling.deployed import DeployedModel
from detr_export.modeling.fused_transformer import fuse
from detr_export.runtimes.errors import ArtifactError, InputError
from tests import models


class MacCounter(TorchDispatchMode):
    """Multiply-accumulates of what PyTorch really calls, from the sizes of its tensors: nothing of ONNX in it."""

    def __init__(self) -> None:
        super().__init__()
        self.macs: Counter[str] = Counter()
        self.part = "other"

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.__name__.partition(".")[0]
        if name in ("convolution", "_convolution"):
            self.macs[self.part] += result.numel() * math.prod(args[1].shape[1:])
        elif name in ("mm", "bmm"):
            self.macs[self.part] += result.numel() * args[0].shape[-1]
        elif name == "addmm":
            self.macs[self.part] += result.numel() * args[1].shape[-1]
        elif name in ("baddbmm", "_scaled_dot_product_attention", "linear"):
            raise AssertionError(f"{name} is not counted")
        return result


def counted(checkpoint: Path, height: int, width: int, batch: int) -> Counter[str]:
    """Multiply-accumulates of a checkpoint in PyTorch by part, in the form that is exported."""
    model = DeployedModel(load_model(load_checkpoint(checkpoint)))
    fuse(model.model.base)
    counter = MacCounter()
    modules = {
        "backbone": ("backbone",),
        "encoder": ("encoder", "input_projection"),
        "decoder": ("decoder",),
        "heads": ("class_labels_classifier", "bbox_predictor"),
        # The part of it that does not depend on queries is computed by these, outside of their parents.
        "mask_head": ("mask_head", "bbox_attention", "lay1", "k_linear", "adapter1", "adapter2", "adapter3"),
    }
    part_of = {name: part for part, names in modules.items() for name in names}

    outer: list[str] = []

    def enter(part: str) -> Any:
        def hook(*_: Any) -> None:
            outer.append(counter.part)
            counter.part = part

        return hook

    def leave(*_: Any) -> None:
        counter.part = outer.pop()

    for name, module in model.named_modules():
        part = part_of.get(name.rpartition(".")[2])
        if part is not None and "conv_encoder" not in name:
            module.register_forward_pre_hook(enter(part))
            module.register_forward_hook(leave)
    with torch.no_grad(), counter:
        model(torch.zeros(batch, 3, height, width), torch.ones(batch, height, width, dtype=torch.int64))
    return counter.macs


@pytest.mark.parametrize("size", [(96, 131, 1), (160, 97, 3)])
def test_counts_of_a_detector_and_its_parts_are_those_of_pytorch(
    tiny_checkpoint: Path, tiny_onnx: Path, size: tuple[int, int, int]
) -> None:
    expected, cost = counted(tiny_checkpoint, *size), model_cost(tiny_onnx, *size)
    assert set(expected) == {"backbone", "encoder", "decoder", "heads"}
    assert {part: round(gmac * 1e9) for part, gmac in cost.parts.items() if gmac} == dict(expected)
    assert cost.gmac * 1e9 == pytest.approx(expected.total(), rel=1e-12)
    assert set(cost.parts) == set(PARTS)


def test_counts_of_a_segmenter_that_was_not_simplified(segmenter: Path, segmenter_onnx: Path) -> None:
    expected, cost = counted(segmenter, 96, 131, 2), model_cost(segmenter_onnx, 96, 131, 2)
    assert set(expected) == {"backbone", "encoder", "decoder", "heads", "mask_head"}
    assert {part: round(gmac * 1e9) for part, gmac in cost.parts.items() if gmac} == dict(expected)


@pytest.fixture(scope="session")
def resnet_50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published detector's architecture with seeded weights."""
    changes = {"id2label": {str(index): f"class {index}" for index in range(91)}}
    config = DetrConfig.from_dict({"model_type": "detr", "use_pretrained_backbone": False, **changes})
    folder = tmp_path_factory.mktemp("resnet_50")
    models.seeded(config).save_pretrained(folder / "checkpoint")
    options = ExportOptions(simplify=False, verify=False)
    return export_onnx(load_checkpoint(folder / "checkpoint"), folder / "model.onnx", options).path


def test_the_published_detector_costs_82_gmac_of_which_70_are_the_backbone(resnet_50: Path) -> None:
    cost = model_cost(resnet_50, 800, 1066, 1)
    assert round(cost.gmac) == 82
    assert round(cost.parts["backbone"], 1) == 70.0
    assert cost.parts["other"] == 0
    assert model_cost(resnet_50, 800, 1066, 2).gmac == pytest.approx(2 * cost.gmac, rel=1e-2)


def write(path: Path, nodes: list[Any], weights: dict[str, np.ndarray], shape: tuple[Any, ...]) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, dtype=np.float32)


IMAGE = ("batch", 4, "height", "width")
X = "pixel_values"
CASES = {
    # grouped: 2 channels of a group and 3x3 for each of 2 x 6 x 5 x 4 outputs (stride 2, padding 1)
    "Conv": (
        [helper.make_node("Conv", [X, "w"], ["y"], group=2, strides=[2, 2], pads=[1, 1, 1, 1])],
        {"w": zeros(6, 2, 3, 3)},
        2 * 6 * 5 * 4 * 2 * 9,
        4 * (2 * 4 * 10 * 8 + 6 * 2 * 9 + 2 * 6 * 5 * 4),
    ),
    # every input element is multiplied with 3 x 2 x 2 weights
    "ConvTranspose": (
        [helper.make_node("ConvTranspose", [X, "w"], ["y"], strides=[2, 2])],
        {"w": zeros(4, 3, 2, 2)},
        2 * 4 * 10 * 8 * 3 * 4,
        4 * (2 * 4 * 10 * 8 + 4 * 3 * 4 + 2 * 3 * 20 * 16),
    ),
    "MatMul": ([helper.make_node("MatMul", [X, "w"], ["y"])], {"w": zeros(8, 5)}, 2 * 4 * 10 * 5 * 8, None),
    # (10 * 8, 2 * 4) transposed: the shared side is the first
    "Gemm": (
        [
            helper.make_node("Reshape", [X, "shape"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w", "c"], ["y"], transA=1, transB=1),
        ],
        {"shape": np.array([8, -1]), "w": zeros(7, 8), "c": zeros(7)},
        80 * 7 * 8,
        4 * (640 + 56 + 7 + 560),  # the reshaping moves nothing
    ),
}


@pytest.mark.parametrize("operator", CASES)
def test_an_operator_costs_what_its_sizes_say(operator: str, tmp_path: Path) -> None:
    nodes, weights, macs, moved = CASES[operator]
    cost = model_cost(write(tmp_path / "one.onnx", nodes, weights, IMAGE), 10, 8, 2)
    assert cost.gmac * 1e9 == pytest.approx(macs)
    assert {name: round(gmac * 1e9) for name, gmac in cost.operators.items()} == {operator: macs}
    assert {part for part, gmac in cost.parts.items() if gmac} == {"other"}  # it is no DETR
    if moved is not None:
        assert cost.moved_bytes == moved


def test_the_rate_is_two_operations_a_multiplication(tmp_path: Path) -> None:
    nodes, weights, macs, _ = CASES["MatMul"]
    cost = model_cost(write(tmp_path / "one.onnx", nodes, weights, IMAGE), 10, 8, 2)
    assert cost.gflop_per_s(session_ms=500) == pytest.approx(2 * macs / 0.5 / 1e9)


def test_what_cannot_be_counted_is_refused_in_a_line(tmp_path: Path) -> None:
    einsum = [helper.make_node("Einsum", [X], ["y"], equation="bchw->bhwc")]
    with pytest.raises(ArtifactError, match="holds Einsum, whose cost is not known"):
        model_cost(write(tmp_path / "einsum.onnx", einsum, {}, IMAGE), 10, 8, 2)
    data_dependent = [
        helper.make_node("Relu", [X], ["r"]),
        helper.make_node("NonZero", ["r"], ["n"]),
        helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["w", "f"], ["y"]),
    ]
    with pytest.raises(ArtifactError, match="cannot be worked out"):
        model_cost(write(tmp_path / "nonzero.onnx", data_dependent, {"w": zeros(3, 4)}, IMAGE), 10, 8, 2)
    (tmp_path / "damaged.onnx").write_bytes(b"not a model")
    with pytest.raises(ArtifactError, match="is damaged, or not an ONNX model"):
        model_cost(tmp_path / "damaged.onnx", 10, 8, 2)
    with pytest.raises(ArtifactError, match="does not exist"):
        model_cost(tmp_path / "missing.onnx", 10, 8, 2)


def test_sizes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    nodes, weights, *_ = CASES["Conv"]
    fixed = write(tmp_path / "fixed.onnx", nodes, weights, (1, 4, 10, 8))
    assert model_cost(fixed, 10, 8, 1).gmac > 0
    with pytest.raises(InputError, match="height is 12; this file takes 10 alone"):
        model_cost(fixed, 12, 8, 1)
    with pytest.raises(InputError, match="batch is 0; expected at least 1"):
        model_cost(fixed, 10, 8, 0)


def test_every_tensor_has_the_part_that_its_weights_say(tiny_onnx: Path) -> None:
    graph = onnx.load(str(tiny_onnx)).graph
    parts = parts_of(graph)
    assert set(parts) == {name for node in graph.node for name in node.output if name}
    layers = [node for node in graph.node if node.op_type == "LayerNormalization"]
    assert Counter(parts[node.output[0]] for node in layers) == {"encoder": 4, "decoder": 6}
    assert {parts[node.output[0]] for node in graph.node if node.op_type == "Conv"} == {"backbone"}
    attentions = [node for node in graph.node if node.op_type == "Softmax"]
    assert Counter(parts[node.output[0]] for node in attentions) == {"encoder": 2, "decoder": 3}
    (projection,) = [node for node in graph.node if any(name.endswith("input_projection.weight") for name in node.input)]
    assert [parts[name] for name in (projection.input[0], projection.output[0])] == ["backbone", "encoder"]
    assert parts["logits"] == parts["pred_boxes"] == "heads"


def test_nodes_named_by_the_torchscript_exporter_have_parts() -> None:
    nodes = [
        helper.make_node("Conv", [X, "onnx::Conv_1"], ["a"], name="/model/backbone/conv_encoder/model/conv1/Conv"),
        helper.make_node("MatMul", ["a", "onnx::MatMul_2"], ["b"], name="/model/encoder/layers.0/fc1/MatMul"),
        helper.make_node("MatMul", ["b", "onnx::MatMul_3"], ["c"], name="/model/decoder/layers.0/fc1/MatMul"),
        helper.make_node("Softmax", ["c"], ["logits"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)]
    parts = parts_of(helper.make_graph(nodes, "graph", [], outputs))
    assert parts == {"a": "backbone", "b": "encoder", "c": "decoder", "logits": "heads"}


def test_counts_of_two_graphs_depend_on_the_queries(segmenter_onnx: Path, segmenter_one_graph: Path) -> None:
    every = model_cost(segmenter_one_graph, 96, 131, 1)
    none, three, nine = (model_cost(segmenter_onnx, 96, 131, 1, queries) for queries in (0, 3, 9))
    assert nine.parts == pytest.approx(every.parts)
    assert nine == model_cost(segmenter_onnx, 96, 131, 1)
    assert three.gmac - none.gmac == pytest.approx((nine.gmac - none.gmac) / 3)
    assert 0 < none.parts["mask_head"] < three.parts["mask_head"]
    assert three.parts["backbone"] == none.parts["backbone"]
