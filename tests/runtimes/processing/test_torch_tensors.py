"""Tensors in and out of the processors, as transformers 4.57.6 gives them."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.utils import TensorType
from transformers.utils import logging as oracle_logging

from detr_export.runtimes import DetrImageProcessor, DetrImageProcessorFast
from detr_export.runtimes.errors import BackendError, InputError
from detr_export.runtimes.processing.batch_feature import BatchFeature
from detr_export.runtimes.processing.torch_tensors import to_tensor
from tests.runtimes.processing import test_segmentation
from tests.runtimes.processing.annotations import coco_records as coco

oracle_logging.set_verbosity_error()

PAIRS = [
    (DetrImageProcessor, transformers.DetrImageProcessor),
    (DetrImageProcessorFast, transformers.DetrImageProcessorFast),
]
SIZE = {"shortest_edge": 40, "longest_edge": 60}
ORACLE = transformers.DetrImageProcessor()


def assert_same(given: Any, expected: Any) -> None:
    """Nested mappings and lists of tensors: the same keys, types, dtypes, devices and values."""
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(given, expected, rtol=0, atol=0)
    elif hasattr(expected, "keys"):
        assert set(given) == set(expected.keys())
        for key in given:
            assert_same(given[key], expected[key])
    else:
        assert type(given) is type(expected)
        assert len(given) == len(expected)
        for one, other in zip(given, expected, strict=True):
            assert_same(one, other)


# ---- images and annotations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_detection_batches_equal_the_oracle(seed: int, masks: bool) -> None:
    images = coco.images(seed, 1 + seed % 3)
    records = [coco.detection(seed + i, x.shape[:2], keypoints=seed % 2 == 0) for i, x in enumerate(images)]
    call: dict[str, Any] = {"return_segmentation_masks": masks, "size": SIZE, "return_tensors": TensorType.PYTORCH}
    expected = ORACLE(images, annotations=copy.deepcopy(records), **call)
    assert_same(DetrImageProcessor()(images, annotations=records, **call), expected)


@pytest.mark.parametrize("seed", range(3))
def test_panoptic_batches_equal_the_oracle(seed: int, tmp_path: Path) -> None:
    images = coco.images(seed, 2)
    records = [coco.panoptic(seed + i, x.shape[:2], tmp_path) for i, x in enumerate(images)]
    call = {"masks_path": tmp_path, "format": "coco_panoptic", "size": SIZE, "return_tensors": "pt"}
    expected = ORACLE(images, annotations=copy.deepcopy(records), **call)
    assert_same(DetrImageProcessor()(images, annotations=records, **call), expected)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("do_pad", [True, False])
def test_tensors_are_images(ours: type[DetrImageProcessor], theirs: Any, do_pad: bool) -> None:
    images = [torch.from_numpy(image.transpose(2, 0, 1).copy()) for image in coco.images(2, 1)]
    call = {"size": {"height": 30, "width": 44}, "do_pad": do_pad, "return_tensors": "pt"}
    assert_same(ours()(images, **call), theirs()(images, **call))
    assert_same(ours()(torch.stack(images), **call), theirs()(images, **call))


def test_padding_tensors_equals_the_oracle() -> None:
    """A `collate_fn` does this with what a data set gives."""
    values = [torch.randn(3, 20, 31), torch.randn(3, 26, 24)]
    for options in ({"return_tensors": "pt"}, {"return_tensors": "np"}, {}, {"pad_size": {"height": 40, "width": 40}}):
        ours, theirs = DetrImageProcessor().pad(values, **options), ORACLE.pad(values, **options)
        assert set(ours) == set(theirs.keys())
        for name in ours:
            assert isinstance(ours[name], type(theirs[name]))
            for one, other in zip(ours[name], theirs[name], strict=True):
                assert type(one) is type(other)
                assert np.array_equal(one, other)


def test_padding_takes_labels_that_are_tensors() -> None:
    image = coco.images(0, 1)[0]
    record = coco.detection(0, image.shape[:2])
    call = {"do_resize": False, "do_pad": False}
    prepared = {kind: DetrImageProcessor()(image, record, return_tensors=kind, **call) for kind in ("np", "pt")}
    padded = {
        kind: DetrImageProcessor().pad(
            list(batch.pixel_values), batch.labels, return_tensors=kind, pad_size={"height": 90, "width": 80}
        )
        for kind, batch in prepared.items()
    }
    assert_same(padded["pt"], padded["np"].with_tensors())
    assert padded["pt"].labels[0].size.tolist() == [90, 80]


def test_gradients_and_bfloat16_do_not_stop_an_image() -> None:
    values = torch.rand(3, 8, 9, requires_grad=True)
    assert torch.equal(DetrImageProcessor().pad([values], return_tensors="pt").pixel_values[0], values.detach())
    half = DetrImageProcessor().pad([values.detach().bfloat16()], return_tensors="pt").pixel_values[0]
    assert torch.equal(half, values.detach().bfloat16().float())


def test_read_only_arrays_are_copied() -> None:
    array = np.broadcast_to(np.float32(1), (2, 3))
    tensor = to_tensor(array)
    tensor += 1
    assert array.max() == 1
    with pytest.raises(InputError, match="expected numbers"):
        to_tensor("text")


def test_without_torch_tensors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    image = coco.images(0, 1)[0]
    assert DetrImageProcessor()(image, return_tensors="np").pixel_values.ndim == 4
    for call in (DetrImageProcessor(), DetrImageProcessor().pad):
        with pytest.raises(BackendError, match=r"torch.*pip install 'detr-export\[export\]'"):
            call([image], return_tensors="pt")


# ---- the batch ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (("cpu",), {}),
        ((torch.device("cpu"), torch.float16), {}),
        ((torch.float64,), {}),
        ((), {"device": "cpu", "dtype": torch.bfloat16, "non_blocking": True}),
        (("meta",), {}),
    ],
)
def test_moving_equals_the_oracle(arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    content = {"pixel_values": torch.rand(1, 3, 4, 4), "pixel_mask": torch.ones(1, 4, 4, dtype=torch.int64)}
    labels = [{"boxes": torch.rand(2, 4)}]
    ours = BatchFeature(content, labels=labels)
    theirs = transformers.BatchFeature({**content, "labels": labels})
    assert ours.to(*arguments, **options) is ours
    theirs.to(*arguments, **options)
    for name in content:
        assert (ours[name].dtype, ours[name].device) == (theirs[name].dtype, theirs[name].device)
    assert ours.labels is labels


def test_a_batch_that_cannot_move_is_refused() -> None:
    with pytest.raises(InputError, match="return_tensors='pt'"):
        BatchFeature(pixel_values=np.zeros(3)).to("cpu")
    batch = BatchFeature(pixel_values=torch.zeros(3))
    with pytest.raises(InputError, match="two dtypes"):
        batch.to(torch.float16, torch.float32)
    with pytest.raises(InputError, match="two devices"):
        batch.to("cpu", device="cpu")


# ---- post-processing ----------------------------------------------------------------------------------------------------

SEGMENTATIONS = ("semantic", "instance", "panoptic")


@pytest.mark.parametrize("sizes", ["none", "list", "tuples", "tensor", "tensors"])
def test_detections_are_tensors(sizes: str) -> None:
    outputs = test_segmentation.for_torch(test_segmentation.model_outputs(3, batch=2))
    pairs = [(100, 133), (61, 83)]
    targets = {
        "none": None,
        "list": [list(pair) for pair in pairs],
        "tuples": pairs,
        "tensor": torch.tensor(pairs),
        "tensors": [torch.tensor(pair) for pair in pairs],
    }[sizes]
    given = DetrImageProcessor().post_process_object_detection(outputs, 0.6, targets)
    expected = ORACLE.post_process_object_detection(outputs, 0.6, targets)
    assert sum(len(one["scores"]) for one in expected) > 3
    for ours, theirs in zip(given, expected, strict=True):
        for name in ("scores", "labels", "boxes"):
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", SEGMENTATIONS)
@pytest.mark.parametrize("sizes", [None, [(100, 133), (61, 83)]])
def test_segmentations_are_tensors(kind: str, sizes: list[tuple[int, int]] | None) -> None:
    outputs = test_segmentation.for_torch(test_segmentation.model_outputs(3, batch=2))
    method = f"post_process_{kind}_segmentation"
    given = getattr(DetrImageProcessor(), method)(outputs, target_sizes=sizes)
    expected = getattr(ORACLE, method)(outputs, target_sizes=sizes)
    for ours, theirs in zip(given, expected, strict=True):
        ours_map, theirs_map = (one if kind == "semantic" else one["segmentation"] for one in (ours, theirs))
        assert (ours_map.dtype, ours_map.shape) == (theirs_map.dtype, theirs_map.shape)
        assert (ours_map != theirs_map).float().mean() <= test_segmentation.MAX_DIFFERING
        if kind != "semantic":
            test_segmentation.assert_same_segments(ours["segments_info"], theirs["segments_info"])


def test_instances_as_runs_are_lists_for_tensors_too() -> None:
    outputs = test_segmentation.for_torch(test_segmentation.model_outputs(3))
    given = DetrImageProcessor().post_process_instance_segmentation(outputs, return_coco_annotation=True)[0]
    expected = ORACLE.post_process_instance_segmentation(outputs, return_coco_annotation=True)[0]
    assert given["segmentation"] == [[int(number) for number in runs] for runs in expected["segmentation"]]


def test_nothing_found_is_a_tensor_too() -> None:
    outputs = test_segmentation.for_torch(test_segmentation.model_outputs(3))
    for processor in (DetrImageProcessor(), ORACLE):
        result = processor.post_process_panoptic_segmentation(outputs, threshold=1.0, label_ids_to_fuse=set())[0]
        assert result["segments_info"] == []
        assert torch.equal(result["segmentation"], torch.full((25, 34), -1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_outputs_of_training_and_of_any_precision(dtype: torch.dtype) -> None:
    arrays = test_segmentation.model_outputs(3)
    outputs = {name: torch.from_numpy(array).to(dtype).requires_grad_() for name, array in arrays.items()}
    processor = DetrImageProcessor()
    found = processor.post_process_object_detection(outputs, 0.5)[0]
    assert not any(value.requires_grad for value in found.values())
    assert found["scores"].dtype == torch.float32
    assert len(found["scores"]) > 2
    everything = processor.post_process(outputs, torch.tensor([[10, 10]]))[0]
    assert len(everything["scores"]) == arrays["logits"].shape[1]
    for kind in SEGMENTATIONS:
        result = getattr(processor, f"post_process_{kind}_segmentation")(outputs)[0]
        assert not (result if kind == "semantic" else result["segmentation"]).requires_grad


def test_arrays_stay_arrays() -> None:
    outputs = test_segmentation.model_outputs(3)
    assert isinstance(DetrImageProcessor().post_process_object_detection(outputs)[0]["boxes"], np.ndarray)
    assert isinstance(DetrImageProcessor().post_process_semantic_segmentation(outputs)[0], np.ndarray)
