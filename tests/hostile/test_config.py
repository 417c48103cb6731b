"""What `config.json` says is typed and bounded before it is believed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

import detr_export
from detr_export.config import DetrConfig
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.runtimes.errors import CheckpointError
from tests import models
from tests.hostile import values

HUGE = 10**5000
TIMM = {"use_timm_backbone": True, "backbone": "resnet50", "backbone_config": None}
R18 = {"model_type": "timm_backbone", "backbone": "resnet18"}


def resnet(**changes: Any) -> dict[str, Any]:
    """A `backbone_config` with some fields changed."""
    return {"backbone_config": {**models.TINY_BACKBONE, **changes}}


COUNTS = (
    "num_queries",
    "encoder_ffn_dim",
    "encoder_attention_heads",
    "decoder_layers",
    "decoder_ffn_dim",
    "decoder_attention_heads",
    "d_model",
    "num_channels",
)
PROBABILITIES = ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop")
COEFFICIENTS = ("init_std", "init_xavier_std", "class_cost", "bbox_cost", "giou_cost", "eos_coefficient")
COEFFICIENTS += tuple(f"{loss}_loss_coefficient" for loss in ("mask", "dice", "bbox", "giou"))
FLAGS = ("use_timm_backbone", "is_encoder_decoder", "auxiliary_loss", "output_attentions", "return_dict")

CASES: list[tuple[dict[str, Any], str]] = [
    *(
        ({name: value}, f"{name} is {found}; expected an integer{least}")
        for name in COUNTS
        for value, found, least in (
            (0, "0", " >= 1"),
            (-1, "-1", " >= 1"),
            ("3", "'3'", ""),
            (1.5, "1.5", ""),
            (True, "true", ""),
            (None, "null", ""),
            ([], "a list of 0", ""),
            (HUGE, "an integer of 16610 bits", " <= 9223372036854775807"),
        )
    ),
    *(
        ({name: value}, f"{name} is {found}; expected a number{bound}")
        for name in PROBABILITIES
        for value, found, bound in (
            (5, "5", " <= 1.0"),
            (-0.1, "-0.1", " >= 0.0"),
            (float("nan"), "nan", " >= 0.0"),
            ("0.1", "'0.1'", ""),
            ({}, "an object of 0", ""),
        )
    ),
    *(
        ({name: value}, f"{name} is {found}; expected a number{bound}")
        for name in COEFFICIENTS
        for value, found, bound in (
            (-1, "-1", " >= 0.0"),
            (float("inf"), "inf", " <= 1000000000000000.0"),
            (float("nan"), "nan", " >= 0.0"),
            (1e300, r"1e\+300", " <= 1000000000000000.0"),
            (None, "null", ""),
        )
    ),
    *(
        ({name: value}, f"{name} is {found}; expected true or false")
        for name in FLAGS
        for value, found in ((1, "1"), ("yes", "'yes'"), ([], "a list of 0"))
    ),
    ({"encoder_layers": -1}, "encoder_layers is -1; expected an integer >= 0"),
    ({"activation_function": []}, "activation_function is a list of 0; expected text"),
    ({"activation_function": {"a": 1}}, "activation_function is an object of 1; expected text"),
    ({"position_embedding_type": 3}, "position_embedding_type is 3; expected text"),
    ({"dilation": "no"}, "dilation is 'no'; expected true or false or null"),
    ({"backbone": 3}, "backbone is 3; expected text or null"),
    # limits
    ({"encoder_layers": 1001}, "encoder_layers is 1001; expected at most 1000; .*--limit layers=N"),
    ({"decoder_layers": 10**9}, "decoder_layers is 1000000000; expected at most 1000"),
    ({"num_queries": 10_001}, "num_queries is 10001; expected at most 10000; .*--limit queries=N"),
    ({"d_model": 65_540}, "d_model is 65540; expected at most 65536; .*--limit channels=N"),
    ({"encoder_ffn_dim": 2**40}, "encoder_ffn_dim is 1099511627776; expected at most 65536"),
    ({"num_channels": 70_000}, "num_channels is 70000; expected at most 65536"),
    (
        {"d_model": 65_536, "encoder_layers": 1000, "encoder_ffn_dim": 65_536},
        "what the sizes of layers come to, in bytes, is .*; expected at most 68719476736; .*--limit checkpoint_bytes=N",
    ),
    # classes
    ({"id2label": []}, "id2label is a list of 0; expected an object or null"),
    ({"id2label": 3}, "id2label is 3; expected an object or null"),
    ({"id2label": {}}, "id2label has no classes; expected at least one"),
    ({"id2label": {"a": "b"}}, "id2label has the id 'a'; expected an integer"),
    ({"id2label": {"-1": "b"}}, "id2label has the id '-1'; expected an integer"),
    ({"id2label": {"1.0": "b"}}, "id2label has the id '1.0'; expected an integer"),
    ({"id2label": {"\u0663": "b"}}, "id2label has the id '\u0663'; expected an integer"),
    ({"id2label": {"0": "a", "01": "b"}}, "id2label has the id '01'; expected an integer"),
    ({"id2label": {"9" * 5000: "b"}}, "id2label has the id '999.*; expected an integer"),
    ({"id2label": {"0": "a", 0: "b"}}, "id2label has the id 0 twice"),
    ({"id2label": {-1: "a", 0: "b"}}, "id2label has the id -1; expected 0 or more"),
    ({"id2label": {"999999999": "a"}}, "the largest id of id2label is 999999999; expected at most 100000"),
    ({"id2label": {True: "a"}}, "id2label has the id true; expected an integer"),
    ({"id2label": {"0": None}}, r"id2label\['0'\] is null; expected text"),
    ({"id2label": {"0": 3}}, r"id2label\['0'\] is 3; expected text"),
    ({"id2label": {"0": ["a"]}}, r"id2label\['0'\] is a list of 1; expected text"),
    ({"id2label": None, "num_labels": 10**9}, "num_labels is 1000000000; expected at most 100000; .*--limit labels=N"),
    ({"id2label": None, "num_labels": 1e9}, "num_labels is 1000000000.0; expected an integer or null"),
    ({"id2label": None, "num_labels": "3"}, "num_labels is '3'; expected an integer or null"),
    ({"id2label": None, "num_labels": 0}, "num_labels is 0; expected an integer >= 1"),
    ({"num_labels": []}, "num_labels is a list of 0; expected an integer or null"),
    ({"label2id": []}, "label2id is a list of 0; expected an object or null"),
    ({"label2id": "a"}, "label2id is 'a'; expected an object or null"),
    ({"label_ids_to_fuse": 3}, "label_ids_to_fuse is 3; expected a list or null"),
    ({"label_ids_to_fuse": ["1"]}, r"label_ids_to_fuse\[0\] is '1'; expected an integer"),
    ({"label_ids_to_fuse": [5]}, "label_ids_to_fuse has 5; expected ids of the 5 classes"),
    # the backbone of a no_timm model
    ({"backbone_config": 3}, "backbone_config is 3; expected an object or null"),
    ({"backbone_config": []}, "backbone_config is a list of 0; expected an object or null"),
    ({"backbone_config": {"model_type": []}}, "backbone_config has model_type a list of 0; expected 'resnet'"),
    (resnet(hidden_sizes=None), "backbone_config: hidden_sizes is null; expected a list"),
    (resnet(hidden_sizes=5), "backbone_config: hidden_sizes is 5; expected a list"),
    (resnet(hidden_sizes="abcd"), "backbone_config: hidden_sizes is 'abcd'; expected a list"),
    (resnet(hidden_sizes=[16, 24, 32, 0]), r"backbone_config: hidden_sizes\[3\] is 0; expected an integer >= 1"),
    (resnet(hidden_sizes=[16, 24, 32, "48"]), r"backbone_config: hidden_sizes\[3\] is '48'; expected an integer"),
    (resnet(hidden_sizes=[16, 24, 32, 10**6]), r"backbone_config: hidden_sizes\[3\] is 1000000; expected at most 65536"),
    (
        resnet(hidden_sizes=[16, 24]),
        "hidden_sizes and depths must be equally long, .*have 2 and 4 entries",
    ),
    (
        resnet(hidden_sizes=[], depths=[]),
        "hidden_sizes and depths must be equally long, .*have 0 and 0 entries",
    ),
    (resnet(hidden_sizes=[1, 1, 1, 1], layer_type="bottleneck"), "hidden_sizes has 1; expected at least 4"),
    (
        resnet(hidden_sizes=[8] * 2000, depths=[1] * 2000),
        "backbone_config: the sum of depths is 2000; expected at most",
    ),
    (resnet(depths=[-1, 1, 1, 1]), r"backbone_config: depths\[0\] is -1; expected an integer >= 1"),
    (resnet(depths=[1, 1, 1, True]), r"backbone_config: depths\[3\] is true; expected an integer"),
    (resnet(depths=[1, 1, 1, 1e9]), r"backbone_config: depths\[3\] is 1000000000.0; expected an integer"),
    (resnet(depths=[1, 1, 1, 10**9]), "backbone_config: the sum of depths is 1000000003; expected at most 1000"),
    (resnet(depths={"0": 1}), "backbone_config: depths is an object of 1; expected a list"),
    (resnet(depths=[[]]), r"backbone_config: depths\[0\] is a list of 0; expected an integer"),
    (resnet(embedding_size=0), "backbone_config: embedding_size is 0; expected an integer >= 1"),
    (resnet(embedding_size=10**6), "backbone_config: embedding_size is 1000000; expected at most 65536"),
    (resnet(num_channels="3"), "backbone_config: num_channels is '3'; expected an integer"),
    (resnet(layer_type=[]), "backbone_config: layer_type is a list of 0; expected text"),
    (resnet(hidden_act=None), "backbone_config: hidden_act is null; expected text"),
    (resnet(downsample_in_bottleneck="no"), "backbone_config: downsample_in_bottleneck is 'no'; expected true or false"),
    (resnet(out_features=3), "backbone_config: out_features is 3; expected a list or null"),
    (resnet(out_features=[3]), r"backbone_config: out_features\[0\] is 3; expected text"),
    (resnet(out_features=None, out_indices=3), "backbone_config: out_indices is 3; expected a list or null"),
    (resnet(out_features=None, out_indices=["1"]), r"backbone_config: out_indices\[0\] is '1'; expected an integer"),
    (resnet(out_features=None, out_indices=[9]), r"out_indices \[9\] do not fit 5 stages"),
    (resnet(out_features=None, out_indices=[]), "backbone_config: out_indices has 0 entries; expected 1 to 64"),
    # timm's backbones: names that it would look up elsewhere, and options that do harm
    *(
        ({**TIMM, "backbone": name}, "backbone is .*; expected the name of an architecture of timm")
        for name in (
            "hf-hub:someone/model",
            "hf_hub:someone/model",
            "local-dir:/tmp/model",
            "/etc/passwd",
            "../model",
            "someone/model",
            "timm://resnet50",
            "resnet50@main",
            "resnet50.",
            ".",
            "..",
            "",
            " resnet50",
            "resnet50\n",
            "r\u00e9snet",
            "x" * 1000,
        )
    ),
    ({**TIMM, "backbone": None}, "backbone is ''; expected the name of an architecture of timm"),
    ({**TIMM, "backbone_kwargs": 3}, "backbone_kwargs is 3; expected an object or null"),
    ({**TIMM, "backbone_kwargs": []}, "backbone_kwargs is a list of 0; expected an object or null"),
    ({**TIMM, "backbone_kwargs": {"checkpoint_path": "x"}}, "backbone_kwargs has 'checkpoint_path'; expected some of"),
    ({**TIMM, "backbone_kwargs": {"pretrained_cfg": {}}}, "backbone_kwargs has 'pretrained_cfg'; expected some of"),
    ({**TIMM, "backbone_kwargs": {"in_chans": 0}}, "backbone_kwargs: in_chans is 0; expected an integer >= 1"),
    ({**TIMM, "backbone_kwargs": {"in_chans": 10**6}}, "backbone_kwargs: in_chans is 1000000; expected at most 65536"),
    ({**TIMM, "backbone_kwargs": {"out_indices": 4}}, "backbone_kwargs: out_indices is 4; expected a list"),
    ({**TIMM, "backbone_kwargs": {"out_indices": []}}, "backbone_kwargs: out_indices has 0 entries; expected 1 to 64"),
    ({**TIMM, "backbone_kwargs": {"out_indices": ["a"]}}, r"backbone_kwargs: out_indices\[0\] is 'a'; expected an integer"),
    ({**TIMM, "backbone_kwargs": {"output_stride": "16"}}, "backbone_kwargs: output_stride is '16'; expected an integer"),
    ({**TIMM, "backbone_kwargs": {"drop_rate": 2}}, "backbone_kwargs: drop_rate is 2; expected a number <= 1.0"),
    ({"backbone_config": {**R18, "backbone": "hf-hub:a/b"}}, "backbone_config: backbone is 'hf-hub:a/b'; expected the name"),
    ({"backbone_config": {**R18, "backbone": None}}, "backbone_config: backbone is null; expected text"),
    ({"backbone_config": {**R18, "num_channels": -3}}, "backbone_config: num_channels is -3; expected an integer >= 1"),
    ({"backbone_config": {**R18, "num_channels": 10**6}}, "backbone_config: num_channels is 1000000; expected at most"),
    ({"backbone_config": {**R18, "out_indices": [1.5]}}, r"backbone_config: out_indices\[0\] is 1.5; expected an integer"),
    ({"backbone_config": {**R18, "out_indices": []}}, "backbone_config: out_indices has 0 entries; expected 1 to 64"),
    ({"backbone_config": {**R18, "output_stride": 0}}, "backbone_config: output_stride is 0; expected an integer >= 1"),
]


@pytest.mark.parametrize(("changes", "message"), CASES, ids=[f"{index}" for index in range(len(CASES))])
def test_a_field_that_no_detr_can_have(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^(backbone )?{message}") as caught:
        DetrConfig.from_dict({**models.TINY, **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_queries": "3"}, "num_queries is '3'; expected an integer"),
        ({"num_queries": 10**9}, "num_queries is 1000000000; expected at most 10000"),
        ({"dropout": 5}, "dropout is 5; expected a number <= 1.0"),
        ({"d_model": 0}, "d_model is 0; expected an integer >= 1"),
        ({"backbone_config": 3}, "backbone_config is 3; expected an object or null"),
        ({"num_labels": 10**9}, "num_labels is 1000000000; expected at most 100000"),
        ({"num_labels": "3"}, "num_labels is '3'; expected an integer or null"),
        ({"id2label": {"x": "a"}}, "id2label has the id 'x'; expected an integer"),
        ({"id2label": [1]}, "id2label is a list of 1; expected an object or null"),
        ({"label2id": 3}, "label2id is 3; expected an object or null"),
    ],
)
def test_a_change_in_python_is_checked_in_the_same_way(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    models.config().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"^{message}"):
        DetrConfig.from_pretrained(tmp_path, **changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "is nested too deeply; expected at most 64 levels"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "is nested too deeply; expected at most 64 levels"),
        (b'{"model_type": "detr", "x": ' + b"[" * 500 + b"]" * 500 + b"}", "is nested too deeply"),
        (b'{"model_type": "detr", "d_model": ' + b"9" * 5000 + b"}", "is not JSON: Integer value out of range"),
        (b'{"model_type": "detr", "x": ' + b"9" * 30 + b"}", "has an integer of 100 bits; expected at most 64"),
        (b'{"model_type": "detr", "dropout": NaN}', "is not JSON"),
        (b'{"model_type": "detr", "dropout": Infinity}', "is not JSON"),
        (b"\xff\xfe{\x00}\x00", "is not JSON"),
        (b"\x00" * 100, "is not JSON"),
        (b"", "is not JSON"),
        (b"null", "is null; expected an object"),
        (b'"detr"', "is 'detr'; expected an object"),
        (b"[]", "is a list of 0; expected an object"),
        (b'{"model_type": "' + b"x" * 10**6 + b'"}', "model_type is 'xxx.*; expected 'detr'"),
    ],
    ids=range(14),
)
def test_a_file_that_is_no_configuration(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"^{file}:? {message}") as caught:
        DetrConfig.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.timeout(30)
def test_a_pipe_a_device_and_a_folder_are_refused(tmp_path: Path) -> None:
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "config.json")
        with pytest.raises(CheckpointError, match=r"config\.json is not a regular file"):
            DetrConfig.from_pretrained(tmp_path)
    (tmp_path / "folder" / "config.json").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json"):
        DetrConfig.from_pretrained(tmp_path / "folder")


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as stream:
        stream.truncate(2**40)  # it has no content, and takes no space
    with pytest.raises(CheckpointError, match=r"config.json in bytes is 1099511627776; expected at most 67108864"):
        DetrConfig.from_pretrained(tmp_path)


def test_what_the_hub_has_stays_readable() -> None:
    """Null, integers in place of numbers, lists that are tuples, and fields that nobody knows."""
    document = {
        **models.TINY,
        "dilation": None,
        "backbone_kwargs": None,
        "use_pretrained_backbone": None,
        "bbox_cost": 5,
        "dropout": 0,
        "label2id": {"person": "1", "car": 3},
        "torch_dtype": "float32",
        "my_field": {"a": [None, {"b": 1.5}]},
        "architectures": ["DetrForObjectDetection"],
        "encoder_layers": 0,
    }
    config = DetrConfig.from_dict(document)
    assert config.extra["my_field"] == {"a": [None, {"b": 1.5}]}
    assert isinstance(config.bbox_cost, int)
    labels = MappingProxyType({0: "a", 1: "b"})
    assert config.with_classes(labels).id2label == DetrConfig(id2label=labels).id2label == {0: "a", 1: "b"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layout": None},
        resnet(layer_type="bottleneck", depths=[2, 3, 4, 5], hidden_sizes=[64, 128, 256, 512]),
        resnet(hidden_sizes=[8, 1000, 4, 700], depths=[1, 2, 3, 4], embedding_size=300, num_channels=64),
        {**TIMM, "backbone": "resnet152"},
        {**TIMM, "backbone": "resnet18", "num_channels": 1000},
        {"encoder_layers": 20, "encoder_ffn_dim": 5, "decoder_ffn_dim": 7},
        {"d_model": 4, "encoder_attention_heads": 1, "decoder_attention_heads": 1, "num_queries": 10_000},
        {"d_model": 1024, "decoder_layers": 1, "encoder_layers": 1, "position_embedding_type": "learned"},
        {"id2label": None, "num_labels": 30_000, "model_type": "table-transformer"},
        {"encoder_attention_heads": 32, "d_model": 32},
    ],
    ids=range(11),
)
def test_the_largest_number_of_parameters_is_one(changes: dict[str, Any]) -> None:
    config = DetrConfig.from_dict({**models.TINY, **changes})
    kind = DetrForSegmentation if (config.d_model + config.encoder_attention_heads) % 8 == 0 else DetrForObjectDetection
    with torch.device("meta"):
        found = sum(value.numel() for value in kind(config).state_dict().values())
    assert found <= config.most_parameters < 4 * found + 80_000_000


@pytest.mark.parametrize("d_model", [4, 8, 40, 24, 48, 520])
def test_a_mask_head_without_channels_or_groups(d_model: int) -> None:
    config = DetrConfig.from_dict({**models.TINY, "d_model": d_model, "encoder_attention_heads": 4 if d_model == 4 else 8})
    with torch.device("meta"), pytest.raises(CheckpointError, match=f"^d_model is {d_model}, and a mask head"):
        DetrForSegmentation(config)


CONFIGURATIONS = {
    "tiny": models.TINY,
    "timm": {"model_type": "detr", "backbone_kwargs": {"out_indices": [1, 2, 3, 4], "output_stride": 16}},
    "timm_backbone": {"model_type": "detr", "backbone_config": {**R18, "out_indices": [1, 2], "num_channels": 3}},
    **{
        name: json.loads((Path(detr_export.__file__).parent / name / "config.json").read_text())
        for name in ("demo_checkpoint", "demo_tables_checkpoint")
    },
}


@pytest.mark.parametrize("value", values.VALUES.values(), ids=values.VALUES.keys())
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_any_value_in_any_field_is_read_or_refused(name: str, value: Any) -> None:
    for field, document in values.mutated(CONFIGURATIONS[name], value):
        config = values.read_or_refused(DetrConfig.from_dict, document, field)
        if config is not None:
            DetrConfig.from_dict(config.to_dict())  # and can be written and used
            assert config.output_stride >= 1
            assert config.most_parameters > 0
