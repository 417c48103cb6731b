"""End-to-end engines on the double of TensorRT: their profiles, their gate, their sidecar, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.engines import image_gate
from detr_export.engines.build import build_engine, build_from_source
from detr_export.engines.gate import verify_engine
from detr_export.engines.ladder import steps
from detr_export.engines.options import EngineOptions
from detr_export.engines.source import make_graph
from detr_export.graphs.end_to_end.composing import pixels_part
from detr_export.graphs.export import ExportOptions, export_onnx
from detr_export.graphs.tensorrt import readable_graph
from detr_export.runtimes import Predictor
from detr_export.runtimes.backends.ort import session as ort_session
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.backends.tensorrt.end_to_end import profiles_of_file
from detr_export.runtimes.backends.tensorrt.profiles import EngineProfile, ShapeProfile
from detr_export.runtimes.backends.tensorrt.sidecar import read_sidecar
from detr_export.runtimes.errors import ArtifactError, AttestationError, InputError, VerificationError
from detr_export.runtimes.metadata import BGR, METADATA_KEY, Metadata
from detr_export.verification.end_to_end import EndToEndParity
from tests.tensorrt_double import Knobs
from tests.tensorrt_double.fixtures import OLDEST, Install

SMALL = EngineProfile((1, 32, 32), (1, 60, 80), (2, 70, 90))
OPTIONS = EngineOptions(profiles=(SMALL,))
WHOLE = ExportOptions(end_to_end=True, verify=False)


@pytest.fixture(scope="module")
def detector(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny detector end to end, in fp32."""
    output = tmp_path_factory.mktemp("end_to_end") / "detector.onnx"
    return export_onnx(load_checkpoint(tiny_checkpoint), output, WHOLE).path


@pytest.fixture(scope="module")
def panoptic(segmenter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny segmenter end to end, for images in BGR."""
    output = tmp_path_factory.mktemp("end_to_end") / "panoptic.onnx"
    return export_onnx(load_checkpoint(segmenter), output, replace(WHOLE, color=BGR)).path


def _metadata(file: Path) -> Metadata:
    (text,) = [item.value for item in onnx.load(str(file)).metadata_props if item.key == METADATA_KEY]
    return Metadata.from_json(text)


def _with_metadata(file: Path, output: Path, metadata: Metadata) -> Path:
    model = onnx.load(str(file))
    helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    onnx.save(model, str(output))
    return output


@pytest.mark.usefixtures("tensorrt")
def test_a_right_engine_passes_and_runs(detector: Path, tmp_path: Path) -> None:
    engine = tmp_path / "a.engine"
    result = build_engine(detector, engine, OPTIONS)
    parity = result.parity
    assert isinstance(parity, EndToEndParity)
    assert parity.passed
    assert parity.images == 4  # one of each size, and two in the batch
    assert set(parity.max_abs_diff) == {"scores", "boxes"}
    assert "verified end to end over 4 images against the float64 model" in result.summary()

    about = read_sidecar(engine)
    assert about is not None
    assert about.verified
    assert [str(spec) for spec in about.inputs] == ["image uint8 (batch, height, width, 3)"]
    assert about.metadata.input == "image"
    assert about.metadata.end_to_end == _metadata(detector).end_to_end
    assert about.metadata.parity == json.loads(json.dumps(parity.to_dict()))

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 85, 3), dtype=np.uint8))
    with Predictor.load(engine, device="cuda", strict=True) as ours, Predictor.load(detector) as theirs:
        (found,), (expected,) = (predictor.detect([picture], threshold=0.0, clip=False) for predictor in (ours, theirs))
        np.testing.assert_array_equal(found.boxes, expected.boxes)
        np.testing.assert_array_equal(found.labels, expected.labels)
        with pytest.raises(
            InputError, match="no profile for image 1x64x91x3; it takes profile 0: image 1x32x32x3 to 2x70x90"
        ):
            ours.detect([picture.resize((91, 64))])


@pytest.mark.usefixtures("tensorrt")
def test_masks_and_bgr(panoptic: Path, tmp_path: Path) -> None:
    parity = build_engine(panoptic, tmp_path / "a.engine", OPTIONS).parity
    assert parity is not None
    assert parity.passed
    assert set(parity.max_abs_diff) == {"scores", "boxes", "masks"}


@pytest.mark.usefixtures("tensorrt")
def test_an_engine_that_swaps_colors_is_refused(panoptic: Path, tmp_path: Path) -> None:
    """Its metadata say that it takes RGB."""
    metadata = _metadata(panoptic)
    assert metadata.end_to_end is not None
    wrong = replace(metadata, end_to_end=replace(metadata.end_to_end, color="rgb"))
    file = _with_metadata(panoptic, tmp_path / "wrong.onnx", wrong)
    with pytest.raises(VerificationError, match=r"a\.engine disagrees with its checkpoint: scores differ by .* on 1x32x32"):
        build_engine(file, tmp_path / "a.engine", OPTIONS)
    assert not (tmp_path / "a.engine").exists()


@pytest.mark.usefixtures("tensorrt")
def test_images_that_are_mixed_up_are_refused(detector: Path, tmp_path: Path) -> None:
    """Each image of the batch gets the results of the other."""
    model = onnx.load(str(detector))
    for node in model.graph.node:
        node.output[:] = ["boxes_of_others" if name == "boxes" else name for name in node.output]
    constants = [("from", [-1]), ("to", [-100]), ("axis", [0])]
    model.graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in constants)
    names = [name for name, _ in constants]
    model.graph.node.append(helper.make_node("Slice", ["boxes_of_others", *names, "from"], ["boxes"], name="results/mixed"))
    onnx.save(model, str(tmp_path / "mixed.onnx"))
    with pytest.raises(VerificationError, match=r"boxes differ by .* on 2x70x90"):
        build_engine(tmp_path / "mixed.onnx", tmp_path / "a.engine", OPTIONS)


@pytest.mark.parametrize("wrong_by", [0.0, 0.5])
def test_the_file_is_cast_to_fp16(wrong_by: float, tensorrt: Knobs, detector: Path, tmp_path: Path) -> None:
    tensorrt.wrong_by = wrong_by
    arguments = (str(detector), tmp_path / "a.engine", OPTIONS, steps(fp16=True, fallback=False))
    if wrong_by:
        with pytest.raises(VerificationError, match="disagrees with its checkpoint: scores differ by 5"):
            build_from_source(*arguments)
        return
    result = build_from_source(*arguments)
    about = result.sidecar
    assert (about.precision, about.metadata.precision) == ("fp16", "fp16")
    assert about.attestation is not None
    assert about.attestation["attested"] == about.attestation["total"]
    assert set(about.attestation["convolutions"]) == {"fp16"}
    assert about.attestation["products"]["fp32"] >= 2  # those of the resize are among them


def test_what_is_cast(detector: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The same as an export in fp16, and the more of it stays fp32, the further the ladder goes."""
    exported = export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "fp16.onnx", replace(WHOLE, precision="fp16")).path
    (tmp_path / "steps").mkdir()
    cast, attention, transformer, plain = (
        make_graph(str(detector), step.name, tmp_path / "steps") for step in steps(fp16=True, fallback=True)
    )
    ours, theirs = (onnx.load(str(file)).graph for file in (cast, exported))
    assert [node.op_type for node in ours.node] == [node.op_type for node in theirs.node]
    assert sorted(item.raw_data for item in ours.initializer) == sorted(item.raw_data for item in theirs.initializer)
    around = [item for item in ours.initializer if item.name.startswith(("processor/", "results/"))]
    assert around
    assert all(item.data_type != TensorProto.FLOAT16 for item in around)
    sizes = [file.stat().st_size for file in (cast, attention, transformer)]
    assert sizes[0] < sizes[2]
    assert plain == detector


def test_a_resize_in_fp16_is_refused(tensorrt: Knobs, detector: Path, tmp_path: Path) -> None:
    """The products of the resize are exact in fp32 alone."""
    tensorrt.compute_precision = "HALF"
    with pytest.raises(AttestationError, match=r"processor/MatMul.* in fp16 instead of fp32"):
        build_from_source(str(detector), tmp_path / "a.engine", OPTIONS, steps(fp16=True, fallback=False))


def test_verify_completes_the_sidecar(rtx: Knobs, detector: Path, tmp_path: Path) -> None:
    engine = tmp_path / "a.engine"
    options = replace(OPTIONS, library="tensorrt_rtx")
    assert not build_engine(detector, engine, options).sidecar.verified  # the GPU has 9.0, for which it does not compile
    rtx.device.compute_capability = (8, 9)
    parity = verify_engine(engine)
    assert isinstance(parity, EndToEndParity)
    about = read_sidecar(engine)
    assert about is not None
    assert about.verified
    assert about.metadata.parity == json.loads(json.dumps(parity.to_dict()))


def test_a_quantised_graph_is_not_compared(detector: Path) -> None:
    metadata = replace(_metadata(detector), precision="int8")
    with pytest.raises(ArtifactError, match=r"nothing in PyTorch computes as .* in int8 does.*; add --no-verify"):
        image_gate.require_comparable(metadata)


# ---- which files, and which sizes ---------------------------------------------------------------------------------------


def test_profiles_are_of_images_as_they_come_in(detector: Path) -> None:
    metadata = _metadata(detector)
    landscape, portrait = "1x32x32:1x1080x1920:1x2160x3840", "1x32x32:1x1920x1080:1x3840x2160"
    assert [str(profile) for profile in profiles_of_file(metadata, 1)] == [landscape, portrait]
    assert [str(profile) for profile in profiles_of_file(metadata, 4)[2:]] == [
        "2x32x32:4x1080x1920:4x2160x3840",
        "2x32x32:4x1920x1080:4x3840x2160",
    ]
    plain = replace(metadata, end_to_end=None, processor={"size": {"height": 30, "width": 40}})
    assert [str(profile) for profile in profiles_of_file(plain, 1)] == ["1x30x40:1x30x40:1x30x40"]
    with pytest.raises(InputError, match="largest batch is 0"):
        profiles_of_file(metadata, 0)


@pytest.mark.usefixtures("tensorrt")
def test_the_operator_resize_is_refused(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "a.onnx", replace(WHOLE, resize="operator")).path
    refused = r"a\.onnx resizes images with ONNX's operator Resize, .*: detr-export onnx --end-to-end --resize matmul"
    with pytest.raises(ArtifactError, match=refused):
        build_engine(file, tmp_path / "a.engine", OPTIONS)
    monkeypatch.setattr(ort_session, "require_provider", lambda place: None)
    for device in ("tensorrt", "tensorrt-rtx"):
        with pytest.raises(ArtifactError, match=refused):
            OrtSession(file, device)


@pytest.mark.parametrize("device", ["tensorrt", "tensorrt-rtx"])
def test_onnx_runtime_gets_the_profiles(device: str, detector: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[ShapeProfile]] = []

    def refuse(*arguments: object) -> list[tuple[str, dict[str, str]]]:
        seen.extend(item for item in arguments if isinstance(item, list) and item)
        if seen:
            raise ArtifactError("far enough")
        return [("CPUExecutionProvider", {})]  # where the file's metadata are read

    monkeypatch.setattr(ort_session, "require_provider", lambda place: None)
    monkeypatch.setattr(ort_session, "linked_tensorrt", lambda: (10, 7))
    monkeypatch.setattr(ort_session, "provider_list", refuse)
    monkeypatch.setattr(ort_session, "add_rtx", refuse)
    with pytest.raises(ArtifactError, match="far enough"):
        OrtSession(detector, device)
    ((landscape, portrait),) = seen
    assert str(landscape) == "image 1x32x32x3 to 1x2160x3840x3"
    assert portrait.inputs == {"image": ((1, 32, 32, 3), (1, 1920, 1080, 3), (1, 3840, 2160, 3))}


def test_tensorrt_8_is_refused(
    install_tensorrt: Install, detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No end-to-end file was ever compiled with it."""
    install_tensorrt(OLDEST)
    refused = r"detector\.onnx is end to end, which was never tried with TensorRT 8; update TensorRT to 10"
    with pytest.raises(ArtifactError, match=refused):
        build_engine(detector, tmp_path / "a.engine", OPTIONS)
    monkeypatch.setattr(ort_session, "require_provider", lambda place: None)
    monkeypatch.setattr(ort_session, "linked_tensorrt", lambda: (8, 6))
    with pytest.raises(ArtifactError, match=refused):
        OrtSession(detector, "tensorrt")


def test_the_list_of_tensorrt_8_refuses_it_too(detector: Path) -> None:
    """In other respects the processor's part is of opset 17, too."""
    part = pixels_part(onnx.load(str(detector)))
    part.opset_import[0].version = 17
    with pytest.raises(ArtifactError, match=r"TensorRT 8\.5 does not read the graph: ReduceSum of INT32; "):
        readable_graph(part, "8.6")
