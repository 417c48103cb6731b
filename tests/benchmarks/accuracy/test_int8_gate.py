"""The gate of int8 files: one that passes at once, one that passes with more layers in float, and one that never does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from detr_export.benchmarks.accuracy import gate
from detr_export.benchmarks.accuracy.int8_gate import require_unseen, settle_int8
from detr_export.benchmarks.accuracy.scores import Annotated as Data
from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.export import Draft, ExportOptions, exported
from detr_export.graphs.inspection import inspect_onnx
from detr_export.graphs.int8.drafting import LOST
from detr_export.graphs.int8.options import Int8Options
from detr_export.runtimes.errors import InputError, VerificationError
from tests.benchmarks.conftest import Annotated, Watcher
from tests.test_cli import warm

IMAGES = 2


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.fromarray(np.random.default_rng(77).integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(file)
    return file


@pytest.fixture(scope="module")
def data(annotated: Annotated) -> Data:
    return Data(annotated.images, annotated.instances, None)


@contextlib.contextmanager
def drafted(checkpoint: Path, picture: Path, output: Path) -> Iterator[Draft]:
    int8 = Int8Options((picture,), scope="backbone", method="minmax")
    with exported(load_checkpoint(checkpoint), output, ExportOptions(precision="int8", int8=int8, verify=False)) as draft:
        yield draft


def with_wrong_scale(draft: Draft) -> None:
    """Makes the scale of what the first layer reads a thousand times too large: all its values become 0."""
    assert draft.int8 is not None
    graph = draft.int8.calibrated.model.graph
    layer = next(item for item in draft.int8.calibrated.layers if item.kept is None)
    value = next(node for node in graph.node if node.name == layer.name).input[0]
    draft.int8.calibrated.thresholds[value] *= 1000  # type: ignore[index]
    draft.settle_int8()


def test_it_passes_and_records_its_scores(segmenter: Path, picture: Path, data: Data, tmp_path: Path) -> None:
    output = tmp_path / "a.onnx"
    with drafted(segmenter, picture, output) as draft:
        found = settle_int8(draft, load_checkpoint(segmenter), data, "segmentation", 1.0, IMAGES)
    assert found.images == IMAGES
    metadata = inspect_onnx(str(output)).metadata
    assert metadata is not None
    assert metadata.quantization is not None
    accuracy = metadata.quantization.accuracy
    assert accuracy is not None
    assert accuracy["images"] == IMAGES
    assert set(accuracy["scores"]) == set(accuracy["difference"]) == {"box AP", "mask AP"}
    assert accuracy["scores"]["box AP"] == found.accuracy.metrics()["box"]["AP"]
    assert draft.result.metadata == metadata
    assert "box AP 0." in inspect_onnx(str(output)).summary()


def test_layers_stay_float_until_it_passes(
    segmenter: Path, picture: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken layer costs most, so it is the first that stays float. Two scored images are too few to show the loss."""
    output, watcher = tmp_path / "a.onnx", Watcher()
    with drafted(segmenter, picture, output) as draft:
        assert draft.int8 is not None
        with_wrong_scale(draft)
        broken = next(item for item in draft.int8.calibrated.layers if item.kept is None)
        int8 = draft.int8
        monkeypatch.setattr(
            gate, "drops", lambda *_: [] if broken.module in int8.quantization.kept_float else ["box AP is 0.1000 lower"]
        )
        found = settle_int8(draft, load_checkpoint(segmenter), data, "segmentation", 0.01, IMAGES, progress=watcher)
        kept = draft.int8.quantization.kept_float
    assert next(module for module, reason in kept.items() if reason == LOST) == broken.module
    assert any("scoring it with 1 more layers in float" in line for line in watcher.stages)
    assert found.reference is not None
    graph = onnx.load(str(output)).graph
    node = next(node for node in graph.node if node.name == broken.name)
    assert node.input[1] in {tensor.name for tensor in graph.initializer}
    assert f"  float: {broken.module}, {LOST}" in draft.result.summary()


def test_it_never_passes(segmenter: Path, picture: Path, data: Data, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(segmenter)
    with (
        pytest.raises(VerificationError, match=r"the int8 file is less accurate .* a single layer in int8"),
        drafted(segmenter, picture, tmp_path / "a.onnx") as draft,
    ):
        settle_int8(with_wrong_scales(draft), checkpoint, data, "segmentation", 0.0, IMAGES)
    assert list(tmp_path.iterdir()) == []


def with_wrong_scales(draft: Draft) -> Draft:
    """Makes every scale ten thousand times too small."""
    assert draft.int8 is not None
    for value in draft.int8.calibrated.thresholds:
        draft.int8.calibrated.thresholds[value] /= 10000  # type: ignore[index]
    draft.settle_int8()
    return draft


def test_pictures_that_it_was_calibrated_on(data: Data, picture: Path, tmp_path: Path) -> None:
    require_unseen((picture,), data)
    with pytest.raises(InputError, match="which the file is scored on"):
        require_unseen((picture, sorted(data.images.iterdir())[0]), data)


def test_a_picture_that_is_missing_is_left_to_the_scoring(data: Data, picture: Path) -> None:
    document = {"images": [{"id": 1, "file_name": "nowhere.png"}], "annotations": [], "categories": []}
    require_unseen((picture,), Data(data.images, document, None))


def test_only_int8_is_settled(segmenter: Path, data: Data, tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="the draft is not int8"),
        exported(load_checkpoint(segmenter), tmp_path / "a.onnx", ExportOptions(verify=False)) as draft,
    ):
        settle_int8(draft, load_checkpoint(segmenter), data, "segmentation")


CALIBRATED = ("--precision", "int8", "--calibration", "photos")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--calibration", "photos"), "go with --precision int8"),
        (("--calibration-images", "3"), "go with --precision int8"),
        (("--calibration-method", "mse", "--precision", "fp16"), "go with --precision int8"),
        (("--int8-scope", "all"), "go with --precision int8"),
        (("--int8-float", "fp16"), "go with --precision int8"),
        (("--sensitivity",), "go with --precision int8"),
        (("--precision", "int8", "--no-verify"), "--precision int8 needs --calibration DIR"),
        (CALIBRATED, "add --accuracy DATA to score it, or --no-verify"),
        ((*CALIBRATED, "--no-verify", "--golden", "golden"), "--golden does not go with --precision int8"),
    ],
)
def test_the_command_refuses(arguments: tuple[str, ...], message: str) -> None:
    done = warm().run(["onnx", "demo", "-o", "never.onnx", *arguments])
    assert done.returncode == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())


def test_the_command_refuses_folders(tmp_path: Path, data: Data) -> None:
    output = tmp_path / "a.onnx"
    (tmp_path / "empty").mkdir()
    command = ["onnx", "demo", "-o", str(output), "--precision", "int8", "--no-verify", "--calibration"]
    done = warm().run([*command, str(tmp_path / "empty")])
    assert (done.returncode, "holds no pictures to calibrate on" in done.stderr) == (1, True)
    done = warm().run([*command, str(data.images), "--calibration-images", "100"])
    assert (done.returncode, "6 readable pictures, and 100 were asked for" in done.stderr) == (1, True)
    assert not output.exists()
