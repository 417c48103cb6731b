"""Boxes, a mask of each and the panoptic map out of one run, against transformers and torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from detr_export.runtimes import ArtifactError, InputError, Predictor, Segmentation
from detr_export.runtimes.processing.segmentation import query_masks
from detr_export.runtimes.session import Choose
from tests import models

# pycocotools' own decode was written against numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(scope="module")
def predictor(segmenter_onnx: Path) -> Iterator[Predictor]:
    with Predictor.load(segmenter_onnx) as opened:
        yield opened


@pytest.fixture(scope="module")
def pictures(photo: Path) -> list[Image.Image]:
    """Three parts of the photograph; the first and the last have one size."""
    whole = Image.open(photo).convert("RGB")
    return [whole.crop(box) for box in ((0, 0, 200, 150), (100, 100, 190, 310), (300, 200, 500, 350))]


@pytest.mark.parametrize("threshold", [0.0, 0.6])
@pytest.mark.parametrize("mask_threshold", [0.5, 0.7])
def test_masks_of_transformers(
    threshold: float, mask_threshold: float, predictor: Predictor, segmenter: Path, pictures: list[Image.Image]
) -> None:
    import transformers

    processor = transformers.DetrImageProcessor(size=models.SIZE)
    oracle = transformers.DetrForSegmentation.from_pretrained(segmenter).eval()
    given = predictor.detect_and_segment(pictures, threshold, mask_threshold=mask_threshold, clip=False)
    found_counts = []
    for (found, _), picture in zip(given, pictures, strict=True):
        size = (picture.height, picture.width)
        with torch.no_grad():
            outputs = oracle(**processor(picture, return_tensors="pt"))
            logits = torch.nn.functional.interpolate(outputs.pred_masks, size=size, mode="bilinear", align_corners=False)[0]
        (expected,) = processor.post_process_object_detection(outputs, threshold, [size])
        kept = outputs.logits.softmax(-1)[0, :, :-1].max(-1).values > threshold
        masks = (logits[kept].sigmoid() > mask_threshold).numpy()
        assert found.masks is not None
        assert found.masks.dtype == bool
        assert found.masks.shape == masks.shape == (len(found), *size)
        assert (found.masks != masks).mean() < 1e-3
        assert found.labels.tolist() == expected["labels"].tolist()
        assert np.abs(found.scores - expected["scores"].numpy()).max(initial=0) <= 1e-4
        assert np.abs(found.boxes - expected["boxes"].numpy()).max(initial=0) <= 1e-4 * max(size)
        assert all(0.02 < mask.mean() < 0.98 for mask in masks)  # or the comparison would prove little
        found_counts.append(len(found))
    assert found_counts == [9] * 3 if threshold == 0 else 0 < sum(found_counts) < 27


def test_both_are_what_the_other_methods_find(predictor: Predictor, pictures: list[Image.Image]) -> None:
    options = {"overlap_mask_area_threshold": 0.1, "mask_threshold": 0.4, "label_ids_to_fuse": [4]}
    given = predictor.detect_and_segment(pictures, 0.5, 0.3, **options)
    maps = predictor.segment_panoptic(pictures, 0.3, **options)  # type: ignore[call-overload]
    for (found, segmentation), expected, picture in zip(given, maps, pictures, strict=True):
        detected = predictor.detect(picture, 0.5)
        assert np.allclose(found.scores, detected.scores, atol=1e-5)
        assert np.allclose(found.boxes, detected.boxes, atol=1e-2)
        assert found.names == detected.names
        assert segmentation.kind == "panoptic"
        assert np.array_equal(segmentation.map, expected.map)
        assert segmentation.segments == expected.segments
        assert len(segmentation) > 0


def test_one_image_or_a_list(predictor: Predictor, pictures: list[Image.Image]) -> None:
    found, segmentation = predictor.detect_and_segment(pictures[1])
    ((of_list, map_of_list),) = predictor.detect_and_segment(pictures[1:2])
    assert found.masks is not None
    assert np.array_equal(found.masks, of_list.masks)
    assert np.array_equal(segmentation.map, map_of_list.map)
    assert predictor.detect_and_segment([]) == []


def test_the_model_runs_once_a_size(
    predictor: Predictor, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []
    run = predictor.session.run_chosen

    def counted(inputs: Mapping[str, np.ndarray], choose: Choose) -> dict[str, np.ndarray]:
        batches.append(len(inputs["pixel_values"]))
        return run(inputs, choose)

    monkeypatch.setattr(predictor.session, "run_chosen", counted)
    predictor.detect_and_segment(pictures)
    assert batches == [2, 1]


def test_to_coco(predictor: Predictor, pictures: list[Image.Image]) -> None:
    found, _ = predictor.detect_and_segment(pictures[0], 0.6)
    entries = json.loads(json.dumps(found.to_coco(5)))
    assert found.masks is not None
    assert len(entries) == len(found) > 0
    for entry, mask in zip(entries, found.masks, strict=True):
        assert set(entry) == {"image_id", "category_id", "bbox", "score", "segmentation"}
        assert np.array_equal(coco_mask.decode(entry["segmentation"]), mask)
    json.dumps(found.to_dict())
    assert "segmentation" not in predictor.detect(pictures[0], 0.6).to_coco(5)[0]


def test_refuses(predictor: Predictor, tiny_onnx: Path, pictures: list[Image.Image]) -> None:
    assert predictor.draws_masks
    for name in ("threshold", "panoptic_threshold", "mask_threshold", "overlap_mask_area_threshold"):
        with pytest.raises(InputError, match=f"^{name} is 1.5; expected a number from 0 to 1"):
            predictor.detect_and_segment(pictures[0], **{name: 1.5})  # type: ignore[arg-type]
    with Predictor.load(tiny_onnx) as boxes:
        assert not boxes.draws_masks
        with pytest.raises(ArtifactError, match="draws no masks; export a segmentation checkpoint"):
            boxes.detect_and_segment(pictures[0])


@pytest.mark.parametrize("name", ["threshold", "mask_threshold", "overlap_mask_area_threshold"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("method", ["segment_panoptic", "segment_instances"])
def test_refuses_thresholds(method: str, name: str, value: float, predictor: Predictor, pictures: list[Image.Image]) -> None:
    with pytest.raises(InputError, match=f"^{name} is {value}; expected a number from 0 to 1"):
        getattr(predictor, method)(pictures[0], **{name: value})


def test_every_option_of_the_masks_is_typed(predictor: Predictor, pictures: list[Image.Image]) -> None:
    """mypy reads these calls, too."""
    one: Segmentation = predictor.segment_panoptic(pictures[0], 0.3, 0.4, 0.1, [4])
    several: list[Segmentation] = predictor.segment_panoptic(pictures[:1], label_ids_to_fuse=[4], mask_threshold=0.4)
    assert (one.kind, [found.kind for found in several]) == ("panoptic", ["panoptic"])
    one = predictor.segment_instances(pictures[0], 0.3, 0.4, 0.1)
    several = predictor.segment_instances(pictures[:1], overlap_mask_area_threshold=0.1)
    assert (one.kind, [found.kind for found in several]) == ("instances", ["instances"])


@pytest.mark.parametrize("queries", [0, 1, 7])
@pytest.mark.parametrize("size", [(31, 50), (1, 1), (1500, 900)], ids=str)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_query_masks_are_those_of_torch(queries: int, size: tuple[int, int], threshold: float) -> None:
    logits = 3 * torch.randn(queries, 13, 21)
    given = query_masks(logits.numpy(), size, threshold)
    assert (given.dtype, given.shape) == (bool, (queries, *size))
    if queries:
        resized = torch.nn.functional.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
        assert (given != (resized.sigmoid() > threshold).numpy()).mean() <= 1e-4
    assert given.all() if threshold == 0 else not given.any() if threshold == 1 else True


def test_query_masks_refuse_nothing_to_resize() -> None:
    with pytest.raises(InputError, match="target size is"):
        query_masks(np.zeros((2, 3, 4)), (0, 5))
    with pytest.raises(InputError, match="masks end in"):
        query_masks(np.zeros((2, 0, 4)), (5, 5))


def test_spinning_reaches_onnxruntime(segmenter_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    entries = []
    original = onnxruntime.SessionOptions.add_session_config_entry
    monkeypatch.setattr(
        onnxruntime.SessionOptions,
        "add_session_config_entry",
        lambda self, *entry: (entries.append(entry) if "spinning" in entry[0] else None, original(self, *entry))[1],
    )
    Predictor.load(segmenter_onnx).close()
    assert entries == []
    Predictor.load(segmenter_onnx, spinning=False).close()
    assert entries == [("session.intra_op.allow_spinning", "0")] * 2  # the detector's and the mask head's
