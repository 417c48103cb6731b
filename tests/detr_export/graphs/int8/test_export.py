"""An int8 file from its checkpoint to its place: what it says of itself, how it runs, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.engines.gate import require_judgeable
from detr_export.graphs import export
from detr_export.graphs.export import ExportOptions, export_onnx, exported, verify_file
from detr_export.graphs.inspection import inspect_onnx
from detr_export.graphs.int8.options import Int8Options
from detr_export.graphs.int8.pictures import find_pictures
from detr_export.graphs.parts import Parts
from detr_export.runtimes import Predictor
from detr_export.runtimes.errors import ArtifactError, InputError, VerificationError
from detr_export.runtimes.metadata import Metadata, Quantization


@pytest.fixture(scope="module")
def int8_file(segmenter: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("int8") / "int8.onnx"
    options = ExportOptions(precision="int8", int8=Int8Options(find_pictures(pictures, 3)), verify=False)
    result = export_onnx(load_checkpoint(segmenter), output, options)
    assert result.int8 is not None
    assert result.summary().count("  float: ") == len(result.int8.quantization.kept_float)
    assert "layers are int8, calibrated on 3 pictures by percentile, the rest is fp32" in result.summary()
    json.dumps(result.to_dict())
    return result.path


def test_what_the_file_says(int8_file: Path) -> None:
    about = inspect_onnx(str(int8_file))
    assert about.metadata is not None
    assert about.metadata.precision == "int8"
    assert about.metadata.parity is None
    found = about.metadata.quantization
    assert found is not None
    assert (found.scope, found.method, found.images, found.float_precision) == ("encoder", "percentile", 3, "fp32")
    assert "detr.model.backbone.conv_encoder.model.embedder.embedder.convolution" in found.kept_float
    assert found.accuracy is found.float_parity is None
    assert "int8       scope encoder, the rest fp32; percentile on 3 pictures" in about.summary()
    assert "not scored" in about.summary()


@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_it_predicts(device: str, int8_file: Path, float_file: Path, pictures: Path) -> None:
    picture = sorted(pictures.iterdir())[0]
    with Predictor.load(int8_file, device) as predictor, Predictor.load(float_file) as exact:
        found, segmentation = predictor.detect_and_segment(str(picture), 0.0)
        truth = exact.detect(str(picture), 0.0)
    assert len(found) == len(truth)
    assert segmentation.map.shape == (60, 90)
    assert np.abs(np.sort(found.scores) - np.sort(truth.scores)).mean() < 0.3


def test_numbers_cannot_verify_it(int8_file: Path, segmenter: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is int8, which no comparison of numbers can judge; measure its accuracy with"):
        verify_file(int8_file, str(segmenter))
    with pytest.raises(ArtifactError, match=r"a\.engine computes in int8, .*; add --no-verify to a build"):
        require_judgeable("int8", "a.engine")
    require_judgeable("fp16", "a.engine")
    options = ExportOptions(precision="int8", int8=Int8Options(find_pictures(pictures)))
    with pytest.raises(ArtifactError, match="its accuracy has to be measured"):
        export_onnx(load_checkpoint(segmenter), tmp_path / "a.onnx", options)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_float_graph_is_refused_before_it_is_quantised(
    segmenter: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = export._make_parts

    def damaged(*arguments: Any) -> Parts:
        parts = made(*arguments)
        tensor = next(item for item in parts.model.graph.initializer if item.name.endswith("fc1.bias"))
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.05), tensor.name))
        return parts

    monkeypatch.setattr(export, "_make_parts", damaged)
    monkeypatch.setattr(export, "_quantize", lambda *_: pytest.fail("it was quantised"))
    options = ExportOptions(precision="int8", int8=Int8Options(find_pictures(pictures)))
    with (
        pytest.raises(VerificationError, match="the exported file disagrees with its checkpoint"),
        exported(load_checkpoint(segmenter), tmp_path / "a.onnx", options),
    ):
        pytest.fail("it was written")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int8"}, "an int8 file needs pictures to calibrate on"),
        ({"int8": {}}, "an int8 file needs pictures to calibrate on, and no other file does"),
        ({"precision": "int8", "int8": {"pictures": ()}}, "there are no pictures to calibrate on"),
        ({"precision": "int8", "int8": {"method": "max"}}, "calibration_method is 'max'; expected one of minmax, entropy"),
        ({"precision": "int8", "int8": {"scope": "heads"}}, "int8_scope is 'heads'; expected one of backbone, encoder, all"),
        ({"precision": "int8", "int8": {"float_precision": "bf16"}}, "int8_float is 'bf16'; expected one of fp32, fp16"),
        ({"precision": "int8", "int8": {"float_precision": "fp16"}}, "int8 with fp16 around it needs 19 or later"),
        ({"precision": "int8", "int8": {}, "opset": 17}, "int8 with fp32 around it needs 18 or later, add --opset 18"),
        ({"precision": "int8", "int8": {}, "end_to_end": True}, "an end-to-end file cannot be int8 yet"),
        ({"precision": "int8", "int8": {}, "simplify": False}, "an int8 file is made from the simplified graph"),
        ({"precision": "int8", "int8": {}, "fp16_io": True}, "only an fp16 file has fp16 inputs"),
    ],
)
def test_options_that_are_refused(changes: dict[str, Any], message: str, segmenter: Path, tmp_path: Path) -> None:
    if "int8" in changes:
        changes = {**changes, "int8": Int8Options(**{"pictures": (tmp_path / "a.png",), **changes["int8"]})}
    with (
        pytest.raises((ArtifactError, InputError), match=message),
        exported(load_checkpoint(segmenter), tmp_path / "a.onnx", ExportOptions(**changes)),
    ):
        pytest.fail("it was exported")
    assert list(tmp_path.iterdir()) == []


def test_the_metadata_round_trip(int8_file: Path) -> None:
    metadata = inspect_onnx(str(int8_file)).metadata
    assert metadata is not None
    assert metadata.quantization is not None
    scored = replace(
        metadata, quantization=replace(metadata.quantization, accuracy={"images": 3, "scores": {"box AP": 0.5}})
    )
    assert Metadata.from_json(scored.to_json()) == scored
    document = json.loads(scored.to_json())
    document["quantization"]["later"] = 1  # a field of a newer version
    assert Metadata.from_json(json.dumps(document)) == scored
    # A reader that knows nothing of it reads all that it does know, and sees that the file is int8.
    del document["quantization"]
    assert Metadata.from_json(json.dumps(document)) == replace(scored, quantization=None)
    assert Metadata.from_json(json.dumps(document)).precision == "int8"
    with pytest.raises(ArtifactError, match="metadata is damaged"):
        Metadata.from_json(json.dumps({**document, "quantization": {"scope": "all"}}))
    assert isinstance(scored.quantization, Quantization)
