"""`DetrConfig` against transformers' own reading and writing of config.json."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import transformers

from detr_export.backbone_config import ResNetConfig
from detr_export.config import TRANSFORMERS4, TRANSFORMERS5, DetrConfig
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.runtimes.errors import CheckpointError
from tests import models

TIMM_R18 = {"backbone": "resnet18", "num_channels": 3, "out_indices": [1, 2, 3, 4], "features_only": True}
CASES = {
    "default": {},
    "dc5": {"dilation": True},
    "learned": {"position_embedding_type": "learned", "num_queries": 7, "dropout": 0.2},
    "no_timm": {"use_timm_backbone": False, "backbone_config": None},
    "channels": {"num_channels": 1, "backbone": "resnet18", "auxiliary_loss": True},
}


@pytest.mark.parametrize("name", CASES)
def test_reads_what_transformers_writes_and_back(name: str, tmp_path: Path) -> None:
    labels = {"id2label": {0: "a", 1: "N/A", 2: "b"}, "label2id": {"a": 0, "N/A": 1, "b": 2}}
    theirs = transformers.DetrConfig(use_pretrained_backbone=False, **labels, **CASES[name])
    theirs.save_pretrained(tmp_path / "theirs")
    ours = DetrConfig.from_pretrained(tmp_path / "theirs")
    for item in fields(DetrConfig):
        if item.name not in ("extra", "backbone_config", "backbone_kwargs", "pre_norm", "layout"):
            assert getattr(ours, item.name) == getattr(theirs, item.name), item.name
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.DetrConfig.from_pretrained(tmp_path / "ours")
    assert again.to_dict() == {**theirs.to_dict(), "_name_or_path": again.to_dict()["_name_or_path"]}


def test_has_every_field_of_transformers() -> None:
    own = set(transformers.DetrConfig().to_dict()) - set(transformers.PretrainedConfig().to_dict())
    assert own - {item.name for item in fields(DetrConfig)} == {"num_hidden_layers"}
    assert DetrConfig().to_dict()["num_hidden_layers"] == 6


def test_defaults_are_those_of_transformers() -> None:
    theirs = transformers.DetrConfig().to_dict()
    for name, value in DetrConfig().to_dict().items():
        if name not in ("id2label", "label2id"):
            assert theirs[name] == value, name


def test_keeps_gaps_and_unknown_fields(tmp_path: Path) -> None:
    values = {**models.TINY, "architectures": ["DetrForObjectDetection"], "my_field": {"a": [1, 2]}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = DetrConfig.from_pretrained(tmp_path)
    assert config.id2label == models.LABELS
    assert config.num_labels == 5
    assert config.label2id == {"N/A": 2, "person": 1, "car": 3, "cat": 4}
    written = json.loads(config.save_pretrained(tmp_path / "again").read_text())
    assert written["my_field"] == {"a": [1, 2]}
    assert written["architectures"] == ["DetrForObjectDetection"]


def test_ids_may_begin_at_1() -> None:
    config = DetrConfig.from_dict({**models.TINY, "id2label": {"1": "cat", "2": "dog"}})
    assert config.id2label == {1: "cat", 2: "dog"}
    assert config.num_labels == 2


def test_aliases_and_num_labels() -> None:
    config = DetrConfig.from_dict({"model_type": "detr", "hidden_size": 64, "num_attention_heads": 2, "num_labels": 3})
    assert (config.d_model, config.encoder_attention_heads, config.num_labels) == (64, 2, 3)


HUB = {
    # What directories on the hub hold: fields that are missing, null, of an old version, or unknown.
    "facebook/detr-resnet-50": (
        {"backbone": "resnet50", "max_position_embeddings": 1024, "scale_embedding": False, "classifier_dropout": 0.0},
        {"backbone": "resnet50", "dilation": False, "use_timm_backbone": True, "num_queries": 100},
    ),
    "facebook/detr-resnet-101-dc5": (
        {"backbone": "resnet101", "dilation": True},
        {"backbone": "resnet101", "output_stride": 16},
    ),
    "microsoft/table-transformer-detection": (
        {"model_type": "table-transformer", "backbone": "resnet18", "dilation": None, "num_queries": 15, "num_labels": 2},
        {"pre_norm": True, "output_stride": 32, "num_labels": 2, "num_queries": 15},
    ),
    "two labels of one name": (
        {"id2label": {"0": "table", "1": "table"}, "label2id": {"table": 1}},
        {"num_labels": 2, "id2label": {0: "table", 1: "table"}},
    ),
    "labels out of order": (
        {"id2label": {"1": "b", "0": "a"}},
        {"num_labels": 2, "id2label": {0: "a", 1: "b"}},
    ),
    "a number of labels": ({"num_labels": 11}, {"num_labels": 11}),
    "nothing but the type": ({}, {"num_labels": 2, "backbone": "resnet50", "layout": TRANSFORMERS4}),
    "timm_backbone of transformers 4": (
        {"use_timm_backbone": False, "backbone": None, "backbone_config": {"model_type": "timm_backbone", **TIMM_R18}},
        {"use_timm_backbone": True, "backbone": "resnet18", "layout": TRANSFORMERS5, "output_stride": 32},
    ),
    "timm_backbone of transformers 5, DC5": (
        {"dilation": False, "backbone_config": {"model_type": "timm_backbone", **TIMM_R18, "output_stride": 16}},
        {"dilation": True, "output_stride": 16},
    ),
    "a dilation that transformers 5 does not read": (
        {"dilation": True, "backbone_config": {"model_type": "timm_backbone", **TIMM_R18}},
        {"dilation": False, "output_stride": 32},
    ),
    "one channel": (
        {"backbone_config": {"model_type": "timm_backbone", **TIMM_R18, "num_channels": 1}},
        {"num_channels": 1},
    ),
    "the last stage": (
        {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet18"}},
        {"output_stride": 32},
    ),
}


@pytest.mark.parametrize("name", HUB)
def test_configurations_on_the_hub(name: str) -> None:
    values, expected = HUB[name]
    config = DetrConfig.from_dict({"model_type": "detr", **values})
    assert {field: getattr(config, field) for field in expected} == expected
    assert DetrConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    with torch.device("meta"):
        model = DetrForObjectDetection(config)
    assert model.class_labels_classifier.out_features == config.num_labels + 1
    first = next(value for key, value in model.named_parameters() if "backbone" in key)
    assert first.shape[1] == config.num_channels


def test_no_timm_defaults_to_the_last_stage_of_resnet50() -> None:
    config = DetrConfig(use_timm_backbone=False)
    assert config.backbone is None
    assert config.dilation is None
    assert config.backbone_config == ResNetConfig()
    assert config.backbone_config.outputs == ("stage4",)


def test_out_indices_name_stages() -> None:
    assert ResNetConfig.from_dict({"depths": [1, 1], "hidden_sizes": [8, 8], "out_indices": [-1, 0]}).outputs == (
        "stem",
        "stage2",
    )


@pytest.mark.parametrize(
    ("config", "stride"),
    [
        (DetrConfig(), 32),
        (DetrConfig(dilation=True), 16),
        (DetrConfig(backbone_kwargs={"out_indices": [1, 2, 3]}), 16),
        (DetrConfig(use_timm_backbone=False), 32),
        (DetrConfig(use_timm_backbone=False, backbone_config=ResNetConfig(downsample_in_first_stage=True)), 64),
    ],
)
def test_output_stride(config: DetrConfig, stride: int) -> None:
    assert config.output_stride == stride


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "yolos"}, "model_type is 'yolos'; expected 'detr'"),
        ({"model_type": None}, "model_type is null"),
        ({"position_embedding_type": "rope"}, "expected 'sine' or 'learned'"),
        ({"d_model": 30}, "not divisible by encoder_attention_heads"),
        ({"d_model": 36, "encoder_attention_heads": 4, "decoder_attention_heads": 5}, "decoder_attention_heads 5"),
        ({"backbone_config": {"model_type": "swin"}}, "model_type 'swin'; expected 'resnet'"),
        ({"backbone_config": {**models.TINY_BACKBONE, "layer_type": "wide"}}, "layer_type is 'wide'"),
        ({"backbone_config": {**models.TINY_BACKBONE, "depths": [1]}}, "must be equally long"),
        ({"backbone_config": {**models.TINY_BACKBONE, "out_features": ["stage9"]}}, "out_features has 'stage9'"),
        ({"backbone": "microsoft/resnet-50"}, "without timm is not supported"),
        ({"backbone_config": {"model_type": "timm_backbone", "features_only": False}}, "features_only false"),
    ],
)
def test_refuses(changes: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        DetrConfig.from_dict({**models.TINY, **changes})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("{", "is not JSON"),
        ("[1]", "expected an object"),
        ("{}", "model_type is null"),
    ],
)
def test_refuses_files(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        DetrConfig.from_pretrained(tmp_path)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_labels": 3},
        {"num_labels": 5},  # as many as there are
        {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}},
        {"id2label": {"0": "a", "1": "b"}, "dropout": 0.3, "auxiliary_loss": True},
        {"encoder_layers": 1, "output_attentions": True},
    ],
    ids=str,
)
def test_changes_are_those_of_transformers(changes: dict, tiny_checkpoint: Path) -> None:
    ours = DetrConfig.from_pretrained(tiny_checkpoint, **changes)
    theirs = transformers.DetrConfig.from_pretrained(tiny_checkpoint, **changes)
    for name in (*changes, "id2label", "num_labels", "hidden_size", "num_attention_heads", "model_type"):
        expected = getattr(theirs, name)
        assert getattr(ours, name) == ({int(k): v for k, v in expected.items()} if name == "id2label" else expected), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_queues": 3}, "has no num_queues"),
        ({"extra": {}}, "has no extra"),
        ({"id2label": {0: "a"}, "num_labels": 2}, "num_labels is 2, and id2label has 1"),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 1, "b": 0}}, "not the inverse"),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0}}, "not the inverse"),
        ({"label2id": {"a": 0}}, "not the inverse"),
    ],
)
def test_refuses_changes(changes: dict, message: str, tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        DetrConfig.from_pretrained(tiny_checkpoint, **changes)


def test_other_classes_forget_which_ones_were_stuff() -> None:
    config = DetrConfig(id2label={0: "cat", 1: "sky"}, extra={"label_ids_to_fuse": [1], "note": 2})
    assert config.with_classes({0: "cat", 1: "sky"}).extra == {"label_ids_to_fuse": [1], "note": 2}
    assert config.with_classes({0: "sky", 1: "cat"}).extra == {"note": 2}


def test_a_configuration_on_the_hub_at_a_revision(hub_cache: Path, tmp_path: Path) -> None:
    for revision, dropout in (("main", 0.1), ("v2", 0.4)):
        DetrConfig(dropout=dropout).save_pretrained(tmp_path / revision)
        models.publish(hub_cache, "someone/detr", tmp_path / revision, revision=revision, commit=revision[0] * 40)
    assert DetrConfig.from_pretrained("someone/detr").dropout == 0.1
    assert DetrConfig.from_pretrained("someone/detr", "v2").dropout == 0.4
