"""Typed segmentations made by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from detr_export.runtimes import ImageError, InputError
from detr_export.runtimes.processing.annotations.panoptic import rgb_to_id
from detr_export.runtimes.processing.merging import assign_segment_ids
from detr_export.runtimes.results.segmentation import make_segmentation

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

NAMES = {0: "N/A", 1: "cat", 2: "grass"}
IDS = np.array([[1, 1, 2, 0], [1, 3, 2, 2]])
INFO = [
    {"id": 1, "label_id": 1, "score": 0.9, "was_fused": False},
    {"id": 2, "label_id": 2, "score": 0.6, "was_fused": True},
    {"id": 2, "label_id": 2, "score": 0.8, "was_fused": True},
    {"id": 3, "label_id": 1, "score": 0.7, "was_fused": False},
    {"id": 4, "label_id": 1, "score": 0.7, "was_fused": False},  # won no pixel
]


def test_segments_are_joined_and_measured() -> None:
    found = make_segmentation("panoptic", IDS, INFO, NAMES)
    assert [(item.id, item.name, item.score, item.area, item.box) for item in found.segments] == [
        (1, "cat", 0.9, 3, (0, 0, 2, 2)),
        (2, "grass", 0.8, 3, (2, 0, 4, 2)),
        (3, "cat", 0.7, 1, (1, 1, 2, 2)),
    ]
    assert found.image_size == (2, 4)
    assert len(found) == 3


def test_coco_results() -> None:
    panoptic = make_segmentation("panoptic", IDS, INFO, NAMES)
    document = panoptic.to_coco(7)
    assert document["file_name"] == "7.png"
    assert document["segments_info"][1] == {"id": 2, "category_id": 2, "area": 3, "bbox": [2, 0, 2, 2], "iscrowd": 0}
    assert np.array_equal(rgb_to_id(np.asarray(panoptic.panoptic_png())), IDS)
    instances = make_segmentation("instances", IDS, INFO, NAMES).to_coco(7)
    for entry, segment in zip(instances, panoptic.segments, strict=True):
        assert np.array_equal(coco_mask.decode(entry["segmentation"]), segment.id == IDS)
        assert entry["score"] == segment.score
    json.dumps([document, instances, panoptic.to_dict()])


def test_large_ids_survive_the_picture() -> None:
    ids = np.array([[0, 255, 256], [65536, 70000, 1]])
    assert np.array_equal(rgb_to_id(np.asarray(make_segmentation("panoptic", ids, [], NAMES).panoptic_png())), ids)


def test_semantic_maps_have_classes_for_ids() -> None:
    found = make_segmentation("semantic", np.array([[0, 2], [2, 2]]), [], NAMES)
    assert [(item.id, item.name, item.score, item.area) for item in found.segments] == [
        (0, "N/A", None, 1),
        (2, "grass", None, 3),
    ]
    assert "score" not in found.to_coco("a")[0]


def test_nothing_found() -> None:
    found = make_segmentation("instances", np.full((3, 5), -1.0, dtype=np.float32), [], NAMES)
    assert (found.map == 0).all()
    assert found.segments == ()
    assert found.to_coco(1) == []


def test_drawing() -> None:
    ids = np.zeros((60, 80), dtype=np.int32)
    ids[10:40, 5:50], ids[20:60, 50:80] = 1, 2
    found = make_segmentation("panoptic", ids, INFO, NAMES)
    image = Image.new("RGB", (80, 60), (100, 100, 100))
    drawn = np.asarray(found.draw(image)).astype(int)
    assert (drawn[2, 2] == 100).all()  # no segment, no colour
    assert not np.array_equal(drawn[12, 6], drawn[58, 78])  # one colour a segment
    with pytest.raises(ImageError, match="the prediction is for an image of 60x80"):
        found.draw(Image.new("RGB", (81, 60)))


def test_refuses_unknown_kinds() -> None:
    with pytest.raises(InputError, match="kind of segmentation is 'stuff'"):
        make_segmentation("stuff", IDS, INFO, NAMES)


def test_distinct_ids_never_name_two_classes() -> None:
    labels, ones = np.array([0, 1, 0, 2]), np.ones(4)
    shared, _ = assign_segment_ids(ones, ones, ones, labels, 0.5, {0})
    distinct, segments = assign_segment_ids(ones, ones, ones, labels, 0.5, {0}, distinct_ids=True)
    assert shared.tolist() == [1, 2, 1, 2]  # as transformers numbers them
    assert distinct.tolist() == [1, 2, 1, 3]
    assert [item["label_id"] for item in segments] == [0, 1, 0, 2]
