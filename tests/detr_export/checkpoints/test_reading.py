"""Checkpoints in every layout that transformers writes, and in every state of damage."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from detr_export.checkpoints.reading import load_checkpoint, read_weights
from detr_export.loading import load_model
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.runtimes.errors import CheckpointError
from detr_export.seeding import random_images
from tests import models

LOGITS_ATOL, BOXES_ATOL = 1e-4, 1e-5
LAYOUTS = {
    "safetensors": ({}, {"model.safetensors"}),
    "sharded": ({"max_shard_size": "100KB"}, {"model.safetensors.index.json"}),
    "bin": ({"safe_serialization": False}, {"pytorch_model.bin"}),
    "sharded-bin": ({"safe_serialization": False, "max_shard_size": "100KB"}, {"pytorch_model.bin.index.json"}),
}


@torch.no_grad()
def assert_same_model(source: str | Path, expected: transformers.DetrForObjectDetection, atol: float = LOGITS_ATOL) -> None:
    """Loads `source` and compares its outputs with the oracle's on a padded batch."""
    checkpoint = load_checkpoint(source)
    assert {value.dtype for value in checkpoint.state_dict.values() if value.is_floating_point()} == {torch.float32}
    pixel_values = torch.from_numpy(random_images((2, 3, 90, 121), seed=1))
    pixel_mask = torch.ones((2, 90, 121), dtype=torch.int64)
    pixel_mask[1, 50:] = 0
    given, wanted = load_model(checkpoint)(pixel_values, pixel_mask), expected(pixel_values, pixel_mask)
    assert (given.logits - wanted.logits).abs().max() <= atol
    assert (given.pred_boxes - wanted.pred_boxes).abs().max() <= BOXES_ATOL
    assert (wanted.logits[0] - wanted.logits[1]).abs().max() > 100 * atol


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint, to be changed."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def change_weights(directory: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = directory / "model.safetensors"
    save_file({name: value.contiguous() for name, value in change(load_file(file)).items()}, file)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reads_what_transformers_writes(layout: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    options, files = LAYOUTS[layout]
    oracle = transformers.DetrForObjectDetection.from_pretrained(tiny_checkpoint).eval()
    oracle.save_pretrained(tmp_path / layout, **options)
    written = {path.name for path in (tmp_path / layout).iterdir()}
    assert files <= written
    assert len(written) > 4 or "sharded" not in layout  # several shards, or it tests nothing
    assert_same_model(tmp_path / layout, oracle)


@torch.no_grad()
def test_a_timm_backbone_behind_transformers_4s_own_class(tmp_path: Path) -> None:
    """`backbone_config` of `timm_backbone` with transformers 4: one more level in the names of the backbone's parameters."""
    described = transformers.TimmBackboneConfig("resnet18", out_indices=(1, 2, 3, 4), use_pretrained_backbone=False)
    names = ("d_model", "encoder_attention_heads", "decoder_attention_heads", "num_queries")
    sizes = {name: models.TINY[name] for name in names}
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=described, **sizes
    )
    oracle = transformers.DetrForObjectDetection(config).eval()
    oracle.save_pretrained(tmp_path)
    assert "model.backbone.conv_encoder.model._backbone.conv1.weight" in load_file(tmp_path / "model.safetensors")
    assert_same_model(tmp_path, oracle)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_loaded_as_float32(dtype: torch.dtype, tiny_checkpoint: Path, tmp_path: Path) -> None:
    half = transformers.DetrForObjectDetection.from_pretrained(tiny_checkpoint).to(dtype)
    half.save_pretrained(tmp_path / "half")
    assert {value.dtype for value in load_file(tmp_path / "half" / "model.safetensors").values()} == {dtype}
    assert_same_model(tmp_path / "half", half.float().eval())


def test_a_checkpoint_saved_in_half_precision(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = DetrForObjectDetection.from_pretrained(tiny_checkpoint)
    model.save_pretrained(tmp_path / "half", fp16=True)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "half", tiny_checkpoint)]
    assert sizes[0] < 0.65 * sizes[1]  # of a tiny model the names are a good part
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {value.dtype for value in stored.values() if value.dim() > 1} == {torch.float16}
    loaded = load_checkpoint(tmp_path / "half").state_dict
    for name, value in model.state_dict().items():
        assert torch.equal(loaded[name], value.half().float() if value.dim() > 1 else value), name


def test_processor_and_labels_come_along(tiny_checkpoint: Path, copy: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    assert checkpoint.processor.size == models.SIZE
    assert checkpoint.config.id2label == models.LABELS
    assert checkpoint.task == "detection"
    assert checkpoint.source == str(tiny_checkpoint)
    (copy / "preprocessor_config.json").unlink()
    assert load_checkpoint(copy).processor.size == {"shortest_edge": 800, "longest_edge": 1333}


def test_checksum_is_of_the_weights(tiny_checkpoint: Path, copy: Path) -> None:
    models.edit_config(copy, dropout=0.3)
    assert load_checkpoint(copy).sha256 == load_checkpoint(tiny_checkpoint).sha256
    change_weights(copy, lambda weights: {name: value + 1 for name, value in weights.items()})
    assert load_checkpoint(copy).sha256 != load_checkpoint(tiny_checkpoint).sha256


def test_safetensors_win_over_a_bin_file(copy: Path) -> None:
    (copy / "pytorch_model.bin").write_bytes(b"not read")
    assert load_checkpoint(copy).state_dict


# ---- the hub ------------------------------------------------------------------------------------------------------------

REPOSITORY, COMMIT, OTHER = "someone/tiny-detr", "1" * 40, "2" * 40


@pytest.fixture
def hub(hub_cache: Path, tiny_checkpoint: Path) -> Path:
    """The tiny checkpoint in the hub's cache, with another dropout at revision `v2`."""
    models.publish(hub_cache, REPOSITORY, tiny_checkpoint, revision="main", commit=COMMIT)
    changed = models.publish(hub_cache, REPOSITORY, tiny_checkpoint, revision="v2", commit=OTHER)
    models.edit_config(changed, dropout=0.4)
    return hub_cache / "models--someone--tiny-detr"


def test_hub_id_offline(hub: Path, tiny_checkpoint: Path) -> None:
    assert_same_model(REPOSITORY, transformers.DetrForObjectDetection.from_pretrained(tiny_checkpoint).eval())
    checkpoint = load_checkpoint(REPOSITORY)
    assert checkpoint.source == REPOSITORY
    assert checkpoint.processor.size == models.SIZE


@pytest.mark.parametrize(("revision", "dropout"), [(None, 0.1), ("main", 0.1), ("v2", 0.4), (COMMIT, 0.1), (OTHER, 0.4)])
def test_hub_revision(hub: Path, revision: str | None, dropout: float) -> None:
    assert load_checkpoint(REPOSITORY, revision=revision).config.dropout == dropout


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hub_layouts_offline(hub: Path, tiny_checkpoint: Path, layout: str) -> None:
    snapshot = hub / "snapshots" / COMMIT
    (snapshot / "model.safetensors").unlink()
    oracle = transformers.DetrForObjectDetection.from_pretrained(tiny_checkpoint).eval()
    oracle.save_pretrained(snapshot, **LAYOUTS[layout][0])
    assert_same_model(REPOSITORY, oracle)


def test_hub_weights_missing_offline(hub: Path) -> None:
    (hub / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no weights; expected one of model.safetensors"):
        load_checkpoint(REPOSITORY)


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("someone/else", None, "someone/else is neither an existing path nor in the hub's cache"),
        (REPOSITORY, "v3", "nor in the hub's cache"),
        ("./nothing", None, "neither an existing path nor a hub id"),
        ("/no/such/directory", None, "neither an existing path nor a hub id"),
        ("a b", None, "neither an existing path nor a hub id"),
        ("a" * 300, None, "neither an existing path nor a hub id"),
        ("~nobody-of-this-name/x", None, "neither an existing path nor a hub id"),
        ("model.pth", None, "model.pth does not exist; expected"),
        ("folder/model.onnx", None, "model.onnx does not exist; expected"),
    ],
)
def test_refuses_names(hub: Path, name: str, revision: str | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(name, revision=revision)


# ---- damage -------------------------------------------------------------------------------------------------------------

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LFS_POINTER, "is a Git-LFS pointer, not the weights; run: git lfs pull"),
        (b"", "is empty"),
        (b"hello", "is truncated or not a"),
        (b"<!DOCTYPE html><html></html>", "is truncated or not a"),
        (b"PK\x03\x04 not a zip archive", "is truncated or not a"),
        (b"\x80\x04K\x01.", "is truncated or not a|holds no state dict"),
    ],
    ids=["lfs", "empty", "text", "html", "zip", "pickle"],
)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "original.pth"])
def test_refuses_files(copy: Path, name: str, content: bytes, message: str) -> None:
    (copy / "model.safetensors").unlink()
    (copy / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(copy / name if name.endswith(".pth") else copy)
    assert str(copy / name) in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "original.pth"])
def test_refuses_truncated_pickles(copy: Path, name: str, zipped: bool) -> None:
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / name, _use_new_zipfile_serialization=zipped)
    whole = (copy / name).read_bytes()
    for length in [*range(1, 60), 200, 1000, len(whole) // 2, len(whole) - 1]:
        (copy / name).write_bytes(whole[:length])
        with pytest.raises(
            CheckpointError, match=f"{name} (is truncated|holds objects other)"
        ):  # a name cut short is another
            load_checkpoint(copy / name if name.endswith(".pth") else copy)


def test_refuses_truncated_safetensors(copy: Path) -> None:
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    for length in (1, 8, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or not a safetensors file"):
            load_checkpoint(copy)


class Malicious:
    """Unpickled carelessly, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "original.pth"])
def test_never_runs_what_a_pickle_says(copy: Path, name: str, zipped: bool) -> None:
    (copy / "model.safetensors").unlink()
    content = {"model": {"transformer.a": torch.zeros(1)}, "args": Malicious(copy / "made")}
    torch.save(content, copy / name, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="holds objects other than tensors and was not loaded") as caught:
        load_checkpoint(copy / name if name.endswith(".pth") else copy)
    assert not (copy / "made").exists()
    assert "weights_only" not in str(caught.value)  # torch offers to load it unsafely; we do not


@pytest.mark.parametrize(
    "content", [torch.zeros(2), [1], {}, {"model": {}}, {"a": {"b": torch.zeros(1)}}, {1: torch.zeros(1)}, {"a": "b"}]
)
def test_refuses_what_is_no_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: the file('s state dict)? holds") as caught:
        load_checkpoint(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_weights_that_are_not_finite(copy: Path, value: float) -> None:
    name = "model.decoder.layernorm.weight"
    change_weights(copy, lambda weights: {**weights, name: torch.full_like(weights[name], value)})
    with pytest.raises(CheckpointError, match=f"model.safetensors holds NaN or infinite values in parameters: {name}"):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "yolos"}, "model_type is 'yolos'; expected 'detr'"),
        ({"model_type": "conditional_detr"}, "model_type is 'conditional_detr'"),
        ({"position_embedding_type": "rope"}, "position_embedding_type is 'rope'"),
    ],
)
def test_refuses_configurations(copy: Path, changes: dict[str, str], message: str) -> None:
    models.edit_config(copy, **changes)
    with pytest.raises(CheckpointError, match=f"config.json: {message}"):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "config.json does not exist; a checkpoint directory needs"),
        ("config.json", "{", "config.json is not JSON"),
        ("model.safetensors", None, "holds no weights; expected one of model.safetensors"),
        ("preprocessor_config.json", "{", "preprocessor_config.json is not"),
        ("preprocessor_config.json", '{"size": "big"}', "preprocessor_config.json"),
        ("preprocessor_config.json", '{"image_processor_type": "YolosImageProcessor"}', "of a YolosImageProcessor"),
    ],
)
def test_refuses_directories(copy: Path, name: str, content: str | None, message: str) -> None:
    (copy / name).unlink() if content is None else (copy / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(copy)


def test_lists_parameters_that_do_not_fit(copy: Path) -> None:
    def change(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        weights["strange.weight"] = torch.zeros(2, 3)
        weights["bbox_predictor.layers.2.bias"] = torch.zeros(7)
        weights["bbox_predictor.layers.1.bias"] = torch.zeros(32, dtype=torch.int8)
        del weights["model.decoder.layernorm.bias"]
        return weights

    change_weights(copy, change)
    with pytest.raises(CheckpointError) as caught:
        load_model(load_checkpoint(copy))
    assert "missing: model.decoder.layernorm.bias [32]" in str(caught.value)
    assert "unexpected: strange.weight [2, 3]" in str(caught.value)
    assert "of another shape: bbox_predictor.layers.2.bias [7] instead of [4]" in str(caught.value)
    assert "not floating point: bbox_predictor.layers.1.bias torch.int8" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_long_list_is_cut_short(copy: Path) -> None:
    models.edit_config(copy, decoder_layers=3)
    with pytest.raises(CheckpointError, match=r"missing: model.decoder.layers.2.* and 18 more"):
        load_model(load_checkpoint(copy))


def test_refuses_a_base_model(tiny_checkpoint: Path, copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    transformers.DetrForObjectDetection.from_pretrained(tiny_checkpoint).model.save_pretrained(copy)
    with pytest.raises(CheckpointError, match=r"has no detection head .* expected a checkpoint of DetrForObjectDetection"):
        load_model(load_checkpoint(copy))


def test_batch_counters_are_no_parameters(copy: Path) -> None:
    name = "model.backbone.conv_encoder.model.embedder.embedder.normalization.num_batches_tracked"
    change_weights(copy, lambda weights: {**weights, name: torch.tensor(5)})
    load_model(load_checkpoint(copy))


# ---- shards -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"weight_map": {"a": "model-00001-of-00009.safetensors"}}', "model-00001-of-00009.safetensors, which is missing"),
        ('{"weight_map": {"a": "../outside.safetensors"}}', "expected names inside its own directory"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "expected names inside its own directory"),
        ('{"weight_map": {"a": ".."}}', "expected names inside its own directory"),
        ('{"weight_map": {"a": 1}}', r"is not an index of weight files: weight_map\['a'\] is 1; expected text"),
        ('{"weight_map": ["a"]}', "is not an index of weight files"),
        ('{"metadata": {}}', "is not an index of weight files"),
        ("[]", "is not an index of weight files"),
        ("{", "is not an index of weight files"),
        ("", "is empty"),
        (LFS_POINTER.decode(), "is a Git-LFS pointer"),
    ],
)
def test_refuses_indices(copy: Path, index: str, message: str) -> None:
    shutil.move(copy / "model.safetensors", copy.parent / "outside.safetensors")
    (copy / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(copy)
    assert "model.safetensors.index.json" in str(caught.value)


def test_a_truncated_shard_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    oracle = transformers.DetrForObjectDetection.from_pretrained(tiny_checkpoint)
    oracle.save_pretrained(tmp_path, max_shard_size="100KB")
    shards = sorted(set(json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"].values()))
    assert len(shards) > 1
    shard = tmp_path / shards[1]
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=f"{shards[1]} is truncated"):
        load_checkpoint(tmp_path)


def test_read_weights_merges(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, dtype=torch.float16)}, tmp_path / "1.safetensors")
    torch.save({"b": torch.ones(1)}, tmp_path / "2.bin")
    merged = read_weights([tmp_path / "1.safetensors", tmp_path / "2.bin"])
    assert {name: value.dtype for name, value in merged.items()} == {"a": torch.float32, "b": torch.float32}


# ---- options ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dilation", [True, False])
def test_dilation_goes_with_pth_files(tiny_checkpoint: Path, dilation: bool) -> None:
    with pytest.raises(CheckpointError, match=r"--dilation goes with an original .pth file"):
        load_checkpoint(tiny_checkpoint, dilation)


def test_revision_goes_with_hub_ids(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a directory; --revision goes with a hub id"):
        load_checkpoint(tiny_checkpoint, revision="main")
    (tmp_path / "a.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is a file; --revision goes with a hub id"):
        load_checkpoint(tmp_path / "a.pth", revision="main")


def test_refuses_other_files(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("model.onnx", "model.engine", "model.plan", "model.trt"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(CheckpointError, match=f"{name} is an exported file; expected a checkpoint"):
            load_checkpoint(tmp_path / name)
    for name in ("model.safetensors", "config.json"):
        with pytest.raises(CheckpointError, match=f"{name} is one file of a checkpoint; give the directory"):
            load_checkpoint(tiny_checkpoint / name)


def test_refuses_a_state_dict_with_the_hubs_names_as_pth(tiny_checkpoint: Path, tmp_path: Path) -> None:
    torch.save(load_file(tiny_checkpoint / "model.safetensors"), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a.pth: the parameter names are not those of facebookresearch/detr"):
        load_checkpoint(tmp_path / "a.pth")
