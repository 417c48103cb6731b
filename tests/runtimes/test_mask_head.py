"""A segmentation model in two files gives what the same model in one gives, and draws no mask that nobody wants."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_export.runtimes import ArtifactError, Predictor, mask_head
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.folder import predict_files
from detr_export.runtimes.mask_head import TwoGraphSession, mask_head_file, size_of_dimension
from detr_export.runtimes.opening import open_session
from detr_export.runtimes.session import Session
from tests import models

QUERIES = models.TINY["num_queries"]


class Watched(Session):
    """A mask head that notes how many queries it draws in each run."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.inputs, self.outputs, self.metadata = session.inputs, session.outputs, session.metadata
        self.drawn: list[int] = []

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.drawn.append(inputs[mask_head.QUERY_STATES].shape[1])
        return self._session.run(inputs)

    def close(self) -> None:
        self._session.close()


@pytest.fixture(scope="module")
def one(segmenter_one_graph: Path) -> Iterator[Predictor]:
    with Predictor.load(segmenter_one_graph) as predictor:
        yield predictor


@pytest.fixture
def watched(segmenter_onnx: Path) -> Watched:
    return Watched(OrtSession(mask_head_file(segmenter_onnx)))


@pytest.fixture
def two(segmenter_onnx: Path, watched: Watched) -> Iterator[Predictor]:
    with Predictor(TwoGraphSession(OrtSession(segmenter_onnx), watched)) as predictor:
        yield predictor


@pytest.fixture(scope="module")
def pictures(photo: Path) -> list[Image.Image]:
    """Three parts of the photograph; the first and the last have one size."""
    whole = Image.open(photo).convert("RGB")
    return [whole.crop(box) for box in ((0, 0, 200, 150), (100, 100, 190, 310), (300, 200, 500, 350))]


def scores_of(predictor: Predictor, pictures: list[Image.Image]) -> np.ndarray:
    """Of all queries, of each picture alone: padding would change them."""
    return np.concatenate([predictor.detect(picture, threshold=0).scores for picture in pictures])


def require_same(one: Any, other: Any) -> None:
    """Equal segments, and maps that differ at ties at most."""
    assert [replace(item, score=0.0) for item in one.segments] == [replace(item, score=0.0) for item in other.segments]
    assert one.map.shape == other.map.shape
    assert (one.map != other.map).sum() <= 2


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_two_graphs_give_what_one_gives(
    share: float, one: Predictor, two: Predictor, watched: Watched, pictures: list[Image.Image]
) -> None:
    """At thresholds that all, many, few and none of the queries are above."""
    scores = scores_of(one, pictures)
    threshold = 1.0 if share == 1 else 0.0 if share == 0 else float(np.quantile(scores, share))
    above = int((scores > np.float32(threshold)).sum())
    assert (above == 0) == (share == 1)
    assert (above == scores.size) == (share == 0)
    watched.drawn.clear()
    given = two.segment_panoptic(pictures, threshold, overlap_mask_area_threshold=0.1)
    assert sum(watched.drawn) == above
    for ours, theirs in zip(given, one.segment_panoptic(pictures, threshold, overlap_mask_area_threshold=0.1), strict=True):
        require_same(ours, theirs)
    for ours, theirs in zip(
        two.segment_instances(pictures, threshold), one.segment_instances(pictures, threshold), strict=True
    ):
        require_same(ours, theirs)


def test_detections_with_masks_are_those_of_one_graph(
    one: Predictor, two: Predictor, watched: Watched, pictures: list[Image.Image]
) -> None:
    threshold = float(np.median(scores_of(one, pictures)))
    watched.drawn.clear()
    given = two.detect_and_segment(pictures, threshold, panoptic_threshold=0.99)
    assert 0 < sum(watched.drawn) < QUERIES * len(pictures)
    for (found, segments), (expected, theirs) in zip(
        given, one.detect_and_segment(pictures, threshold, panoptic_threshold=0.99), strict=True
    ):
        assert found.masks is not None
        assert expected.masks is not None
        assert found.masks.any()
        assert (found.masks != expected.masks).sum() <= 2 * len(found)
        assert np.abs(found.boxes - expected.boxes).max() < 1e-2
        require_same(segments, theirs)


def test_semantic_maps_need_all_masks(one: Predictor, two: Predictor, watched: Watched, pictures: list[Image.Image]) -> None:
    for ours, theirs in zip(two.segment_semantic(pictures), one.segment_semantic(pictures), strict=True):
        require_same(ours, theirs)
    assert sum(watched.drawn) == QUERIES * len(pictures)


def test_boxes_need_no_mask(two: Predictor, watched: Watched, pictures: list[Image.Image]) -> None:
    assert two.draws_masks
    two.detect(pictures, threshold=0)
    assert watched.drawn == []


def test_a_folder_draws_no_more_masks(two: Predictor, watched: Watched, photo: Path) -> None:
    threshold = float(np.median(two.detect(photo, threshold=0).scores))
    assert watched.drawn == []
    (outcome,) = predict_files(two, [photo], threshold, task="panoptic")
    assert outcome.error is None
    assert 0 < sum(watched.drawn) < QUERIES


def test_a_session_of_two_graphs_is_one_that_draws_all_masks(
    segmenter_onnx: Path, segmenter_one_graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    mask = np.ones((2, 70, 99), np.int64)
    mask[1, 50:] = 0
    pixels = (generator.normal(size=(2, 3, 70, 99)) * mask[:, None]).astype(np.float32)
    inputs = {"pixel_values": pixels, "pixel_mask": mask}
    with open_session(segmenter_onnx) as two, open_session(segmenter_one_graph) as one:
        assert [spec.name for spec in two.outputs] == [spec.name for spec in one.outputs]
        assert isinstance(two, TwoGraphSession)
        assert not isinstance(one, TwoGraphSession)
        expected, given = one.run(inputs), two.run(inputs)
        # Few queries at a time, as a large image would need, give the same.
        detector, drawing = two.parts
        counting = Watched(drawing)
        monkeypatch.setattr(mask_head, "_MEMORY", 1)
        in_turns = TwoGraphSession(detector, counting).run(inputs)
    assert counting.drawn == [1] * (2 * QUERIES)
    for name, value in expected.items():
        assert given[name].dtype == value.dtype
        assert np.abs(given[name] - value).max() < 1e-3
        assert np.abs(in_turns[name] - given[name]).max() < 1e-3
    assert np.ptp(expected["pred_masks"], axis=1).max() > 1  # masks of different queries are far apart


def test_openvino_runs_both_graphs(segmenter_onnx: Path, one: Predictor, pictures: list[Image.Image]) -> None:
    with Predictor.load(segmenter_onnx, "openvino") as two:
        assert isinstance(two.session, TwoGraphSession)
        require_same(two.segment_panoptic(pictures[0], 0.5), one.segment_panoptic(pictures[0], 0.5))


def copied(file: Path, folder: Path) -> Path:
    for part in (file, mask_head_file(file)):
        shutil.copy(part, folder / part.name)
    return folder / file.name


def test_files_that_do_not_belong_together_are_refused(segmenter_onnx: Path, tmp_path: Path) -> None:
    file = copied(segmenter_onnx, tmp_path)
    renamed = file.rename(tmp_path / "other.onnx")
    with pytest.raises(
        ArtifactError, match=r"other\.masks\.onnx is missing: other\.onnx draws its masks with it; copy both"
    ):
        open_session(renamed)
    mask_head_file(file).rename(mask_head_file(renamed))
    open_session(renamed).close()  # both names may change together
    content = mask_head_file(renamed).read_bytes()
    mask_head_file(renamed).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=r"other\.masks\.onnx is not the mask head of other\.onnx: its SHA-256 differs"):
        open_session(renamed)


def test_a_mask_head_alone_is_refused(segmenter_onnx: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"is the mask head of a model in two files; give the other one: segmenter\.onnx$"
    ):
        open_session(mask_head_file(segmenter_onnx))


def test_a_detector_that_gives_no_features_is_refused(segmenter_onnx: Path, tiny_onnx: Path) -> None:
    with (
        OrtSession(tiny_onnx) as detector,
        OrtSession(mask_head_file(segmenter_onnx)) as drawing,
        pytest.raises(
            ArtifactError, match=r"the detector does not give feature_mask, mask_features, mask_keys, .*; export both"
        ),
    ):
        TwoGraphSession(detector, drawing)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("height", 65),
        ("ceil(height/32)", 3),
        ("ceil(width/4)", 25),
        ("queries", 7),
        ("depth", None),
        ("ceil(depth/2)", None),
    ],
)
def test_sizes_of_dimensions(name: str, size: int | None) -> None:
    assert size_of_dimension(name, {"height": 65, "width": 97, "queries": 7}) == size
