"""The gate refuses what is wrong by a little: deliberate faults, each in an otherwise faultless model.

The candidate is the faulty model in PyTorch, which adds nothing of its own: what is measured is the fault. On a file that
ONNX Runtime runs the gate is tested in `graphs/test_export.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.description import describe
from detr_export.loading import load_model
from detr_export.modeling.deployed import DeployedModel
from detr_export.modeling.detr import DetrModel
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.runtimes.backends.torch_session import TorchSession
from detr_export.runtimes.metadata import Metadata
from detr_export.verification.cases import GRID
from detr_export.verification.comparison import compare, require
from detr_export.verification.reference import Reference, reference_of

SMALL = tuple(case for case in GRID if case.height * case.width * len(case.valid) < 110_000)
Model = tuple[DeployedModel, Metadata, Reference]


def opened(checkpoint: str | Path) -> Model:
    loaded = load_checkpoint(checkpoint)
    model, metadata = DeployedModel(load_model(loaded)), describe(loaded)
    return model, metadata, reference_of(TorchSession(model, metadata))


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> Model:
    return opened(tiny_checkpoint)


@pytest.fixture(scope="module")
def demo() -> Model:
    """A trained model, and a panoptic one."""
    return opened("demo")


def core(model: DeployedModel) -> DetrModel:
    """What is below the heads."""
    return next(module for module in model.modules() if isinstance(module, DetrModel))


def two_rows_of_a_weight_swapped(model: DeployedModel) -> None:
    weight = core(model).encoder.layers[-1].fc1.weight.data
    weight[[0, 1]] = weight[[1, 0]]


def two_weights_swapped(model: DeployedModel) -> None:
    attention = core(model).decoder.layers[0].encoder_attn
    attention.q_proj.weight, attention.k_proj.weight = attention.k_proj.weight, attention.q_proj.weight


def an_attention_scale_wrong_by_a_percent(model: DeployedModel) -> None:
    core(model).decoder.layers[-1].encoder_attn.scaling *= 1.01


def an_encoder_scale_wrong_by_a_percent(model: DeployedModel) -> None:
    core(model).encoder.layers[0].self_attn.scaling *= 1.01


def the_epsilon_of_one_norm(model: DeployedModel) -> None:
    core(model).encoder.layers[0].self_attn_layer_norm.eps = 1e-3


def the_epsilon_of_the_last_norm(model: DeployedModel) -> None:
    core(model).decoder.layernorm.eps = 1e-3


def x_and_y_exchanged(model: DeployedModel) -> None:
    position = core(model).backbone.position_embedding
    right = position.forward
    position.forward = lambda features, mask: torch.cat(right(features, mask).chunk(2, dim=1)[::-1], dim=1)


def no_mask(model: DeployedModel) -> None:
    right = model.forward
    model.forward = lambda pixel_values, pixel_mask: right(pixel_values, torch.ones_like(pixel_mask))  # type: ignore[method-assign]


FAULTS = (
    two_rows_of_a_weight_swapped,
    two_weights_swapped,
    an_attention_scale_wrong_by_a_percent,
    an_encoder_scale_wrong_by_a_percent,
    the_epsilon_of_one_norm,
    the_epsilon_of_the_last_norm,
    x_and_y_exchanged,
    no_mask,
)


@pytest.mark.parametrize("name", ["tiny", "demo"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_refused(fault: Callable[[DeployedModel], None], name: str, request: pytest.FixtureRequest) -> None:
    model, metadata, reference = request.getfixturevalue(name)
    wrong = copy.deepcopy(model)
    fault(wrong)
    parity = compare(TorchSession(wrong, metadata), reference, SMALL)
    assert not parity.passed, parity.summary()
    assert max(parity.ratio.values()) > 15, parity.summary()  # the limit is 10


@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_a_copy_without_fault_passes(name: str, request: pytest.FixtureRequest) -> None:
    """Or the test above would pass on a gate that refuses everything."""
    model, metadata, reference = request.getfixturevalue(name)
    require(compare(TorchSession(copy.deepcopy(model), metadata), reference, SMALL), name)


def test_masks_resized_with_another_rule_are_refused(demo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model, metadata, reference = demo
    assert compare(TorchSession(model, metadata), reference, SMALL).passed  # the truth is computed before the fault
    right = functional.interpolate

    def bilinear(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
        return right(x, size=size, mode="bilinear" if mode == "nearest" else mode)

    monkeypatch.setattr(functional, "interpolate", bilinear)
    parity = compare(TorchSession(copy.deepcopy(model), metadata), reference, SMALL)
    assert not parity.passed
    assert parity.max_abs_diff["pred_masks"] > parity.tolerance["pred_masks"]
    assert parity.max_abs_diff["logits"] <= parity.tolerance["logits"]


def test_the_noise_floor_is_what_pytorch_gets_wrong(demo: Model) -> None:
    """Written out once, for one batch: float32 and float64 on the same pixels."""
    model, metadata, reference = demo
    case = SMALL[0]
    feeds = reference.feeds(case, metadata, 0)
    mask = torch.from_numpy(feeds.checkpoint["pixel_mask"])
    with torch.inference_mode():
        single = model(torch.from_numpy(feeds.checkpoint["pixel_values"]), mask)
        double = copy.deepcopy(model).double()(torch.from_numpy(feeds.exact["pixel_values"]), mask)
    assert {value.dtype for value in double.values()} == {torch.float64}
    for name, noise in reference.noise("fp32", case, metadata, 0).items():
        assert noise == pytest.approx(float((single[name] - double[name]).abs().max()), rel=1e-6)
        assert 0 < noise < 1e-3 * float(double[name].abs().max())
        # What fp16 does is of another order, and still small beside the values.
        half = reference.noise("fp16", case, metadata, 0)[name]
        assert 10 * noise < half < 0.5 * float(double[name].abs().max())


def test_positions_are_float64_in_the_float64_model(demo: Model) -> None:
    """Or the truth would carry the rounding of float32."""
    position = copy.deepcopy(core(demo[0]).backbone.position_embedding)
    mask = torch.ones((1, 7, 9), dtype=torch.bool)
    single = position(torch.zeros((1, 1, 7, 9)), mask)
    double = position(torch.zeros((1, 1, 7, 9), dtype=torch.float64), mask)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert 0 < float((single - double).abs().max()) < 1e-5


def test_a_segmentation_model_is_compared_with_masks(demo: Model) -> None:
    assert isinstance(demo[0].model, DetrForSegmentation)
    assert {spec.name for spec in demo[2].outputs} == {"logits", "pred_boxes", "pred_masks"}
