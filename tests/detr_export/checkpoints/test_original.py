"""Original `.pth` files against the parameter lists of the published checkpoints, and against a model turned into one.

`tests/data/*_keys.json.gz` hold name and shape of every parameter of the checkpoints that facebookresearch/detr and
transformers publish: facts, read off the files once.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detr_export import coco
from detr_export.checkpoints.original import convert, is_original
from detr_export.checkpoints.reading import load_checkpoint
from detr_export.config import DetrConfig
from detr_export.loading import load_model
from detr_export.modeling.detr import DetrForObjectDetection, DetrPreTrainedModel
from detr_export.runtimes.errors import CheckpointError
from detr_export.seeding import random_images
from tests import models

DATA = Path(__file__).parents[2] / "data"
Shapes = dict[str, list[int]]


def read_shapes(origin: str) -> dict[str, Shapes]:
    return json.loads(gzip.decompress((DATA / f"{origin}_keys.json.gz").read_bytes()))


ORIGINAL, HUB = read_shapes("facebookresearch"), read_shapes("transformers")
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "detr-resnet-50": {"backbone": "resnet50"},
    "detr-resnet-50-dc5": {"backbone": "resnet50", "dilation": True},
    "detr-resnet-101": {"backbone": "resnet101"},
    "detr-resnet-50 (no_timm)": {"use_timm_backbone": False},
}
TRAINING_ARGS = {"lr": 1e-4, "backbone": "resnet50", "dropout": 0.2, "nheads": 8, "dilation": False, "pre_norm": False}


def shapes(state_dict: dict[str, Tensor], counters: bool = True) -> Shapes:
    return {
        name: list(value.shape) for name, value in state_dict.items() if counters or not name.endswith("num_batches_tracked")
    }


def without_counters(listed: Shapes) -> Shapes:
    return {name: shape for name, shape in listed.items() if not name.endswith("num_batches_tracked")}


def tensors(listed: Shapes) -> dict[str, Tensor]:
    """A tensor of each shape, one number all over: in memory they take no more than that number."""
    return {name: torch.tensor(index / 8).expand(shape) for index, (name, shape) in enumerate(listed.items())}


# Undoes the conversion: hub name -> original name.
BACK = (
    (r"^model\.backbone\.conv_encoder\.model\.", "backbone.0.body."),
    (r"^model\.backbone\.position_embedding\.row_embeddings\.", "backbone.1.row_embed."),
    (r"^model\.backbone\.position_embedding\.column_embeddings\.", "backbone.1.col_embed."),
    (r"^model\.input_projection\.", "input_proj."),
    (r"^model\.query_position_embeddings\.", "query_embed."),
    (r"^class_labels_classifier\.", "class_embed."),
    (r"^bbox_predictor\.", "bbox_embed."),
    (r"^model\.(encoder|decoder)\.layernorm\.", r"transformer.\1.norm."),
    (r"^model\.", "transformer."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"(\.encoder\..*)\.final_layer_norm\.", r"\1.norm2."),
    (r"(\.decoder\..*)\.final_layer_norm\.", r"\1.norm3."),
    (r"\.encoder_attn\.", ".multihead_attn."),
    (r"\.fc1\.", ".linear1."),
    (r"\.fc2\.", ".linear2."),
)


def as_original(model: DetrForObjectDetection) -> dict[str, Tensor]:
    """The state dict of a model as the original training script saves it: query, key and value in one matrix."""
    result: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        for pattern, replacement in BACK:
            name = re.sub(pattern, replacement, name)
        if ".q_proj." in name:
            parts = [model.state_dict()[key] for key in _attention_keys(name, model)]
            result[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            result[name] = value
    return result


def _attention_keys(original: str, model: DetrForObjectDetection) -> list[str]:
    hub = original.replace("transformer.", "model.").replace(".multihead_attn.", ".encoder_attn.")
    keys = [hub.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
    assert set(keys) <= set(model.state_dict())
    return keys


@functools.cache
def small(**changes: Any) -> DetrForObjectDetection:
    values = {"backbone": "resnet18", "encoder_attention_heads": 8, "decoder_attention_heads": 8, **changes}
    return models.seeded(models.config(**values))


def save(path: Path, model: DetrForObjectDetection, args: dict[str, Any] | None = None, **extra: Any) -> Path:
    content = {"model": as_original(model), **extra}
    if args is not None:
        content["args"] = argparse.Namespace(**args)
    torch.save(content, path)
    return path


# ---- the published lists ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_our_parameters_are_those_of_the_hub(name: str) -> None:
    labels = coco.id2label(91)
    with torch.device("meta"):
        model = DetrForObjectDetection(DetrConfig(id2label=labels, **ARCHITECTURES[name]))
    assert shapes(model.state_dict(), counters=False) == without_counters(HUB[name])
    assert len(model.state_dict()) > 400


@pytest.mark.parametrize(
    ("original", "hub", "args", "dilation"),
    [
        ("detr_resnet50", "detr-resnet-50", None, None),
        ("detr_resnet50", "detr-resnet-50", TRAINING_ARGS, None),
        ("detr_resnet101", "detr-resnet-101", TRAINING_ARGS | {"backbone": "resnet101"}, False),
        ("detr_resnet50_dc5", "detr-resnet-50-dc5", TRAINING_ARGS | {"dilation": True}, None),
        ("detr_resnet50_dc5", "detr-resnet-50-dc5", None, True),
    ],
)
def test_published_files_convert_and_load(
    original: str,
    hub: str,
    args: dict[str, Any] | None,
    dilation: bool | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(DetrPreTrainedModel, "init_weights", lambda model: None)  # slow, and all is overwritten
    content: dict[str, Any] = {
        "model": {name: value.half().contiguous() for name, value in tensors(ORIGINAL[original]).items()}
    }
    if args is not None:
        content |= {"args": argparse.Namespace(**args), "epoch": 299, "optimizer": {"state": {}}, "lr_scheduler": {"a": 1}}
    torch.save(content, tmp_path / "original.pth")
    checkpoint = load_checkpoint(tmp_path / "original.pth", dilation)
    assert shapes(dict(checkpoint.state_dict), counters=False) == without_counters(HUB[hub])
    config = checkpoint.config
    assert config.backbone == ARCHITECTURES[hub]["backbone"]
    assert config.dilation == ARCHITECTURES[hub].get("dilation", False)
    assert (config.num_queries, config.d_model, config.encoder_layers, config.decoder_layers) == (100, 256, 6, 6)
    assert (config.encoder_ffn_dim, config.decoder_ffn_dim, config.encoder_attention_heads) == (2048, 2048, 8)
    assert config.dropout == (0.1 if args is None else 0.2)
    assert config.id2label == coco.id2label(91)
    model = load_model(checkpoint)
    assert torch.equal(model.bbox_predictor.layers[2].bias, content["model"]["bbox_embed.layers.2.bias"].float())
    (tmp_path / "original.pth").unlink()  # it has 80 MB


def test_the_panoptic_file_converts() -> None:
    config, converted = convert(tensors(ORIGINAL["detr_resnet50_panoptic"]), None, None)
    assert shapes(converted, counters=False) == without_counters(HUB["detr-resnet-50-panoptic"])
    assert any(name.startswith("detr.model.encoder.") for name in converted)
    assert config.num_labels == coco.PANOPTIC_LABELS


@pytest.mark.parametrize("name", ORIGINAL)
def test_recognises_original_names(name: str) -> None:
    assert is_original(ORIGINAL[name])


@pytest.mark.parametrize("name", HUB)
def test_recognises_other_names(name: str) -> None:
    assert not is_original(HUB[name])


def test_the_hubs_list_is_that_of_transformers() -> None:
    """The lists are facts about published files; this ties them to the library that reads those."""
    config = models.config(backbone="resnet50", encoder_layers=6, decoder_layers=6)
    with torch.device("meta"):
        oracle = models.oracle(config)
    assert set(shapes(oracle.state_dict(), counters=False)) == set(without_counters(HUB["detr-resnet-50"]))


# ---- numbers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{}, {"position_embedding_type": "learned"}, {"dilation": True}, {"model_type": "table-transformer"}],
    ids=str,
)
@torch.no_grad()
def test_a_converted_file_gives_the_models_outputs(changes: dict[str, Any], tmp_path: Path) -> None:
    model = small(**changes)
    file = save(tmp_path / "a.pth", model, {"nheads": 8, "dilation": changes.get("dilation", False)})
    checkpoint = load_checkpoint(file)
    assert checkpoint.config.position_embedding_type == model.config.position_embedding_type
    assert checkpoint.config.pre_norm == model.config.pre_norm
    assert checkpoint.config.id2label == {index: f"LABEL_{index}" for index in range(5)}
    pixel_values = torch.from_numpy(random_images((2, 3, 120, 150), seed=1))
    pixel_mask = torch.ones((2, 120, 150), dtype=torch.int64)
    pixel_mask[1, :, 70:] = 0
    given, expected = load_model(checkpoint)(pixel_values, pixel_mask), model(pixel_values, pixel_mask)
    assert torch.equal(given.logits, expected.logits)
    assert torch.equal(given.pred_boxes, expected.pred_boxes)


@torch.no_grad()
def test_dilation_changes_the_numbers(tmp_path: Path) -> None:
    """Or the test above would pass with a dilation that is read and forgotten."""
    file = save(tmp_path / "a.pth", small())
    pixel_values = torch.from_numpy(random_images((1, 3, 120, 150), seed=1))
    plain, dilated = (load_model(load_checkpoint(file, dilation))(pixel_values) for dilation in (False, True))
    assert (plain.logits - dilated.logits).abs().max() > 0.1


def test_heads_come_from_the_arguments(tmp_path: Path) -> None:
    config = load_checkpoint(save(tmp_path / "a.pth", small(), {"nheads": 4})).config
    assert config.encoder_attention_heads == config.decoder_attention_heads == 4


def test_arguments_may_be_a_dictionary(tmp_path: Path) -> None:
    """Forks of the training script store `vars(args)`; a DC5 model must not load undilated because of it."""
    torch.save({"model": as_original(small()), "args": {"nheads": 4, "dilation": True}}, tmp_path / "a.pth")
    config = load_checkpoint(tmp_path / "a.pth").config
    assert (config.dilation, config.encoder_attention_heads) == (True, 4)


def test_a_bare_state_dict(tmp_path: Path) -> None:
    torch.save(as_original(small()), tmp_path / "a.pth")
    load_model(load_checkpoint(tmp_path / "a.pth"))


@pytest.mark.parametrize(
    ("queries", "classes", "longest_edge", "names"),
    [(15, 2, 800, ("table", "table rotated")), (125, 6, 1000, ("table", "table spanning cell"))],
)
def test_table_transformers_bare_state_dicts(
    queries: int, classes: int, longest_edge: int, names: tuple[str, str], tmp_path: Path
) -> None:
    """microsoft/table-transformer's files: no arguments, pre-norm, and a size of their own."""
    labels = {str(index): f"LABEL_{index}" for index in range(classes)}
    make = small.__wrapped__  # past the cache, which takes no dictionary
    torch.save(as_original(make(model_type="table-transformer", num_queries=queries, id2label=labels)), tmp_path / "a.pth")
    checkpoint = load_checkpoint(tmp_path / "a.pth")
    assert checkpoint.config.pre_norm
    assert (checkpoint.config.num_queries, checkpoint.config.num_labels) == (queries, classes)
    assert (checkpoint.config.id2label[0], checkpoint.config.id2label[classes - 1]) == names
    assert checkpoint.processor.size == {"longest_edge": longest_edge}
    load_model(checkpoint)


def test_other_pre_norm_models_keep_detrs_processor(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save(tmp_path / "a.pth", small(model_type="table-transformer"), {"pre_norm": True}))
    assert checkpoint.config.pre_norm
    assert checkpoint.config.id2label[0] == "LABEL_0"
    assert checkpoint.processor.size == {"shortest_edge": 800, "longest_edge": 1333}


def test_the_default_processor(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save(tmp_path / "a.pth", small()))
    assert checkpoint.processor.size == {"shortest_edge": 800, "longest_edge": 1333}
    assert len(checkpoint.sha256) == 64


# ---- dilation -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "dilation", "expected"),
    [
        (None, None, False),
        (None, True, True),
        (None, False, False),
        ({"dilation": True}, None, True),
        ({"dilation": True}, True, True),
        ({"dilation": False}, None, False),
        ({"dilation": False}, False, False),
        ({"lr": 1}, True, True),
    ],
)
def test_dilation(args: dict[str, Any] | None, dilation: bool | None, expected: bool) -> None:
    namespace = None if args is None else argparse.Namespace(**args)
    assert convert(as_original(small()), namespace, dilation)[0].dilation is expected


@pytest.mark.parametrize("trained", [True, False])
def test_refuses_a_contradiction(trained: bool, tmp_path: Path) -> None:
    file = save(tmp_path / "a.pth", small(), {"dilation": trained})
    with pytest.raises(CheckpointError, match=rf"a.pth: .* say dilation={trained}; leave --dilation out"):
        load_checkpoint(file, not trained)


# ---- refusals -----------------------------------------------------------------------------------------------------------


def changed(**changes: Tensor | None) -> dict[str, Tensor]:
    """An original state dict with entries replaced, or removed where None; `__` stands for a dot."""
    state_dict = as_original(small())
    for name, value in changes.items():
        key = name.replace("__", ".")
        if value is None:
            del state_dict[key]
        else:
            state_dict[key] = value
    return state_dict


@pytest.mark.parametrize(
    ("state_dict", "args", "message"),
    [
        (
            changed(transformer__encoder__norm__weight=torch.ones(32)),
            {"pre_norm": False},
            "no --pre_norm, but the file has a",
        ),
        (changed(), {"pre_norm": True}, "--pre_norm, but the file has no parameter 'transformer.encoder.norm.weight'"),
        (changed(), {"nheads": 7}, "d_model 32 is not divisible by encoder_attention_heads 7"),
        (changed(), {"nheads": "many"}, "arguments: nheads is 'many'; expected an integer"),
        (changed(query_embed__weight=None), None, "the file has no parameter 'query_embed.weight'"),
        (changed(query_embed__weight=torch.zeros(5)), None, "is not a matrix"),
        (changed(class_embed__weight=torch.zeros(())), None, "is not a matrix"),
        (
            changed(transformer__encoder__layers__0__self_attn__in_proj_bias=torch.zeros(2)),
            None,
            r"in_proj_bias has shape \[2\]; expected rows of query, key and value",
        ),
        (
            changed(backbone__0__body__layer3__7__conv1__weight=torch.zeros(1)),
            None,
            r"the backbone has basic stages of \(2, 2, 3, 2\) blocks; expected one of resnet18",
        ),
    ],
)
def test_refuses(state_dict: dict[str, Tensor], args: dict[str, Any] | None, message: str, tmp_path: Path) -> None:
    torch.save({"model": state_dict, "args": argparse.Namespace(**(args or {}))}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(tmp_path / "a.pth")
    assert str(tmp_path / "a.pth") in str(caught.value)


def test_refuses_parameters_that_do_not_fit(tmp_path: Path) -> None:
    content = changed(strange__weight=torch.zeros(2), bbox_embed__layers__2__bias=torch.zeros(3))
    torch.save({"model": content}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"unexpected: strange.weight \[2\].*\[3\] instead of \[4\]"):
        load_model(load_checkpoint(tmp_path / "a.pth"))


def test_refuses_values_that_are_not_finite(tmp_path: Path) -> None:
    torch.save({"model": changed(class_embed__bias=torch.full((6,), float("nan")))}, tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError, match=r"a.pth holds NaN or infinite values in parameters: class_labels_classifier.bias"
    ):
        load_checkpoint(tmp_path / "a.pth")


# ---- labels -------------------------------------------------------------------------------------------------------------


def test_coco_labels_keep_their_gaps() -> None:
    things, panoptic = coco.id2label(91), coco.id2label(250)
    assert list(things) == list(range(91))
    assert list(panoptic) == list(range(250))
    assert (things[0], things[1], things[12], things[17], things[90]) == ("N/A", "person", "N/A", "cat", "toothbrush")
    assert sum(name != "N/A" for name in things.values()) == 80
    assert sum(name != "N/A" for name in panoptic.values()) == 133
    assert {index: panoptic[index] for index in things} == things
    assert (panoptic[92], panoptic[187], panoptic[200], panoptic[249]) == ("banner", "sky-other-merged", "rug-merged", "N/A")


def test_other_counts_get_numbers() -> None:
    assert coco.id2label(3) == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
