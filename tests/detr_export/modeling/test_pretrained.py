"""`from_pretrained` and what else transformers' models offer: other classes, counts, gradient checkpointing, saving."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import detr_export
from detr_export.checkpoints.reading import load_checkpoint
from detr_export.modeling.detr import DetrForObjectDetection, DetrModel
from detr_export.modeling.outputs import DetrModelOutput, DetrObjectDetectionOutput
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.runtimes import DetrImageProcessor
from detr_export.runtimes.errors import CheckpointError
from tests import models

CLASSES = {0: "ship", 1: "sail", 2: "sea"}
KINDS = {
    DetrForObjectDetection: "class_labels_classifier.",
    DetrForSegmentation: "detr.class_labels_classifier.",
}


@pytest.fixture(autouse=True)
def quiet_oracle() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


# ---- other classes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_other_classes_draw_the_classifier_alone(
    kind: Any, segmenter: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    labels = {name: index for index, name in CLASSES.items()}
    options: dict[str, Any] = {"id2label": CLASSES, "label2id": labels, "ignore_mismatched_sizes": True}
    with caplog.at_level(logging.WARNING):
        ours = kind.from_pretrained(segmenter, **options)
    oracle = transformers.DetrForSegmentation.from_pretrained(segmenter, output_loading_info=True, **options)
    theirs, told = oracle
    # What is new is what transformers says, and nothing else is.
    prefix = KINDS[kind]
    new = {f"{prefix}weight", f"{prefix}bias"}
    assert set(told["mismatched_keys"]) == {f"detr.class_labels_classifier.{n}" for n in ("weight", "bias")}
    assert all(name in caplog.text for name in new)
    strict = kind.from_pretrained(segmenter).state_dict()
    state = ours.state_dict()
    assert {name for name in state if state[name].shape != strict[name].shape} == new
    assert all(torch.equal(value, strict[name]) for name, value in state.items() if name not in new)
    assert 0.01 < state[f"{prefix}weight"].std() < 0.03
    assert theirs.detr.class_labels_classifier.weight.shape == state[f"{prefix}weight"].shape
    assert not state[f"{prefix}bias"].any()
    # The classes are written down.
    assert ours.config.id2label == CLASSES
    assert ours.config.label2id == theirs.config.label2id
    ours.save_pretrained(tmp_path)
    assert kind.from_pretrained(tmp_path).config.id2label == CLASSES


def test_other_classes_are_refused_unless_they_are_allowed(tiny_checkpoint: Path) -> None:
    message = r"class_labels_classifier.weight \[6, 32\] instead of \[4, 32\].*ignore_mismatched_sizes=True"
    for options in ({"id2label": CLASSES}, {"num_labels": 3}):
        with pytest.raises(CheckpointError, match=message):
            DetrForObjectDetection.from_pretrained(tiny_checkpoint, **options)
        with pytest.raises(RuntimeError):
            transformers.DetrForObjectDetection.from_pretrained(tiny_checkpoint, **options)
    with pytest.raises(TypeError, match="ignore_mismatches"):
        DetrForObjectDetection.from_pretrained(tiny_checkpoint, ignore_mismatches=True)  # type: ignore[call-arg]


def test_names_alone_change_no_weight(tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = {index: f"thing {index}" for index in models.LABELS}
    model = DetrForObjectDetection.from_pretrained(tiny_checkpoint, id2label=names, ignore_mismatched_sizes=True)
    assert model.config.id2label == names
    assert not caplog.records
    before = load_checkpoint(tiny_checkpoint).state_dict
    assert torch.equal(model.class_labels_classifier.weight, before["class_labels_classifier.weight"])


def test_what_is_missing_is_never_drawn(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="no mask head"):
        DetrForSegmentation.from_pretrained(tiny_checkpoint, ignore_mismatched_sizes=True)


def test_the_bare_model_has_no_classes_to_draw(tiny_checkpoint: Path) -> None:
    assert isinstance(DetrModel.from_pretrained(tiny_checkpoint, num_labels=3), DetrModel)


def test_a_configuration_takes_the_place_of_the_checkpoints(tiny_checkpoint: Path) -> None:
    config = detr_export.DetrConfig.from_pretrained(tiny_checkpoint, num_queries=4, auxiliary_loss=True)
    model = DetrForObjectDetection.from_pretrained(tiny_checkpoint, config=config, ignore_mismatched_sizes=True)
    described = transformers.DetrConfig.from_pretrained(tiny_checkpoint, num_queries=4, auxiliary_loss=True)
    theirs = transformers.DetrForObjectDetection.from_pretrained(
        tiny_checkpoint, config=described, ignore_mismatched_sizes=True
    )
    assert model.config.auxiliary_loss
    assert (
        model.model.query_position_embeddings.weight.shape == theirs.model.query_position_embeddings.weight.shape == (4, 32)
    )
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in theirs.state_dict().items()
    }


# ---- what can be asked --------------------------------------------------------------------------------------------------


def test_device_dtype_and_counts_are_those_of_transformers(segmenter: Path) -> None:
    ours = DetrForSegmentation.from_pretrained(segmenter)
    theirs = transformers.DetrForSegmentation.from_pretrained(segmenter)
    for model in (ours, theirs):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("backbone" not in name)  # transformers freezes another part, see docs/compatibility.md
    for options in ({}, {"only_trainable": True}, {"exclude_embeddings": True}):
        assert ours.num_parameters(**options) == theirs.num_parameters(**options), options
    assert 0 < ours.num_parameters(only_trainable=True) < ours.num_parameters()
    assert (ours.device, ours.dtype) == (theirs.device, theirs.dtype)
    assert ours.half().dtype == torch.float16
    assert ours.to("meta").device.type == "meta"


def test_the_package_hands_out_the_classes() -> None:
    for name in ("DetrConfig", "DetrFeatureExtractor", "DetrForObjectDetection", "DetrForSegmentation", "DetrModel"):
        assert getattr(detr_export, name).__name__ == name
        assert name in dir(detr_export)
    with pytest.raises(ImportError):
        from detr_export import ConditionalDetrModel  # type: ignore[attr-defined]  # noqa: F401


# ---- gradient checkpointing ---------------------------------------------------------------------------------------------


def step(model: DetrForObjectDetection, pixel_values: Tensor) -> tuple[Tensor, dict[str, Tensor], int]:
    """The loss, the gradients, and how many bytes the forward pass kept for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3]])}]
    model.zero_grad()
    torch.manual_seed(3)  # dropout draws the same numbers
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(pixel_values, labels=labels).loss
    size = sum(kept.values())
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, size


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing_kwargs": {"use_reentrant": False}}])
def test_gradient_checkpointing_keeps_less_and_changes_no_gradient(options: dict[str, Any]) -> None:
    model = models.seeded(models.config(dropout=0.2, attention_dropout=0.1)).train()
    pixel_values = torch.randn(1, 3, 128, 128)
    runs = {"encoder": 0, "decoder": 0}
    for name in runs:

        def count(*_: Any, name: str = name) -> None:
            runs[name] += 1

        getattr(model.model, name).layers[0].register_forward_pre_hook(count)

    loss, gradients, size = step(model, pixel_values)
    assert runs == {"encoder": 1, "decoder": 1}
    model.gradient_checkpointing_enable(**options)
    again, recomputed, smaller = step(model, pixel_values)
    assert runs == {"encoder": 3, "decoder": 3}  # once forward, once more backward
    assert torch.equal(loss, again)
    assert set(gradients) == set(recomputed)
    for name, gradient in gradients.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=lambda text, name=name: f"{name}: {text}")
    assert smaller < 0.8 * size
    model.gradient_checkpointing_disable()
    assert step(model, pixel_values)[2] == size


def test_gradient_checkpointing_is_for_training_alone() -> None:
    model = models.seeded(models.config())
    expected = model(torch.zeros(1, 3, 64, 64)).logits
    model.gradient_checkpointing_enable()
    assert torch.equal(model(torch.zeros(1, 3, 64, 64)).logits, expected)
    with torch.no_grad():
        assert model.train()(torch.zeros(1, 3, 64, 64)).logits.shape == expected.shape


# ---- saving -------------------------------------------------------------------------------------------------------------


def test_saving_leaves_a_processors_settings_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A script may save the processor before the model."""
    model = DetrForObjectDetection.from_pretrained(tiny_checkpoint)
    DetrImageProcessor(size=models.SIZE).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert DetrImageProcessor.from_pretrained(tmp_path).size == models.SIZE
    model.save_pretrained(tmp_path, DetrImageProcessor(size={"height": 5, "width": 6}))
    assert DetrImageProcessor.from_pretrained(tmp_path).size == {"height": 5, "width": 6}
    model.save_pretrained(tmp_path / "new")
    assert DetrImageProcessor.from_pretrained(tmp_path / "new").size["shortest_edge"] == 800


def test_what_is_saved_with_other_classes_is_read_by_transformers(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ours = DetrForObjectDetection.from_pretrained(tiny_checkpoint, num_labels=3, ignore_mismatched_sizes=True)
    ours.save_pretrained(tmp_path)
    theirs = transformers.DetrForObjectDetection.from_pretrained(tmp_path).eval()
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels).logits, theirs(pixels).logits, atol=1e-4, rtol=0)
    assert theirs.config.id2label == ours.config.id2label
    assert json.loads((tmp_path / "config.json").read_text())["label2id"] == ours.config.label2id


# ---- outputs ------------------------------------------------------------------------------------------------------------


def test_an_output_is_a_dictionary() -> None:
    output = DetrObjectDetectionOutput(logits=torch.zeros(1), pred_boxes=torch.ones(1))
    assert isinstance(output, dict)
    assert {**output} == {"logits": output.logits, "pred_boxes": output.pred_boxes}
    output.loss = torch.tensor(2.0)
    assert output["loss"] is output.loss
    output["size"] = 3
    assert output.size == 3  # type: ignore[attr-defined]
    output.loss = None
    assert list(output) == ["logits", "pred_boxes", "size"]
    for change in (lambda: output.pop("size"), lambda: output.update(size=4), output.clear):
        with pytest.raises(TypeError, match="attributes or keys"):
            change()


def test_an_output_is_copied_and_pickled() -> None:
    output = DetrModelOutput(last_hidden_state=torch.ones(2))
    for made in (copy.deepcopy(output), copy.copy(output), pickle.loads(pickle.dumps(output))):
        assert isinstance(made, DetrModelOutput)
        assert made.keys() == output.keys()
        assert torch.equal(made["last_hidden_state"], torch.ones(2))
        assert torch.equal(made[0], torch.ones(2))
        assert made.decoder_attentions is None


def test_an_output_is_filled_from_a_mapping_as_pipelines_do() -> None:
    output = DetrObjectDetectionOutput(logits=torch.zeros(1))
    made = type(output)({"target_size": 3, **output})
    assert isinstance(made, DetrObjectDetectionOutput)
    assert list(made) == ["target_size", "logits"]
    assert made.logits is output.logits
    assert made.loss is None
