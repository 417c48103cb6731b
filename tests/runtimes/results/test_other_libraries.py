"""Results for supervision, pandas and pycocotools, and results out of transformers' outputs."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from transformers import DetrImageProcessor as Oracle
from transformers.models.detr.modeling_detr import DetrObjectDetectionOutput, DetrSegmentationOutput

from detr_export.runtimes import BackendError, Detections, InputError, Segmentation
from detr_export.runtimes.results.interop.supervision_detections import supervision  # without a warning
from detr_export.runtimes.results.rows import COLUMNS, rows_of
from detr_export.runtimes.results.tables import tables_from_detections
from tests.runtimes.results.test_values import EXAMPLES

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, with NumPy 2

ORACLE = Oracle()
NAMES = {0: "N/A", 1: "person", 2: "bicycle", 3: "car", 4: "cat"}
SIZES = [(120, 161), (37, 201)]  # (height, width), pixels


def raw(seed: int, queries: int = 40, sharpness: float = 3.0) -> dict[str, torch.Tensor]:
    """Outputs of two images: most classes, sure and unsure queries, masks of all sizes."""
    draws = torch.Generator().manual_seed(seed)
    grid = torch.stack(torch.meshgrid(torch.linspace(0, 1, 15), torch.linspace(0, 1, 20), indexing="ij"))
    centers = torch.rand(2, queries, 2, 1, 1, generator=draws)
    radius = 0.05 + 0.3 * torch.rand(2, queries, 1, 1, generator=draws)
    distances = (grid - centers).square().sum(dim=2).sqrt()
    return {
        "logits": sharpness * torch.randn(2, queries, len(NAMES) + 1, generator=draws),
        "pred_boxes": torch.rand(2, queries, 4, generator=draws),
        "pred_masks": 20 * (radius - distances),
    }


# ---- transformers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sizes", ["lists", "a tensor", "tensors"])
def test_detections_are_those_of_transformers(threshold: float, seed: int, sizes: str) -> None:
    """Exactly: every bit of every score and box, out of the raw outputs and out of what transformers makes of them."""
    given = raw(seed)
    outputs = DetrObjectDetectionOutput(logits=given["logits"], pred_boxes=given["pred_boxes"])
    target: Any = {"lists": SIZES, "a tensor": torch.tensor(SIZES), "tensors": [torch.tensor(size) for size in SIZES]}[sizes]
    expected = ORACLE.post_process_object_detection(outputs, threshold, torch.tensor(SIZES))
    found = Detections.from_outputs(outputs, target, NAMES, threshold)
    assert len(found) == 2
    for ours, theirs, size in zip(found, expected, SIZES, strict=True):
        assert ours.scores.tobytes() == theirs["scores"].numpy().tobytes()
        assert ours.labels.tolist() == theirs["labels"].tolist()
        assert ours.boxes.tobytes() == theirs["boxes"].numpy().tobytes()
        assert ours.names == tuple(NAMES[label] for label in theirs["labels"].tolist())
        assert ours.image_size == size
        assert Detections.from_transformers(theirs, size, NAMES) == ours
        assert Detections.from_transformers({name: value.numpy() for name, value in theirs.items()}, size, NAMES) == ours
    assert any(len(item) for item in found) == (threshold < 1)


def test_arrays_give_the_same_up_to_the_rounding_of_exp() -> None:
    given = raw(5)
    arrays = {name: value.numpy() for name, value in given.items()}
    for ours, theirs in zip(
        Detections.from_outputs(arrays, SIZES, NAMES), Detections.from_outputs(given, SIZES, NAMES), strict=True
    ):
        np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-6)
        assert np.array_equal(ours.boxes, theirs.boxes)
        assert ours.names == theirs.names


def test_half_precision_is_that_of_transformers() -> None:
    given = raw(6)
    outputs = DetrObjectDetectionOutput(logits=given["logits"].bfloat16(), pred_boxes=given["pred_boxes"].bfloat16())
    expected = ORACLE.post_process_object_detection(outputs, 0.5, torch.tensor(SIZES))
    for ours, theirs in zip(Detections.from_outputs(outputs, SIZES, NAMES, 0.5), expected, strict=True):
        assert ours.scores.tolist() == theirs["scores"].float().tolist()
        assert ours.labels.tolist() == theirs["labels"].tolist()


METHODS = {
    "panoptic": ORACLE.post_process_panoptic_segmentation,
    "instances": ORACLE.post_process_instance_segmentation,
    "semantic": ORACLE.post_process_semantic_segmentation,
}


def segmented_by_transformers(kind: str, outputs: Any, **options: Any) -> list[Any]:
    if kind == "panoptic":
        options = {"label_ids_to_fuse": set(), **options}
    return METHODS[kind](outputs, target_sizes=SIZES, **options)


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_segmentations_are_those_of_transformers(kind: str, seed: int) -> None:
    outputs = DetrSegmentationOutput(**raw(seed, queries=12))
    expected = segmented_by_transformers(kind, outputs)
    for ours, theirs, size in zip(Segmentation.from_outputs(outputs, SIZES, NAMES, kind), expected, SIZES, strict=True):
        exact = Segmentation.from_transformers(theirs, NAMES, kind)
        their_map = theirs if kind == "semantic" else theirs["segmentation"]
        assert np.array_equal(exact.map, np.maximum(their_map.numpy(), 0))
        if kind != "semantic":
            infos = {info["id"]: info for info in theirs["segments_info"]}
            assert len(exact) == len(infos) > 1
            for segment in exact.segments:
                info = infos[segment.id]
                assert (segment.label, segment.score, segment.was_fused) == (
                    info["label_id"],
                    info["score"],
                    info["was_fused"],
                )
                assert segment.name == NAMES[segment.label]
        assert ours.kind == exact.kind == kind
        assert ours.image_size == size
        assert [item.id for item in ours.segments] == [item.id for item in exact.segments]
        assert [item.name for item in ours.segments] == [item.name for item in exact.segments]
        assert np.mean(ours.map != exact.map) < 1e-3  # where two masks tie within rounding


def test_nothing_segmented() -> None:
    outputs = DetrSegmentationOutput(**raw(0))
    (theirs, _) = segmented_by_transformers("panoptic", outputs, threshold=1.0)
    found = Segmentation.from_transformers(theirs, NAMES, "panoptic")
    assert found.image_size == SIZES[0]
    assert found.segments == ()
    assert not found.map.any()
    assert Segmentation.from_outputs(outputs, SIZES, NAMES, "panoptic", threshold=1.0)[0] == found


FUSED = {"segmentation": np.array([[1, 2]]), "segments_info": [{"id": 1, "label_id": 3, "score": 0.5, "was_fused": True}]}
SHARED = {**FUSED, "segments_info": [*FUSED["segments_info"], {"id": 1, "label_id": 4, "score": 0.5, "was_fused": False}]}
BOXES = {"scores": np.ones(2), "labels": np.ones(2), "boxes": np.ones((2, 4))}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Detections.from_transformers({}, (4, 4), NAMES), r"the result is \[\]; expected what post_process_object"),
        (lambda: Detections.from_transformers([BOXES], (4, 4), NAMES), "the result is list"),  # type: ignore[arg-type]
        (lambda: Detections.from_transformers({**BOXES, "labels": np.ones(3)}, (4, 4), NAMES), r"shapes \(2,\), \(3,\)"),
        (lambda: Detections.from_transformers(BOXES, (4,), NAMES), r"\(4,\); expected \(height, width\)"),  # type: ignore[arg-type]
        (lambda: Detections.from_outputs({"logits": np.ones((1, 2, 3))}, [(4, 4)], NAMES), "the outputs have no pred_boxes"),
        (lambda: Detections.from_outputs(raw(0), [(4, 4)], NAMES), "1 target sizes for a batch of 2"),
        (lambda: Segmentation.from_transformers(FUSED, NAMES, "stuff"), "kind of segmentation is 'stuff'"),
        (
            lambda: Segmentation.from_transformers(FUSED["segmentation"], NAMES, "panoptic"),
            "the result is ndarray; expected",
        ),
        (lambda: Segmentation.from_transformers(FUSED, NAMES, "semantic"), r"the map has shape \(\) and type object"),
        (
            lambda: Segmentation.from_transformers(SHARED, NAMES, "panoptic"),
            "two classes have the id 1; use Segmentation.from_outputs",
        ),
        (lambda: Segmentation.from_outputs(raw(0), SIZES, NAMES, "semantic", 0.6), "leave the thresholds out"),
        (
            lambda: Segmentation.from_outputs(raw(0), SIZES, NAMES, "instances", label_ids_to_fuse={1}),
            "leave label_ids_to_fuse out with the kind instances",
        ),
    ],
)
def test_other_things_are_refused(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


# ---- supervision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_supervision_has_what_it_makes_of_transformers_detections(threshold: float) -> None:
    outputs = DetrObjectDetectionOutput(**{name: raw(1)[name] for name in ("logits", "pred_boxes")})
    expected = ORACLE.post_process_object_detection(outputs, threshold, torch.tensor(SIZES))
    for found, theirs in zip(Detections.from_outputs(outputs, SIZES, NAMES, threshold), expected, strict=True):
        ours, oracle = found.to_supervision(), supervision.Detections.from_transformers(theirs, NAMES)
        assert ours == oracle
        assert (ours.xyxy.dtype, ours.confidence.dtype, ours.class_id.dtype) == (np.float32, np.float32, np.int64)
        assert ours.xyxy.shape == (len(found), 4)
        assert ours.data["class_name"].dtype.kind == "U"
        assert ours.data["class_name"].tolist() == [*found.names]
        ours.xyxy[:] = -1  # a copy
        assert (found.boxes != -1).all()


@pytest.mark.parametrize("kind", METHODS)
def test_supervision_has_what_it_makes_of_transformers_segments(kind: str) -> None:
    for theirs in segmented_by_transformers(kind, DetrSegmentationOutput(**raw(2, queries=12))):
        oracle = supervision.Detections.from_transformers(theirs, NAMES)
        ours = Segmentation.from_transformers(theirs, NAMES, kind).to_supervision()
        assert len(ours) > 1
        assert ours == oracle
        assert (ours.confidence is None) == (kind == "semantic")
        assert ours.mask.dtype == bool
        assert ours.data["class_name"].tolist() == oracle.data["class_name"].tolist()


def test_supervision_takes_masks_and_nothing() -> None:
    found = EXAMPLES["detections"]
    made = found.to_supervision()
    assert np.array_equal(made.mask, found.masks)
    assert EXAMPLES["detections without masks"].to_supervision().mask is None
    nothing = EXAMPLES["nothing segmented"].to_supervision()
    assert (len(nothing), nothing.mask.shape) == (0, (0, 2, 3))
    supervision.MaskAnnotator().annotate(np.zeros((4, 5, 3), np.uint8), made)


@pytest.mark.parametrize("package", ["supervision", "pandas"])
def test_a_library_that_is_missing_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if ".results.interop." in name]:
        monkeypatch.delitem(sys.modules, name)
    from detr_export.runtimes.results import interop

    module = "supervision_detections" if package == "supervision" else "pandas_frames"
    monkeypatch.delattr(interop, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    call = getattr(EXAMPLES["detections"], f"to_{package}")
    with pytest.raises(BackendError, match=f"{package} cannot be imported .*; run: pip install {package}$"):
        call()


def test_supervision_says_nothing_about_opencv() -> None:
    """In a fresh interpreter in which warnings are errors."""
    code = (
        "import numpy as np; from detr_export import Detections; "
        "Detections(np.ones(1, np.float32), np.ones(1, int), np.ones((1, 4), np.float32), ('cat',), (4, 4)).to_supervision()"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---- pandas -------------------------------------------------------------------------------------------------------------

KINDS = {
    "label": "int64",
    "score": "float32",
    "x_min": "float32",
    "y_min": "float32",
    "x_max": "float32",
    "y_max": "float32",
}


@pytest.mark.parametrize("name", ["detections", "no detections", "instances"])
def test_pandas_has_the_rows_of_files(name: str) -> None:
    found = EXAMPLES[name]
    frame = found.to_pandas("a.jpg")
    assert [*frame.columns[:8]] == [*COLUMNS]
    rows = [tuple(row) for row in frame[[*COLUMNS]].itertuples(index=False)]
    assert rows == rows_of("a.jpg", found)
    require_kinds(frame, {**KINDS, "file": "text", "class": "text"})
    assert found.to_pandas().equals(frame.drop(columns="file"))


def require_kinds(frame: pandas.DataFrame, kinds: Mapping[str, str]) -> None:
    for column, kind in kinds.items():
        if kind == "text":
            assert pandas.api.types.is_string_dtype(frame[column]) or len(frame) == 0
        else:
            assert str(frame[column].dtype) == kind


@pytest.mark.parametrize("name", ["panoptic", "semantic", "nothing segmented"])
def test_pandas_has_a_row_for_each_segment(name: str) -> None:
    found = EXAMPLES[name]
    frame = found.to_pandas()
    require_kinds(frame, {**KINDS, "class": "text", "id": "int64", "area": "int64", "was_fused": "bool"})
    assert len(frame) == len(found)
    for row, segment in zip(frame.itertuples(), found.segments, strict=True):
        assert (row.id, row.label, row.area, row.was_fused) == (segment.id, segment.label, segment.area, segment.was_fused)
        assert (row.x_min, row.y_min, row.x_max, row.y_max) == segment.box
        assert np.isnan(row.score) if segment.score is None else row.score == np.float32(segment.score)
    assert frame["class"].tolist() == [segment.name for segment in found.segments]


def test_pandas_has_a_row_for_each_cell() -> None:
    boxes = np.array([[0, 0, 40, 20], [0, 0, 20, 20], [20, 0, 40, 20], [0, 0, 40, 10], [0, 10, 40, 20]], np.float32)
    names = ("table", "table column", "table column", "table row", "table row")
    found = Detections(np.linspace(0.9, 0.5, 5, dtype=np.float32), np.arange(5), boxes, names, (20, 40))
    (table,) = tables_from_detections(found)
    frame = table.to_pandas()
    assert frame[["row", "row_end", "column", "column_end"]].to_numpy().tolist() == [
        [0, 1, 0, 1],
        [0, 1, 1, 2],
        [1, 2, 0, 1],
        [1, 2, 1, 2],
    ]
    assert np.array_equal(frame[["x_min", "y_min", "x_max", "y_max"]].to_numpy(), [cell.box for cell in table.cells])
    assert frame["score"].tolist() == [np.float32(cell.score) for cell in table.cells]
    require_kinds(frame, {"row": "int64", "is_column_header": "bool", "score": "float32", "x_max": "float32"})
    empty = EXAMPLES["table without cells"].to_pandas()
    assert (len(empty), [*empty.columns]) == (0, [*frame.columns])


# ---- pycocotools --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("ids", [(1, 2, 3), ("a", "b.jpg", "c")])
def test_pycocotools_scores_detections_and_masks(kind: str, ids: tuple[Any, ...]) -> None:
    """Of three images, one has nothing. What was found is the truth, so that the score is known."""
    masks = np.zeros((3, 60, 80), bool)
    masks[0, 10:50, 5:40], masks[1, :20, 50:], masks[2, 30:55, 45:70] = True, True, True
    boxes = np.array([[5, 10, 40, 50], [50, 0, 80, 20], [45, 30, 70, 55]], np.float32)
    found = Detections(
        np.array([0.9, 0.8, 0.7], np.float32), np.array([1, 3, 1]), boxes, ("person", "car", "person"), (60, 80), masks
    )
    results = [found, found.select(np.array([], int)), found.select(np.array([2, 1]))]
    entries = [entry for number, item in zip(ids, results, strict=True) for entry in item.to_coco(number)]
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": number, "height": 60, "width": 80} for number in ids],
        "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
        "annotations": [
            {**entry, "id": index, "iscrowd": 0, "area": entry["bbox"][2] * entry["bbox"][3]}
            for index, entry in enumerate(entries, 1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        scored = {}
        for name, given in (("all", entries), ("some", entries[1:])):
            evaluated = COCOeval(truth, truth.loadRes(given), kind)
            evaluated.evaluate()
            evaluated.accumulate()
            evaluated.summarize()
            scored[name] = float(evaluated.stats[0])
    assert scored["all"] == pytest.approx(1)
    assert 0.5 < scored["some"] < 0.95
