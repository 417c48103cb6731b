"""Files from bytes to boxes: what is exported, what is refused, what the gate finds, and what `Predictor` makes of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from scipy.optimize import linear_sum_assignment

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs import export
from detr_export.graphs.description import describe
from detr_export.graphs.end_to_end import composing, pixels
from detr_export.graphs.end_to_end.building import Nodes, Value
from detr_export.graphs.export import ExportOptions, export_onnx, verify_file
from detr_export.runtimes import ArtifactError, Detections, ImageError, InputError, Predictor, VerificationError
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.metadata import BGR, MATMUL, OPERATOR, RGB, EndToEnd
from detr_export.runtimes.progress import SILENT
from detr_export.verification import end_to_end
from detr_export.verification.cases import Case, make_images
from tests import models

WHOLE = ExportOptions(end_to_end=True)
SENSITIVE = 1e-2  # what a level of a few pixels changes a score by in a tiny model with random weights


@pytest.fixture(scope="module")
def detector(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny detector end to end; verified."""
    output = tmp_path_factory.mktemp("end_to_end") / "detector.onnx"
    result = export_onnx(load_checkpoint(tiny_checkpoint), output, WHOLE)
    assert result.parity is not None
    assert result.parity.end_to_end is not None
    assert result.parity.passed
    assert "end to end over 8 images" in result.summary()
    return output


@pytest.fixture(scope="module")
def panoptic(segmenter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny segmenter end to end."""
    output = tmp_path_factory.mktemp("end_to_end") / "panoptic.onnx"
    return export_onnx(load_checkpoint(segmenter), output, replace(WHOLE, verify=False)).path


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate has small images, but for the detector, which is exported before."""
    monkeypatch.setattr(end_to_end, "_SIZES", ((90, 120), (240, 333), (61, 37)))


def _images(photo: Path) -> list[np.ndarray]:
    """Sizes that the gate does not use."""
    picture = Image.open(photo)
    images = [make_images(Case(*size, (size,)), seed=9)["pixel_values"][0] for size in ((120, 200), (100, 700), (2, 3))]
    return [*images, np.asarray(picture), np.asarray(picture.crop((10, 10, 400, 200)))]


def _order(found: Detections, expected: Detections) -> np.ndarray:
    """Which of the expected detections each of the found ones is; those with nearly equal scores may have changed places."""
    cost = np.abs(found.boxes[:, None] - expected.boxes).max(axis=-1)
    return linear_sum_assignment(cost)[1]


def test_what_a_file_takes_and_gives(detector: Path, panoptic: Path) -> None:
    with OrtSession(detector) as session, OrtSession(panoptic) as masks:
        queries = models.config().num_queries
        assert [str(spec) for spec in session.inputs] == ["image uint8 (batch, height, width, 3)"]
        expected = [
            f"scores float32 (batch, {queries})",
            f"labels int64 (batch, {queries})",
            f"boxes float32 (batch, {queries}, 4)",
        ]
        assert [str(spec) for spec in session.outputs] == expected
        assert str(masks.outputs[3]) == f"masks float32 (batch, {queries}, mask_height, mask_width)"
        about = session.metadata
        assert about is not None
        assert (about.input, about.end_to_end) == ("image", EndToEnd(RGB, MATMUL, queries))
        assert about.ranges["height"] == (1, 16384)
        parity = about.parity
        assert parity is not None
        assert parity["end_to_end"]["passed"]
        assert set(parity["end_to_end"]["max_abs_diff"]) == {"pixels", "scores", "boxes"}
        assert set(parity["max_abs_diff"]) == {"logits", "pred_boxes"}
    graph = onnx.load(detector).graph
    assert [node.op_type for node in graph.node if "image" in node.input] == ["Cast"]  # TensorRT asks for it


def test_finds_what_the_checkpoint_finds(detector: Path, tiny_checkpoint: Path, photo: Path) -> None:
    other_labels = total = 0
    with Predictor.load(detector) as predictor, Predictor.load(tiny_checkpoint) as checkpoint:
        for image in _images(photo):
            found, expected = predictor.detect(image, 0.2, clip=False), checkpoint.detect(image, 0.2, clip=False)
            assert len(found) == len(expected) > 0
            order = _order(found, expected)
            other_labels, total = other_labels + int((found.labels != expected.labels[order]).sum()), total + len(found)
            assert found.names == tuple(predictor.id2label[label] for label in found.labels)
            assert np.abs(found.scores - expected.scores[order]).max() < SENSITIVE
            assert np.abs(found.boxes - expected.boxes[order]).max() < 0.005 * max(image.shape)
            assert (np.diff(found.scores) <= 0).all()
            assert found.image_size == image.shape[:2]
        assert other_labels <= 1 < total / 30  # two classes of a query may tie
        first, second = (predictor.detect(image, 0.0) for image in _images(photo)[:2])
        assert np.abs(first.scores - second.scores).max() > 5 * SENSITIVE


def test_lists_of_images(detector: Path, photo: Path) -> None:
    """Images of one size run together, and each gets its own result."""
    images = _images(photo)
    images += [image[::-1] for image in images[:2]]
    with Predictor.load(detector) as predictor:
        for image, found in zip(images, predictor.detect(images, 0.1, clip=False), strict=True):
            alone = predictor.detect(image, 0.1, clip=False)
            assert np.array_equal(found.labels, alone.labels)
            assert np.abs(found.boxes - alone.boxes).max() < 1e-3 * max(image.shape)


def test_masks(panoptic: Path, segmenter: Path, photo: Path) -> None:
    image = _images(photo)[4]
    with Predictor.load(panoptic) as predictor, Predictor.load(segmenter) as checkpoint:
        assert predictor.draws_masks
        for task in ("segment_panoptic", "segment_instances"):
            found, expected = getattr(predictor, task)(image, 0.5), getattr(checkpoint, task)(image, 0.5)
            assert len(found.segments) == len(expected.segments) > 0
            areas = {(segment.label, segment.area) for segment in found.segments}
            assert {label for label, _ in areas} == {segment.label for segment in expected.segments}
        objects, _ = predictor.detect_and_segment(image, 0.3)
        plain, _ = checkpoint.detect_and_segment(image, 0.3)
        assert objects.masks is not None
        assert plain.masks is not None
        order = _order(objects, plain)
        assert (objects.masks != plain.masks[order]).mean() < 0.01
        with pytest.raises(InputError, match=r"needs 0\.5 at least"):
            predictor.segment_panoptic(image, 0.4)
        with pytest.raises(ArtifactError, match="export it without --end-to-end"):
            predictor.segment_semantic(image)
        with pytest.raises(ArtifactError, match="attention"):
            predictor.explain(image)


@pytest.mark.parametrize(("color", "resize", "precision"), [(BGR, OPERATOR, "fp32"), (BGR, MATMUL, "fp16")])
def test_other_forms(
    color: str, resize: str, precision: str, detector: Path, tiny_checkpoint: Path, photo: Path, tmp_path: Path
) -> None:
    options = replace(WHOLE, color=color, resize=resize, precision=precision, top_k=3)
    file = export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "other.onnx", options).path
    with Predictor.load(file) as predictor, Predictor.load(detector) as rgb, OrtSession(file) as session:
        found, expected = predictor.detect(str(photo), 0.0, clip=False), rgb.detect(str(photo), 0.0, clip=False)
        assert len(found) == 3
        close = SENSITIVE if precision == "fp32" else 5 * SENSITIVE
        assert np.abs(found.scores - expected.scores[:3]).max() < close
        image = np.asarray(Image.open(photo))
        swapped = session.run({"image": np.ascontiguousarray(image[None, ..., ::-1])})
        assert np.array_equal(swapped["scores"][0], found.scores)
        assert np.abs(session.run({"image": image[None]})["scores"][0] - found.scores).max() > 1e-3


def test_verified_again(detector: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    parity = verify_file(detector, tiny_checkpoint)
    assert parity.passed
    assert parity.end_to_end is not None
    other = models.save_checkpoint(
        models.oracle(models.config(), models.seeded(models.config(), 1).state_dict()), tmp_path / "other"
    )
    assert not verify_file(detector, other).passed


def _faults() -> dict[str, Any]:
    weights, add_pixels, add_results = pixels._weights, composing.add_pixels, composing.add_results

    def half_a_pixel(nodes: Nodes, size: Value, new_size: Value, old_axis: int) -> Value:
        turned = weights(nodes, size, new_size, old_axis)
        return nodes.add("Concat", *nodes.add_many("Split", 2, turned, axis=old_axis, num_outputs=2)[::-1], axis=old_axis)

    def wrong_color(nodes: Nodes, image: Value, processor: Any, options: EndToEnd) -> Any:
        return add_pixels(nodes, image, processor, replace(options, color=BGR))

    def unscaled_boxes(nodes: Nodes, height: Value, width: Value, top_k: int, masks: bool) -> dict[str, Value]:
        return add_results(nodes, width, height, top_k, masks)

    def no_object_counts(nodes: Nodes, height: Value, width: Value, top_k: int, masks: bool) -> dict[str, Value]:
        found = add_results(nodes, height, width, top_k, masks)
        return {**found, "labels": found["labels"] * 0}

    def not_sorted(nodes: Nodes, height: Value, width: Value, top_k: int, masks: bool) -> dict[str, Value]:
        found = add_results(nodes, height, width, top_k, masks)
        backwards = np.arange(top_k)[::-1].copy()
        return {name: nodes.add("Gather", value, backwards, axis=1) for name, value in found.items()}

    return {
        "the weights": (pixels, "_weights", half_a_pixel, "pixels differ"),
        "the colours": (composing, "add_pixels", wrong_color, "pixels differ"),
        "the boxes": (composing, "add_results", unscaled_boxes, "boxes differ"),
        "the labels": (composing, "add_results", no_object_counts, "scores differ"),
        "the order": (composing, "add_results", not_sorted, "not sorted"),
    }


@pytest.mark.parametrize("fault", _faults())
def test_a_fault_is_found(fault: str, detector: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that is composed wrongly, against the plain one in a file that passed."""
    module, name, wrong, message = _faults()[fault]
    monkeypatch.setattr(module, name, wrong)
    checkpoint, about = load_checkpoint(tiny_checkpoint), OrtSession(detector).metadata
    assert about is not None
    assert about.end_to_end is not None
    composed = composing.compose(composing.plain_part(onnx.load(detector)), checkpoint.processor, about.end_to_end)
    try:
        found = export._compare_end_to_end(
            composed, about, describe(checkpoint, False), detector.parent, SILENT
        ).disagreement()
    except VerificationError as error:
        found = str(error)
    assert message in found
    assert list(detector.parent.iterdir()) == [detector]


def test_nothing_is_written_if_the_gate_fails(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name, wrong, message = _faults()["the boxes"]
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(VerificationError, match=f"disagrees with its checkpoint: .*{message}"):
        export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "wrong.onnx", WHOLE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": 10**6}, "top_k is 1000000"),
        ({"color": "hsv"}, "color is 'hsv'; expected rgb or bgr"),
        ({"resize": "nearest"}, "resize is 'nearest'"),
        ({"input": "uint8"}, "leave --input"),
        ({"pixel_mask": False}, "leave --input"),
        ({"attentions": True}, "leave --input"),
        ({"precision": "fp16", "fp16_io": True}, "leave --input"),
        ({"opset": 17, "resize": OPERATOR}, "from opset 18 on"),
        ({"end_to_end": False, "top_k": 3}, "add --end-to-end"),
    ],
    ids=str,
)
def test_refused_options(changes: dict[str, Any], message: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=message):
        export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "model.onnx", replace(WHOLE, **changes))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resample": 3}, "filter 3"),
        ({"pad_size": {"height": 500, "width": 500}}, "pad_size"),
        ({"size": {"shortest_edge": 800, "longest_edge": 20000}}, "at most 16384"),
    ],
    ids=str,
)
def test_refused_settings(settings: dict[str, Any], message: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, copy)
    file = copy / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    with pytest.raises(ArtifactError, match=message):
        export_onnx(load_checkpoint(copy), tmp_path / "model.onnx", WHOLE)


def test_bad_images(detector: Path) -> None:
    with Predictor.load(detector) as predictor, OrtSession(detector) as session:
        with pytest.raises(ImageError, match="too thin"):
            predictor.detect(np.zeros((1, 3000, 3), np.uint8))
        assert session.run({"image": np.zeros((1, 1, 3000, 3), np.uint8)})["boxes"].shape[-1] == 4  # one pixel high
        for shape in ((1, 20, 20, 1), (1, 20, 20, 4), (20, 20, 3), (1, 0, 20, 3), (1, 1, 16385, 3)):
            with pytest.raises(InputError):
                session.run({"image": np.zeros(shape, np.uint8)})
        with pytest.raises(InputError, match="float32; expected uint8"):
            session.run({"image": np.zeros((1, 20, 20, 3), np.float32)})


def test_metadata_of_another_kind(detector: Path, tiny_onnx: Path, tmp_path: Path) -> None:
    """A file that says that it is end to end, and is not."""
    whole, plain = onnx.load(detector), onnx.load(tiny_onnx)
    export.save_model(plain, OrtSession(detector).metadata, tmp_path / "lies.onnx")  # type: ignore[arg-type]
    export.save_model(whole, OrtSession(tiny_onnx).metadata, tmp_path / "lies_too.onnx")  # type: ignore[arg-type]
    for name in ("lies.onnx", "lies_too.onnx"):
        with pytest.raises(ArtifactError, match="describe another model"):
            Predictor.load(tmp_path / name)
