"""Two models beside each other: the measures, the verdict, and real files, checkpoints and engines."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.export import ExportOptions, export_onnx
from detr_export.runtimes import open_session
from detr_export.runtimes.errors import ArtifactError, BackendError, CheckpointError, InputError, VerificationError
from detr_export.verification.batches import grid_batches
from detr_export.verification.cases import GRID, Case
from detr_export.verification.sessions import (
    Comparison,
    compare_models,
    compare_sessions,
    parse_limits,
    require_agreement,
)
from tests import models
from tests.detr_export.recorder import Recorder
from tests.detr_export.verification.fake_sessions import BYTES, PIXELS, SIZES, Arrays, FakeSession, about
from tests.tensorrt_double import Knobs

SMALL = (Case(32, 40, ((32, 40),)), Case(33, 21, ((33, 21), (20, 21))), Case(24, 50, ((24, 50),)))
Change = Callable[[Arrays], Arrays]


def compared(change: Change, other: Change = lambda outputs: outputs, **options: Any) -> Comparison:
    pair = FakeSession(change=change), FakeSession(change=other)
    return compare_sessions(*pair, grid_batches(*pair, SMALL), **options)


def adding(name: str, amount: float, batch: int | None = None) -> Change:
    """Adds to the first value of an output; only where the batch is that large, if given."""

    def change(outputs: Arrays) -> Arrays:
        if batch in (None, len(outputs[name])):
            outputs[name][0, 0] += amount
        return outputs

    return change


# ---- the measures -------------------------------------------------------------------------------------------------------


def test_equal_models() -> None:
    found = compared(lambda outputs: outputs)
    assert [case.case for case in found.cases] == [str(case) for case in SMALL]
    for item in (*found.worst.values(), *(item for case in found.cases for item in case.outputs.values())):
        assert (item.max_abs_diff, item.snr) == (0.0, math.inf)
        assert item.cosine == pytest.approx(1.0, abs=1e-12)
    assert found.passed is None
    require_agreement(found, "a", "b")
    last = found.summary().splitlines()[-1]
    assert last == "not judged: logits, pred_boxes; --atol sets a limit"


def test_measures_are_those_of_numpy() -> None:
    """Each case by itself, then the worst of all: the three measures need not have one case in common."""
    first, second = FakeSession(change=adding("logits", 0.25, batch=2)), FakeSession(change=adding("pred_boxes", 0.5))
    found = compare_sessions(first, second, grid_batches(first, second, SMALL))
    expected: dict[str, list[tuple[float, float, float]]] = {"logits": [], "pred_boxes": []}
    for batch, case in zip(grid_batches(first, second, SMALL).made, found.cases, strict=True):
        for name, values in expected.items():
            one, two = (
                item.run(given)[name].astype(np.float64) for item, given in ((first, batch.model), (second, batch.other))
            )
            cosine = np.sum(one * two) / np.linalg.norm(one) / np.linalg.norm(two)
            with np.errstate(divide="ignore"):
                snr = 10 * np.log10(np.sum(two**2) / np.sum((one - two) ** 2))
            values.append((np.abs(one - two).max(), cosine, snr))
            assert dataclasses.astuple(case.outputs[name]) == pytest.approx(values[-1], abs=1e-9)
    for name, values in expected.items():
        largest, cosines, snrs = zip(*values, strict=True)
        assert dataclasses.astuple(found.worst[name]) == pytest.approx((max(largest), min(cosines), min(snrs)), abs=1e-9)
    assert found.worst["logits"].max_abs_diff == pytest.approx(0.25)
    assert found.worst["pred_boxes"].max_abs_diff == pytest.approx(0.5)
    assert found.worst_case["logits"] == "2x33x21 (1 padded)"


def test_the_report() -> None:
    found = compared(adding("logits", 0.25, batch=2), limits={"logits": 0.3})
    lines = found.summary().splitlines()
    assert lines[0].startswith("compared over 3 batches")
    assert lines[1].startswith("logits  2.5e-01, cosine similarity 0.9")
    assert lines[3].startswith("  2x33x21 (1 padded)  2.5e-01, cosine")
    assert lines[2].endswith(", SNR inf dB")
    assert lines[-2:] == ["passed: logits within 0.3", "not judged: pred_boxes; --atol sets a limit"]
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["outputs"]["logits"]["max_abs_diff"] == found.worst["logits"].max_abs_diff
    assert document["outputs"]["logits"]["worst_case"] == "2x33x21 (1 padded)"
    assert document["outputs"]["pred_boxes"]["snr"] is None
    assert document["cases"][1]["outputs"]["logits"]["snr"] == found.cases[1].outputs["logits"].snr
    assert [case["case"] for case in document["cases"]] == [str(case) for case in SMALL]
    assert (document["passed"], document["limits"], document["notes"]) == (True, {"logits": 0.3}, [])


def test_progress() -> None:
    progress = Recorder()
    compared(lambda outputs: outputs, progress=progress)
    assert progress.lines == ["comparing 1/3 1x32x40", "comparing 2/3 2x33x21 (1 padded)", "comparing 3/3 1x24x50"]


# ---- the verdict --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "passed", "failed"),
    [
        ({"*": 0.3}, True, ""),
        ({"*": 0.2}, False, "logits"),
        ({"logits": 0.3}, True, ""),
        ({"logits": 0.2}, False, "logits"),
        ({"pred_boxes": 0.0}, True, ""),
        ({"*": 0.0, "logits": 0.3}, True, ""),
        ({"*": 1.0, "logits": 0.0}, False, "logits"),
        ({"*": 1e9}, True, ""),
        ({}, None, ""),
    ],
)
def test_limits(limits: dict[str, float], passed: bool | None, failed: str) -> None:
    found = compared(adding("logits", 0.25, batch=2), limits=limits)
    assert found.passed is passed
    if passed is not False:
        require_agreement(found, "a", "b")
        return
    limit = limits.get("logits", limits.get("*"))
    message = f"{failed} differs by 2.5e-01 (at most {limit}) at 2x33x21 (1 padded)"
    assert found.summary().splitlines()[-1] == f"FAILED: {message}"
    with pytest.raises(VerificationError) as raised:
        require_agreement(found, "a.onnx", "b.onnx")
    assert str(raised.value) == f"a.onnx disagrees with b.onnx: {message}"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sides", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("limits", [{}, {"*": 1e9}])
def test_what_is_not_finite_always_fails(value: float, sides: tuple[bool, bool], limits: dict[str, float]) -> None:
    spoiled = [adding("pred_boxes", value if side else 0.0, batch=2) for side in sides]
    found = compared(*spoiled, limits=limits)
    assert found.passed is False
    assert math.isnan(found.worst["pred_boxes"].max_abs_diff)
    assert found.worst["logits"].max_abs_diff == 0
    assert found.cases[0].outputs["pred_boxes"].max_abs_diff == 0
    with pytest.raises(VerificationError, match=r"a disagrees with b: pred_boxes is not finite at 2x33x21 \(1 padded\)$"):
        require_agreement(found, "a", "b")
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    worst = {"max_abs_diff": None, "cosine": None, "snr": None, "finite": False, "worst_case": "2x33x21 (1 padded)"}
    assert document["outputs"]["pred_boxes"] == worst


@pytest.mark.parametrize(
    ("texts", "limits"),
    [
        ((), {}),
        (("1e-3",), {"*": 1e-3}),
        (("0.5", "pred_masks=3"), {"*": 0.5, "pred_masks": 3.0}),
        (("a=b=1",), {"a=b": 1.0}),
    ],
)
def test_parse_limits(texts: tuple[str, ...], limits: dict[str, float]) -> None:
    assert parse_limits(texts) == limits


@pytest.mark.parametrize("text", ["", "x", "logits", "logits=", "logits=x", "1,5"])
def test_limits_that_are_no_numbers(text: str) -> None:
    with pytest.raises(InputError, match=r"limit is '.*'; expected VALUE or NAME=VALUE"):
        parse_limits([text])


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"masks": 1.0}, "there is a limit of masks; expected one of the outputs of both, logits, pred_boxes"),
        ({"logits": -1.0}, "limit is -1.0; expected a number from 0"),
        ({"*": math.nan}, "limit is nan; expected a number from 0"),
        ({"*": math.inf}, "limit is inf; expected a number from 0"),
    ],
)
def test_limits_that_are_refused(limits: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compared(lambda outputs: outputs, limits=limits)


# ---- outputs ------------------------------------------------------------------------------------------------------------


def test_outputs_of_one_side_are_listed() -> None:
    def more(name: str) -> Change:
        return lambda outputs: {**outputs, name: np.zeros((1, 3), np.float32)}

    names = ("logits", "pred_boxes")
    first = FakeSession(change=more("a"), outputs=(*names, "a"))
    second = FakeSession(change=more("b"), outputs=(*names, "b"))
    found = compare_sessions(first, second, grid_batches(first, second, SMALL))
    assert found.only_in_model == ("a",)
    assert found.only_in_other == ("b",)
    assert found.worst.keys() == set(names)
    assert "only in MODEL, not compared: a" in found.summary().splitlines()
    assert "only in OTHER, not compared: b" in found.summary().splitlines()
    assert (found.to_dict()["only_in_model"], found.to_dict()["only_in_other"]) == (["a"], ["b"])


def test_no_output_in_common() -> None:
    message = "the models have no output in common: MODEL gives logits, pred_boxes, OTHER gives scores, labels"
    with pytest.raises(ArtifactError, match=message):
        compare_sessions(FakeSession(), FakeSession(outputs=("scores", "labels")))


def test_other_shapes_are_an_error() -> None:
    message = r"logits has shape \(1, 3\) in MODEL and \(1, 2\) in OTHER, at 1x32x40; only outputs of one shape"
    with pytest.raises(ArtifactError, match=message):
        compared(lambda outputs: outputs, lambda outputs: {**outputs, "logits": outputs["logits"][:, :2]})


def test_the_grid_is_the_default() -> None:
    found = compare_sessions(FakeSession([PIXELS]), FakeSession())
    assert len(found.cases) == len(GRID)
    assert found.notes == ("no image is padded, because MODEL has no input pixel_mask or valid_sizes",)
    assert f"note: {found.notes[0]}" in found.summary()


def test_bytes_beside_floats() -> None:
    """Means of the bytes are means of the floats where the processor only rescales."""
    metadata = about(processor={"do_normalize": False})

    def scaled(outputs: Arrays) -> Arrays:
        return {name: (value / 255).astype(np.float32) for name, value in outputs.items()}

    pair = FakeSession([BYTES, SIZES], scaled, metadata), FakeSession(metadata=metadata)
    found = compare_sessions(*pair, grid_batches(*pair, [SMALL[0]]))
    assert found.worst["logits"].max_abs_diff < 1e-6
    assert found.worst["pred_boxes"].max_abs_diff < 1e-6


# ---- files, checkpoints, engines ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def changed(tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny file with 0.5 added to the bias of one class: only its logits move, and by that."""
    model = onnx.load(tiny_onnx)
    (bias,) = [item for item in model.graph.initializer if item.name.endswith("class_labels_classifier.bias")]
    values = numpy_helper.to_array(bias).copy()
    values[2] += 0.5
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    file = tmp_path_factory.mktemp("changed") / "changed.onnx"
    onnx.save(model, file)
    return file


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Arrays for the tiny file: two images, one of them padded."""
    random = np.random.default_rng(3)
    mask = np.ones((2, 96, 128), np.int64)
    mask[1, 60:] = 0
    file = tmp_path_factory.mktemp("arrays") / "in.npz"
    np.savez(file, pixel_values=random.normal(size=(2, 3, 96, 128)).astype(np.float32), pixel_mask=mask)
    return file


def test_a_file_and_itself(tiny_onnx: Path, inputs: Path) -> None:
    found = compare_models(tiny_onnx, str(tiny_onnx), inputs=inputs, limits={"*": 0.0})
    assert found.passed is True
    assert found.worst["logits"].snr == math.inf


def test_a_changed_weight(tiny_onnx: Path, changed: Path, inputs: Path) -> None:
    found = compare_models(changed, tiny_onnx, inputs=inputs)
    assert found.worst["logits"].max_abs_diff == pytest.approx(0.5, abs=1e-5)
    assert found.worst["pred_boxes"].max_abs_diff == 0
    with open_session(changed) as first, open_session(tiny_onnx) as second, np.load(inputs) as given:
        one, two = (session.run(dict(given))["logits"].astype(np.float64) for session in (first, second))
    assert found.worst["logits"].snr == pytest.approx(10 * np.log10((two**2).sum() / ((one - two) ** 2).sum()), abs=1e-6)
    assert found.worst["logits"].cosine == pytest.approx((one * two).sum() / np.sqrt((one**2).sum() * (two**2).sum()))
    assert compare_models(changed, tiny_onnx, inputs=inputs, limits={"*": 0.4}).passed is False


def test_a_file_and_its_checkpoint(tiny_onnx: Path, tiny_checkpoint: Path, photo: Path) -> None:
    """Whichever comes first."""
    for pair in ((tiny_onnx, tiny_checkpoint), (tiny_checkpoint, tiny_onnx)):
        found = compare_models(*pair, images=[photo], limits={"*": 1e-3})
        assert found.passed
        assert [case.case for case in found.cases] == [str(photo)]
        assert 60 < found.worst["logits"].snr < math.inf
        assert found.notes == found.only_in_model == found.only_in_other == ()


def test_a_file_without_a_mask_and_a_checkpoint(tiny_checkpoint: Path, tmp_path: Path, inputs: Path) -> None:
    options = ExportOptions(pixel_mask=False, attentions=True, verify=False, simplify=False)
    file = export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "plain.onnx", options).path
    found = compare_models(file, tiny_checkpoint, limits={"*": 1e-3})
    assert found.passed, found.summary()
    assert len(found.cases) == len(GRID)
    assert "cross_attention" in found.worst  # the checkpoint gives it because the file does
    assert found.notes == ("no image is padded, because MODEL has no input pixel_mask or valid_sizes",)
    assert not any("padded" in case.case for case in found.cases)
    with pytest.raises(ArtifactError, match=r"in.npz has padding, and MODEL takes no pixel_mask"):
        compare_models(file, tiny_checkpoint, inputs=inputs)


def test_a_file_of_bytes_and_one_of_floats(segmenter: Path, segmenter_onnx: Path, photo: Path, tmp_path: Path) -> None:
    """An fp16 file: its numbers are near and not equal. The pictures are the same, or they would be far off."""
    options = ExportOptions(precision="fp16", fp16_io=True, input="uint8", verify=False)
    file = export_onnx(load_checkpoint(segmenter), tmp_path / "images.onnx", options).path
    for other in (segmenter_onnx, segmenter):
        found = compare_models(file, other, images=[photo])
        assert found.worst.keys() == {"logits", "pred_boxes", "pred_masks"}
        assert all(25 < item.snr < 90 for item in found.worst.values()), found.summary()
    mask = np.ones((1, 40, 50), np.int64)
    np.savez(tmp_path / "in.npz", pixel_values=mask, valid_sizes=np.array([[40, 50]]), pixel_mask=mask)
    with pytest.raises(ArtifactError, match="pixel_values is uint8 in MODEL and float32 in OTHER"):
        compare_models(file, segmenter_onnx, inputs=tmp_path / "in.npz")


def test_a_detector_and_a_segmentation_model(tiny_onnx: Path, segmenter_onnx: Path, inputs: Path) -> None:
    found = compare_models(segmenter_onnx, tiny_onnx, inputs=inputs)
    assert found.only_in_model == ("pred_masks",)
    assert found.worst["logits"].max_abs_diff > 0.1


def test_an_engine_and_its_file(tensorrt: Knobs, tiny_onnx_17: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """No case of the grid fits the engine, so the corners of its profile are the cases."""
    from detr_export.engines.build import build_engine
    from detr_export.engines.options import EngineOptions
    from detr_export.runtimes.backends.tensorrt.profiles import EngineProfile

    profile = EngineProfile((1, 64, 64), (1, 64, 96), (2, 80, 96))
    engine = build_engine(tiny_onnx_17, tmp_path / "a.engine", EngineOptions(profiles=(profile,), verify=False)).path
    found = compare_models(engine, tiny_checkpoint, "cuda", limits={"*": 1e-3})
    assert found.passed
    assert [case.case for case in found.cases] == [
        *("1x64x64", "1x64x64 (1 padded)", "1x64x96", "1x64x96 (1 padded)"),
        *("2x80x96 (identical)", "2x80x96 (1 padded)"),
    ]
    assert compare_models(tiny_onnx_17, engine, other_device="cuda").cases[0].case == "1x64x64"
    with pytest.raises(BackendError, match=r"device is 'cpu', but .*a.engine is a TensorRT engine"):
        compare_models(tiny_onnx_17, engine)


def test_names_on_the_hub(hub_cache: Path, tiny_onnx: Path, changed: Path, tiny_checkpoint: Path, inputs: Path) -> None:
    """A revision is that of the second model: a file is compared with what it used to be."""
    models.publish(hub_cache, "someone/tiny", tiny_onnx, "model.onnx")
    models.publish(hub_cache, "someone/tiny", changed, "model.onnx", revision="v2", commit="2" * 40)
    models.publish(hub_cache, "someone/checkpoint", tiny_checkpoint, revision="v1")
    name = "someone/tiny/model.onnx"
    assert compare_models(name, name, inputs=inputs).worst["logits"].max_abs_diff == 0
    assert compare_models(name, name, inputs=inputs, revision="v2").worst["logits"].max_abs_diff == pytest.approx(
        0.5, abs=1e-5
    )
    assert compare_models(name, "someone/checkpoint", inputs=inputs, revision="v1", limits={"*": 1e-3}).passed
    with pytest.raises(ArtifactError, match="nor in the hub's cache"):
        compare_models(name, name, inputs=inputs, revision="v3")
    with pytest.raises(ArtifactError, match="is a file; --revision goes with a file on the hub"):
        compare_models(name, tiny_onnx, inputs=inputs, revision="v2")
    with pytest.raises(CheckpointError, match="is a directory; --revision goes with a hub id"):
        compare_models(name, tiny_checkpoint, inputs=inputs, revision="v2")


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (("no.onnx", "{file}"), ArtifactError, "no.onnx does not exist or is not a file"),
        (("{file}", "no.onnx"), ArtifactError, "no.onnx does not exist or is not a file"),
        (("{file}", "someone/no"), CheckpointError, "someone/no is neither an existing path nor in the hub's cache"),
        (("{file}", "a/b/no.onnx"), ArtifactError, "a/b/no.onnx is neither an existing path nor in the hub's cache"),
    ],
)
def test_models_that_are_not_there(
    names: tuple[str, str], error: type[Exception], message: str, hub_cache: Path, tiny_onnx: Path
) -> None:
    with pytest.raises(error, match=message):
        compare_models(*(name.format(file=tiny_onnx) for name in names))


def test_arrays_or_pictures(tiny_onnx: Path, inputs: Path, photo: Path) -> None:
    with pytest.raises(InputError, match="inputs and images are both given"):
        compare_models(tiny_onnx, tiny_onnx, inputs=inputs, images=[photo])
