"""Every argument of `forward` and every field of the outputs, against transformers 4.57's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from detr_export.modeling.detr import DetrForObjectDetection, DetrModel
from detr_export.modeling.outputs import EncoderOutput
from detr_export.seeding import random_images
from tests import models

ATOL = 1e-4
TUPLES = (
    "decoder_hidden_states",
    "decoder_attentions",
    "cross_attentions",
    "encoder_hidden_states",
    "encoder_attentions",
)


@pytest.fixture(scope="module", params=["plain", "auxiliary", "pre-norm", "pre-norm-auxiliary"])
def pair(request: pytest.FixtureRequest) -> tuple[DetrForObjectDetection, Any]:
    """Our model and the oracle with the same weights."""
    model_type = "table-transformer" if request.param.startswith("pre-norm") else "detr"
    ours = models.seeded(models.config(model_type=model_type, auxiliary_loss=request.param.endswith("auxiliary")))
    return ours, models.oracle(ours.config, ours.state_dict())


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    """Two images, the second padded."""
    mask = torch.ones(2, 96, 128, dtype=torch.int64)
    mask[1, 60:], mask[1, :, 70:] = 0, 0
    return {"pixel_values": torch.from_numpy(random_images((2, 3, 96, 128), 5)) * mask[:, None], "pixel_mask": mask}


def assert_close(given: Any, expected: Any, name: str = "") -> None:
    """Nested tuples, lists and dicts of tensors, with the same structure and nearly the same values."""
    if isinstance(expected, torch.Tensor):
        assert given.shape == expected.shape, name
        torch.testing.assert_close(given, expected, atol=ATOL, rtol=0, msg=lambda text: f"{name}: {text}")
    elif isinstance(expected, dict):
        assert set(given) == set(expected), name
        for key in expected:
            assert_close(given[key], expected[key], f"{name}.{key}")
    elif isinstance(expected, (tuple, list)):
        assert len(given) == len(expected), name
        for index, (one, other) in enumerate(zip(given, expected, strict=True)):
            assert_close(one, other, f"{name}[{index}]")
    else:
        assert given == expected, name


@torch.no_grad()
def test_all_outputs(pair: tuple[DetrForObjectDetection, Any], batch: dict[str, torch.Tensor]) -> None:
    ours, theirs = pair
    options = {"output_attentions": True, "output_hidden_states": True}
    given, expected = ours(**batch, **options), theirs(**batch, **options)
    assert set(given.keys()) == set(expected.keys())
    assert_close(dict(given.items()), dict(expected.items()))
    assert all(name in given for name in TUPLES)


@torch.no_grad()
def test_optional_outputs_are_left_out(pair: tuple[DetrForObjectDetection, Any], batch: dict[str, torch.Tensor]) -> None:
    ours, theirs = pair
    for options in ({}, {"output_attentions": True}, {"output_hidden_states": True}):
        assert list(ours(**batch, **options).keys()) == list(theirs(**batch, **options).keys())


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"output_attentions": True, "output_hidden_states": True}])
def test_tuples(pair: tuple[DetrForObjectDetection, Any], batch: dict[str, torch.Tensor], options: dict[str, bool]) -> None:
    ours, theirs = pair
    assert_close(ours(**batch, return_dict=False, **options), theirs(**batch, return_dict=False, **options))
    assert_close(ours.model(**batch, return_dict=False, **options), theirs.model(**batch, return_dict=False, **options))


@torch.no_grad()
def test_bare_model(pair: tuple[DetrForObjectDetection, Any], batch: dict[str, torch.Tensor]) -> None:
    ours, theirs = pair
    options = {"output_attentions": True, "output_hidden_states": True}
    given, expected = ours.model(**batch, **options), theirs.model(**batch, **options)
    assert_close(dict(given.items()), dict(expected.items()))
    if ours.config.auxiliary_loss:
        assert given.intermediate_hidden_states.shape == (2, 2, 9, 32)


@torch.no_grad()
def test_encoder_outputs_are_used(pair: tuple[DetrForObjectDetection, Any], batch: dict[str, torch.Tensor]) -> None:
    ours, theirs = pair
    # The other image's memory: on white noise, rounding alone moves the oracle's logits by more than the tolerance.
    memory = ours(**batch).encoder_last_hidden_state.flip(0)
    expected = theirs(**batch, encoder_outputs=(memory,))
    assert_close(ours(**batch, encoder_outputs=(memory,)).logits, expected.logits)
    assert_close(ours(**batch, encoder_outputs=EncoderOutput(memory)).pred_boxes, expected.pred_boxes)
    assert (expected.logits - ours(**batch).logits).abs().max() > 100 * ATOL


@torch.no_grad()
def test_inputs_embeds_take_the_place_of_the_feature_map(
    pair: tuple[DetrForObjectDetection, Any], batch: dict[str, torch.Tensor]
) -> None:
    """transformers ignores the argument; its own encoder, called with these embeddings, says what it should do."""
    ours, theirs = pair
    _, mask, position = ours.model.backbone(**batch)
    embeddings = torch.randn(2, mask[0].numel(), 32)
    encoded = theirs.model.encoder(embeddings, mask.flatten(1), position.flatten(2).transpose(1, 2))
    expected = theirs(**batch, encoder_outputs=encoded)
    assert_close(ours(**batch, inputs_embeds=embeddings).logits, expected.logits)


@torch.no_grad()
def test_decoder_inputs_embeds_take_the_place_of_zeros(
    pair: tuple[DetrForObjectDetection, Any], batch: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pair
    content = torch.randn(2, 9, 32)
    original = theirs.model.decoder.forward
    monkeypatch.setattr(
        theirs.model.decoder, "forward", lambda **arguments: original(**{**arguments, "inputs_embeds": content})
    )
    assert_close(ours(**batch, decoder_inputs_embeds=content).logits, theirs(**batch).logits)
    assert_close(ours(**batch, decoder_inputs_embeds=torch.zeros_like(content)).logits, ours(**batch).logits)


@torch.no_grad()
def test_decoder_attention_mask_hides_queries(
    pair: tuple[DetrForObjectDetection, Any], batch: dict[str, torch.Tensor]
) -> None:
    ours, _ = pair
    mask = torch.ones(2, 9)
    assert_close(ours(**batch, decoder_attention_mask=mask).logits, ours(**batch).logits)
    mask[1, 4:] = 0
    outputs = ours(**batch, decoder_attention_mask=mask, output_attentions=True)
    assert_close(outputs.logits[0], ours(**batch).logits[0])
    assert all((attention[1, :, :, 4:] == 0).all() for attention in outputs.decoder_attentions)
    assert all((attention[1, :, :, :4].sum(-1) - 1).abs().max() < 1e-5 for attention in outputs.decoder_attentions)


def test_the_configuration_sets_the_defaults(batch: dict[str, torch.Tensor]) -> None:
    model = models.seeded(models.config(output_attentions=True, output_hidden_states=True, return_dict=False))
    assert isinstance(model(**batch), tuple)
    outputs = model(**batch, return_dict=True)
    assert all(name in outputs for name in TUPLES)


@pytest.mark.parametrize("model_type", ["detr", "table-transformer"])
def test_dropout_and_layer_drop_act_in_training_only(model_type: str, batch: dict[str, torch.Tensor]) -> None:
    config = models.config(model_type=model_type, dropout=0.3, attention_dropout=0.1, activation_dropout=0.2)
    ours, theirs = models.seeded(config), models.oracle(config)
    theirs.load_state_dict(ours.state_dict())
    results = []
    for model in (ours, theirs):
        model.train()
        torch.manual_seed(7)
        results.append(model(**batch).logits)
        assert not torch.equal(results[-1], model(**batch).logits)
        model.eval()
        assert torch.equal(model(**batch).logits, model(**batch).logits)
    assert_close(*results)  # the same random numbers in the same order


@pytest.mark.parametrize(("encoder", "decoder"), [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_layer_drop(encoder: float, decoder: float, batch: dict[str, torch.Tensor]) -> None:
    config = models.config(encoder_layerdrop=encoder, decoder_layerdrop=decoder, dropout=0.0)
    ours, theirs = models.seeded(config), models.oracle(config)
    theirs.load_state_dict(ours.state_dict())
    options = {"output_attentions": True, "output_hidden_states": True}
    for seed in range(4):
        given = []
        for model in (ours.train(), theirs.train()):
            torch.manual_seed(seed)
            given.append(model(**batch, **options))
        assert_close(given[0].logits, given[1].logits)
        assert_close(given[0].decoder_attentions, given[1].decoder_attentions)
        assert_close(given[0].encoder_hidden_states, given[1].encoder_hidden_states)
        assert [item is None for item in given[0].encoder_attentions] == [
            item is None for item in given[1].encoder_attentions
        ]


def test_freezing_the_backbone() -> None:
    model = DetrModel(models.config(backbone="resnet18"))
    backbone = model.backbone.conv_encoder.model
    model.freeze_backbone()
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert all(parameter.requires_grad for parameter in model.encoder.parameters())
    model.unfreeze_backbone()
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert model.get_encoder() is model.encoder
