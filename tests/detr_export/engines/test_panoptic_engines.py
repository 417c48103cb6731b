"""Engines of a panoptic model in two files, on the double of TensorRT: compared together, and opened together."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_export.engines.build import build_engine
from detr_export.engines.gate import verify_engine
from detr_export.engines.options import EngineOptions
from detr_export.graphs.inspection import inspect_onnx
from detr_export.runtimes import ArtifactError, Predictor
from detr_export.runtimes.backends.tensorrt.profiles import EngineProfile, shape_profile, single_images
from detr_export.runtimes.backends.tensorrt.sidecar import read_sidecar, write_sidecar
from detr_export.runtimes.errors import OutputError
from detr_export.runtimes.mask_head import TwoGraphSession, mask_head_file
from tests.tensorrt_double import Knobs

SMALL = EngineProfile((1, 64, 64), (1, 96, 128), (2, 160, 160))
OPTIONS = EngineOptions(profiles=(SMALL,))


@pytest.fixture
def engine(tensorrt: Knobs, segmenter_onnx: Path, tmp_path: Path) -> Path:
    return build_engine(segmenter_onnx, tmp_path / "a.engine", OPTIONS).path


def test_two_engines_pass_the_gate_together(tensorrt: Knobs, segmenter_onnx: Path, tmp_path: Path) -> None:
    result = build_engine(segmenter_onnx, tmp_path / "a.engine", OPTIONS)
    names = ["a.engine", "a.engine.json", "a.masks.engine", "a.masks.engine.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert result.parity is not None
    assert result.parity.passed
    assert "pred_masks" in result.parity.max_abs_diff
    assert result.mask_head is not None
    assert result.mask_head.path == tmp_path / "a.masks.engine"
    assert f"{tmp_path}/a.masks.engine  " in result.summary()
    assert result.to_dict()["mask_head"]["path"] == str(tmp_path / "a.masks.engine")
    for file in (tmp_path / "a.engine", tmp_path / "a.masks.engine"):
        sidecar = read_sidecar(file)
        assert sidecar is not None
        assert sidecar.verified
    assert len(tensorrt.builds) == 2


def test_they_open_as_one_and_draw_what_the_file_draws(engine: Path, segmenter_onnx: Path, photo: Path) -> None:
    picture = Image.open(photo).convert("RGB").crop((0, 0, 200, 150))
    with Predictor.load(engine, "cuda") as predictor, Predictor.load(segmenter_onnx) as expected:
        assert isinstance(predictor.session, TwoGraphSession)
        threshold = float(np.median(expected.detect(picture, threshold=0).scores))
        ours, theirs = (each.segment_panoptic(picture, threshold) for each in (predictor, expected))
    assert [item.name for item in ours.segments] == [item.name for item in theirs.segments]
    assert (ours.map != theirs.map).mean() < 1e-3


def test_a_mask_head_of_another_file_is_refused(engine: Path, tmp_path: Path) -> None:
    beside = mask_head_file(engine)
    sidecar = read_sidecar(beside)
    assert sidecar is not None
    write_sidecar(beside, replace(sidecar, source_sha256="0" * 64))
    with pytest.raises(ArtifactError, match=r"a\.masks\.engine is not the mask head of a\.engine: its SHA-256 differs"):
        Predictor.load(engine, "cuda")
    beside.unlink()
    with pytest.raises(ArtifactError, match=r"a\.masks\.engine is missing: a\.engine draws its masks with it"):
        Predictor.load(engine, "cuda")


def test_verify_completes_both_sidecars(tensorrt: Knobs, segmenter_onnx: Path, tmp_path: Path) -> None:
    engine = build_engine(segmenter_onnx, tmp_path / "a.engine", replace(OPTIONS, verify=False)).path
    parity = verify_engine(engine)
    assert "pred_masks" in parity.to_dict()["max_abs_diff"]
    for file in (engine, mask_head_file(engine)):
        sidecar = read_sidecar(file)
        assert sidecar is not None
        assert sidecar.verified


@pytest.mark.usefixtures("tensorrt")
def test_what_cannot_be_built(segmenter_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"is the mask head of a model in two files; give the other one: segmenter\.onnx"
    ):
        build_engine(mask_head_file(segmenter_onnx), tmp_path / "a.engine", OPTIONS)
    alone = tmp_path / "alone.onnx"
    shutil.copy(segmenter_onnx, alone)
    with pytest.raises(ArtifactError, match=r"alone\.masks\.onnx is missing"):
        build_engine(alone, tmp_path / "a.engine", OPTIONS)
    (tmp_path / "a.masks.engine").write_bytes(b"old")
    with pytest.raises(OutputError, match=r"a\.masks\.engine exists; add --overwrite"):
        build_engine(segmenter_onnx, tmp_path / "a.engine", OPTIONS)
    assert not (tmp_path / "a.engine").exists()


def test_profiles_of_a_mask_head(segmenter_onnx: Path) -> None:
    """Feature maps of the images' sizes, for one image, and from one query to all."""
    inputs = inspect_onnx(mask_head_file(segmenter_onnx)).inputs
    (single,) = single_images([SMALL, replace(SMALL, maximum=(4, 160, 160))])
    shapes = shape_profile(single, inputs, 9).inputs
    assert shapes["query_states"] == ((1, 1, 32), (1, 9, 32), (1, 9, 32))
    assert shapes["mask_keys"] == ((1, 32, 2, 2), (1, 32, 3, 4), (1, 32, 5, 5))
    assert shapes["mask_pyramid_3"][2][2:] == (40, 40)
    assert shape_profile(single, inputs, 100).inputs["query_states"] == ((1, 1, 32), (1, 10, 32), (1, 100, 32))
