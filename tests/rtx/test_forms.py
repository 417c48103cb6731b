"""Every form of file through the real compiler, with dynamic batch, height and width over all default profiles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.engines.kernels import attentions_of
from detr_export.graphs.export import ExportOptions, export_onnx
from detr_export.graphs.tensorrt import rewrite_for_8_5
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.runtimes.backends.tensorrt.profiles import default_profiles
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
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp16": {"precision": "fp16"},
    "fp16_io": {"precision": "fp16", "fp16_io": True},
    "fp32_attention": {"precision": "fp16", "keep_fp32": "attention"},
    "fp32_transformer": {"precision": "fp16", "keep_fp32": "transformer"},
}
FORMS: dict[str, dict[str, Any]] = {
    "attentions": {"attentions": True},
    "no_mask": {"pixel_mask": False},
    "uint8": {"input": "uint8"},
    "uint8_no_mask": {"input": "uint8", "pixel_mask": False},
    "opset_17": {"opset": 17},
    "opset_20": {"opset": 20},
    "opset_23": {"opset": 23},
    "not_simplified": {"simplify": False},
}

MakeFile = Callable[..., Path]


@pytest.fixture(scope="module")
def make_file(tmp_path_factory: pytest.TempPathFactory) -> MakeFile:
    """Exports a form of one of `MODELS`."""
    folder = tmp_path_factory.mktemp("forms")

    def make(model: str, name: str, **options: Any) -> Path:
        checkpoint = folder / model
        if not checkpoint.exists():
            kind = DetrForSegmentation if model == "panoptic" else DetrForObjectDetection
            made = kind(models.config(**WIDE, **MODELS[model]))
            seed_weights(made)
            made.save_pretrained(checkpoint)
        return export_onnx(
            load_checkpoint(checkpoint), folder / f"{model}-{name}.onnx", ExportOptions(verify=False, **options)
        ).path

    return make


def compiled(file: Path, compiler: Compiler) -> Compiled:
    """The file, compiled for the profiles that `detr-export trt` derives."""
    about = Metadata.from_json(next(item.value for item in onnx.load(str(file)).metadata_props))
    profiles = [str(profile) for profile in default_profiles(about.processor, max_batch=2)]
    assert len(profiles) == 6
    return compiler.compile_form(file, profiles)


def check(made: Compiled, file: Path, precision: str) -> None:
    """What holds for every form: its types, and that attentions are fused unless they are fp32."""
    report, attestation = made.report, made.attestation
    assert attestation["profiles"] == 6
    assert attestation["attested"] > 0.9 * attestation["total"]
    graph = onnx.load(str(file))
    assert report["attentions"] == len(attentions_of(graph)) == 5  # the first decoder layer's own is a constant
    half = precision in ("fp16", "fp16_io")
    assert report["fused_attentions"] == (5 if half else 0)
    assert made.sidecar.precision == ("fp32" if precision == "fp32" else "fp16")
    if half:
        assert attestation["attentions"] == {"fp16": 5 * 6}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", MODELS)
def test_a_model(model: str, precision: str, make_file: MakeFile, rtx_compiler: Compiler) -> None:
    file = make_file(model, precision, **PRECISIONS[precision])
    check(compiled(file, rtx_compiler), file, precision)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("form", FORMS)
def test_a_form(form: str, precision: str, make_file: MakeFile, rtx_compiler: Compiler) -> None:
    options = FORMS[form]
    if precision == "fp16" and form == "not_simplified":
        pytest.skip("fp16 is made from the simplified graph")
    file = make_file("no_timm", f"{form}-{precision}", precision=precision, **options)
    check(compiled(file, rtx_compiler), file, precision)


def test_panoptic_uint8(make_file: MakeFile, rtx_compiler: Compiler) -> None:
    file = make_file("panoptic", "uint8", precision="fp16", input="uint8")
    check(compiled(file, rtx_compiler), file, "fp16")
