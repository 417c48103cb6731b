"""Checkpoints as transformers 5 writes them, and the outputs that it computes: see `tests/transformers5.py`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from detr_export.checkpoints.layouts import from_hub_names, to_hub_names
from detr_export.checkpoints.reading import load_checkpoint
from detr_export.config import TRANSFORMERS5, TRANSFORMERS5_NAMES, DetrConfig
from detr_export.graphs.export import ExportOptions, export_onnx
from detr_export.loading import load_model
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.modeling.pretrained import DetrPreTrainedModel
from detr_export.modeling.segmentation import DetrForSegmentation
from tests import transformers5

ARRAYS = np.load(transformers5.DATA)
RECORDS: dict[str, Any] = json.loads(ARRAYS["records"].tobytes())
NAMES = list(RECORDS["models"])
TOLERANCES = {"logits": 1e-4, "pred_boxes": 1e-5, "pred_masks": 3e-4}


@pytest.fixture(autouse=True)
def _no_fresh_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DetrPreTrainedModel, "init_weights", lambda model: None)  # slow, and all is overwritten


def written(name: str, folder: Path) -> Path:
    record = RECORDS["models"][name]
    return transformers5.write(folder, record["config"], record["files"])


def stored(folder: Path) -> dict[str, torch.dtype]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as stream:
            found |= {key: stream.get_tensor(key).dtype for key in stream.keys()}  # noqa: SIM118  # not a dictionary
    return found


def test_the_record_is_of_transformers_5() -> None:
    assert RECORDS["transformers"].startswith("5.")
    assert len(NAMES) >= 15


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_gives_the_outputs_of_transformers_5(name: str, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(written(name, tmp_path))
    model = load_model(checkpoint)
    inputs = transformers5.example()
    outputs = model(inputs["pixel_values"][:, : checkpoint.config.num_channels], inputs["pixel_mask"])
    for output, tolerance in TOLERANCES.items():
        if output in outputs:
            expected = ARRAYS[f"{name}/{output}"]
            assert np.abs(outputs[output].numpy() - expected).max() <= tolerance, output
            assert np.abs(expected[0] - expected[1]).max() > 1000 * tolerance, output
    assert ("pred_masks" in outputs) == ("panoptic" in name)


@pytest.mark.parametrize("name", NAMES)
def test_is_written_back_as_it_was_read(name: str, tmp_path: Path) -> None:
    folder = written(name, tmp_path / "given")
    checkpoint = load_checkpoint(folder)
    load_model(checkpoint).save_pretrained(tmp_path / "again")
    counters = {key for key in stored(folder) if key.endswith("num_batches_tracked")}
    assert set(stored(tmp_path / "again")) == set(stored(folder)) - counters
    assert set(stored(tmp_path / "again").values()) == {torch.float32}
    given, again = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "again"))
    changed = {"dtype": "float32", "dilation": again["dilation"], "label2id": again["label2id"]}
    assert {key: again.get(key) for key in given} == {**given, **changed}
    assert not {"use_timm_backbone", "backbone_kwargs", "torch_dtype"} & set(again)
    assert bool(again["dilation"]) == (name == "dc5")
    assert DetrConfig.from_pretrained(tmp_path / "again").output_stride == (16 if name == "dc5" else 32)


@pytest.mark.parametrize("name", ["no_timm", "panoptic no_timm"])
def test_exports_with_no_option_and_passes_the_gate(name: str, tmp_path: Path) -> None:
    result = export_onnx(load_checkpoint(written(name, tmp_path / "given")), tmp_path / "a.onnx", ExportOptions())
    assert result.parity is not None
    assert result.parity.passed
    assert result.parity.cases == 8


@pytest.mark.parametrize("segmentation", [False, True])
def test_every_parameter_is_renamed_and_back(segmentation: bool) -> None:
    config = DetrConfig.from_dict(json.loads(RECORDS["models"]["own names panoptic"]["config"]))
    assert config.layout == TRANSFORMERS5  # a configuration does not say how the parameters are named
    kind = DetrForSegmentation if segmentation else DetrForObjectDetection
    with torch.device("meta"):
        model = kind(config)
    theirs = from_hub_names(model.state_dict(), replace(config, layout=TRANSFORMERS5_NAMES))
    assert sum(name not in theirs for name in model.state_dict()) > 90
    assert set(to_hub_names(theirs)) == set(model.state_dict())
    assert len(theirs) == len(model.state_dict())
