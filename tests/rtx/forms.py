"""The forms of files that are compiled for real: models, and how they are exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.engines.kernels import attentions_of
from detr_export.graphs.export import ExportOptions, export_onnx
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.runtimes.backends.tensorrt.end_to_end import profiles_of_file
from detr_export.runtimes.metadata import Metadata
from detr_export.seeding import seed_weights
from tests import models
from tests.rtx.compiler import Compiled, Compiler

# Heads of 16 channels, the smallest that TensorRT fuses.
WIDE = {"d_model": 128, "encoder_attention_heads": 8, "decoder_attention_heads": 8, "num_queries": 20}
MODELS: dict[str, dict[str, Any]] = {
    "detection": {"backbone": "resnet18"},
    "panoptic": {},
    "dc5": {"backbone": "resnet50", "dilation": True},
    "no_timm": {},
    "pre_norm": {"pre_norm": True},
}
ATTENTIONS = 5  # of two encoder and two decoder layers: the first decoder layer's own is a constant

MakeFile = Callable[..., Path]


@pytest.fixture(scope="session")
def make_file(tmp_path_factory: pytest.TempPathFactory) -> MakeFile:
    """Exports a form of one of `MODELS`, without a comparison: other tests make those."""
    folder = tmp_path_factory.mktemp("forms")
    made_before: dict[Path, dict[str, Any]] = {}

    def make(model: str, name: str, changes: dict[str, Any] | None = None, **options: Any) -> Path:
        checkpoint = folder / f"{model}-{sorted((changes or {}).items())}"
        if not checkpoint.exists():
            kind = DetrForSegmentation if model == "panoptic" else DetrForObjectDetection
            made = kind(models.config(**{**WIDE, **MODELS[model], **(changes or {})}))
            seed_weights(made)
            made.save_pretrained(checkpoint)
        file = folder / f"{checkpoint.name}-{name}.onnx"
        if file in made_before:  # by another module's test
            assert made_before[file] == options, name
        else:
            export_onnx(load_checkpoint(checkpoint), file, ExportOptions(verify=False, **options))
            made_before[file] = options
        return file

    return make


def compiled(file: Path, compiler: Compiler, max_batch: int = 1) -> Compiled:
    """The file, compiled for the profiles that `detr-export trt` derives."""
    (document,) = [item.value for item in onnx.load(str(file)).metadata_props]
    profiles = profiles_of_file(Metadata.from_json(document), max_batch)
    return compiler.compile_form(file, [str(profile) for profile in profiles])


def check(made: Compiled, file: Path, profiles: int = 3, fused: int = ATTENTIONS) -> None:
    """What holds for every form: its types, and how many attentions are fused."""
    report, attestation = made.report, made.attestation
    assert attestation["profiles"] == profiles
    assert attestation["attested"] > 0.9 * attestation["total"]
    assert report["attentions"] == len(attentions_of(onnx.load(str(file)))) == ATTENTIONS
    assert report["fused_attentions"] == fused
    assert attestation["attentions"] == ({"fp16": fused * profiles} if fused else {})
