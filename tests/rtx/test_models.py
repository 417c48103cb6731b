"""Every kind of model in every precision through the real compiler, with free batch, height and width."""

from __future__ import annotations

from typing import Any

import pytest

from tests.rtx.compiler import Compiler
from tests.rtx.forms import ATTENTIONS, MODELS, MakeFile, check, compiled

PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp16": {"precision": "fp16"},
    "fp16_io": {"precision": "fp16", "fp16_io": True},
    "fp32_attention": {"precision": "fp16", "keep_fp32": "attention"},
    "fp32_transformer": {"precision": "fp16", "keep_fp32": "transformer"},
}
WHOLE = ("no_timm", "panoptic")  # the models of which every precision is compiled


@pytest.mark.parametrize(
    ("model", "precision"),
    [(model, precision) for model in MODELS for precision in PRECISIONS if model in WHOLE or precision in ("fp32", "fp16")],
)
def test_a_model(model: str, precision: str, make_file: MakeFile, rtx_compiler: Compiler) -> None:
    options = PRECISIONS[precision]
    file = make_file(model, precision, **options)
    made = compiled(file, rtx_compiler)
    check(made, file, fused=ATTENTIONS if precision in ("fp16", "fp16_io") else 0)
    assert made.sidecar.precision == options.get("precision", "fp32")
    assert (made.mask_head is not None) == (model == "panoptic")
    if made.mask_head is not None:
        assert made.mask_head.precision == made.sidecar.precision
        assert made.mask_head.profiles == made.sidecar.profiles
