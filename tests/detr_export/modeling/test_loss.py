"""The matcher and the loss against transformers 4.57's, term by term, and their gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import distributed

from detr_export.modeling.boxes import center_to_corners, generalized_box_iou
from detr_export.modeling.detr import DetrForObjectDetection
from detr_export.modeling.loss import Prediction, detr_loss
from detr_export.modeling.matcher import HungarianMatcher
from detr_export.modeling.segmentation import DetrForSegmentation
from detr_export.runtimes.errors import InputError
from detr_export.seeding import random_images, seed_weights
from tests import models

MASKED = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}  # a mask head wants d_model + heads divisible by 8


def targets(counts: list[int], seed: int, masks: bool = False) -> list[dict[str, torch.Tensor]]:
    """Random objects; masks of another size for each image."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for index, count in enumerate(counts):
        size = torch.rand(count, 2, generator=generator) * 0.4 + 0.05
        center = size / 2 + torch.rand(count, 2, generator=generator) * (1 - size)
        target = {
            "class_labels": torch.randint(0, 5, (count,), generator=generator),
            "boxes": torch.cat((center, size), dim=-1),
        }
        if masks:
            target["masks"] = torch.rand(count, 90 + index, 126 - index, generator=generator) > 0.6
        result.append(target)
    return result


def batch(size: int) -> dict[str, torch.Tensor]:
    mask = torch.ones(size, 96, 128, dtype=torch.int64)
    mask[-1, 60:], mask[-1, :, 70:] = 0, 0
    return {"pixel_values": torch.from_numpy(random_images((size, 3, 96, 128), 5)) * mask[:, None], "pixel_mask": mask}


def pair(kind: type, **changes: Any) -> tuple[Any, Any]:
    import transformers

    ours = kind(models.config(**changes))
    seed_weights(ours)
    if ours.config.pre_norm:
        theirs = models.oracle(ours.config)
    else:
        values = {**ours.config.to_dict(), "use_pretrained_backbone": False}
        theirs = getattr(transformers, kind.__name__)(transformers.DetrConfig.from_dict(values))
    theirs.load_state_dict(ours.state_dict())
    # transformers looks for "stage.1" in names that say "stages.1", and so freezes a no_timm backbone throughout.
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        other.requires_grad_(one.requires_grad)
    return ours, theirs.eval()


WEIGHTS = {"class_cost": 2, "bbox_cost": 3, "bbox_loss_coefficient": 4, "giou_loss_coefficient": 1.5, "eos_coefficient": 0.3}


@pytest.mark.parametrize("counts", [[3, 0, 9], [1], [0, 0], [4, 12]], ids=str)
@pytest.mark.parametrize(
    "changes",
    [{}, {"auxiliary_loss": True}, {"auxiliary_loss": True, **WEIGHTS}, {"model_type": "table-transformer"}],
    ids=["plain", "aux", "weights", "pre-norm"],
)
def test_detection_terms_and_gradients(counts: list[int], changes: dict[str, Any]) -> None:
    ours, theirs = pair(DetrForObjectDetection, **changes)
    labels = targets(counts, seed=len(counts))
    given, expected = ours(**batch(len(counts)), labels=labels), theirs(**batch(len(counts)), labels=labels)
    assert list(given.loss_dict) == list(expected.loss_dict)
    for name, value in expected.loss_dict.items():
        torch.testing.assert_close(
            given.loss_dict[name], value, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    torch.testing.assert_close(given.loss, expected.loss.reshape(()), atol=1e-5, rtol=1e-5)
    assert (given.auxiliary_outputs is None) == (expected.auxiliary_outputs is None)
    if expected.auxiliary_outputs is not None:
        for one, other in zip(given.auxiliary_outputs, expected.auxiliary_outputs, strict=True):
            torch.testing.assert_close(one["logits"], other["logits"], atol=1e-4, rtol=0)
    _assert_same_gradients(ours, theirs, given.loss, expected.loss)


@pytest.mark.parametrize("auxiliary", [False, True])
def test_segmentation_terms_and_gradients(auxiliary: bool) -> None:
    ours, theirs = pair(DetrForSegmentation, auxiliary_loss=auxiliary, mask_loss_coefficient=2, **MASKED)
    labels = targets([3, 0, 5], seed=1, masks=True)
    given, expected = ours(**batch(3), labels=labels), theirs(**batch(3), labels=labels)
    assert set(given.loss_dict) == set(expected.loss_dict)
    assert {"loss_mask", "loss_dice"} <= set(given.loss_dict)
    for name, value in expected.loss_dict.items():
        torch.testing.assert_close(
            given.loss_dict[name], value, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    _assert_same_gradients(ours, theirs, given.loss, expected.loss)


def _assert_same_gradients(ours: Any, theirs: Any, loss: torch.Tensor, expected: torch.Tensor) -> None:
    loss.backward()
    expected.backward()
    for (name, one), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            scale = max(float(other.grad.abs().max()), 1e-2)
            assert float((one.grad - other.grad).abs().max()) <= 2e-4 * scale, name


def test_tuple_outputs_carry_the_loss_first() -> None:
    ours, theirs = pair(DetrForObjectDetection)
    labels = targets([2, 3], seed=0)
    given, expected = (
        ours(**batch(2), labels=labels, return_dict=False),
        theirs(**batch(2), labels=labels, return_dict=False),
    )
    assert len(given) == len(expected)
    torch.testing.assert_close(given[0], expected[0].reshape(()), atol=1e-5, rtol=1e-5)
    assert list(given[1]) == list(expected[1])


@pytest.mark.parametrize("seed", range(20))
def test_matcher_is_that_of_transformers(seed: int) -> None:
    from transformers.loss.loss_for_object_detection import HungarianMatcher as Oracle

    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 11, 6, generator=generator) * 3
    boxes = torch.rand(3, 11, 4, generator=generator)
    labels = targets([seed % 4, 5, 15], seed)
    costs = {"class_cost": 1.0, "bbox_cost": 5.0 * (seed % 3), "giou_cost": 2.0}
    given = HungarianMatcher(**costs)(logits, boxes, labels)
    expected = Oracle(**costs)({"logits": logits, "pred_boxes": boxes}, labels)
    for (rows, objects), (other_rows, other_objects) in zip(given, expected, strict=True):
        assert torch.equal(rows, other_rows)
        assert torch.equal(objects, other_objects)


def test_generalized_iou_of_known_boxes() -> None:
    first = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    second = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0], [4.0, 0.0, 6.0, 2.0]])
    expected = torch.tensor([[1.0, 1 / 7 - 2 / 9, -4 / 12]])
    torch.testing.assert_close(generalized_box_iou(first, second), expected)
    torch.testing.assert_close(center_to_corners(torch.tensor([[2.0, 3.0, 2.0, 4.0]])), torch.tensor([[1.0, 1.0, 3.0, 5.0]]))


def _lack(name: str) -> Any:
    return lambda labels: [{key: value for key, value in labels[0].items() if key != name}, labels[1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda labels: labels[:1], "labels for 1 images, and 2 images"),
        (_lack("boxes"), "labels\\[0\\] lacks boxes"),
        (lambda labels: [{**labels[0], "boxes": labels[0]["boxes"][:1]}, labels[1]], "labels\\[0\\] has 3 class_labels"),
        (lambda labels: [{**labels[0], "class_labels": labels[0]["class_labels"] + 5}, labels[1]], "outside 0 to 4"),
        (lambda labels: [{**labels[0], "boxes": labels[0]["boxes"] * float("nan")}, labels[1]], "second boxes are NaN"),
        (lambda labels: [{**labels[0], "boxes": -labels[0]["boxes"]}, labels[1]], "a minimum lies above its maximum"),
    ],
)
def test_refuses_labels(change: Any, message: str) -> None:
    model = models.seeded(models.config())
    with pytest.raises(InputError, match=message):
        model(**batch(2), labels=change(targets([3, 2], seed=0)))


def test_refuses_a_matcher_without_weights() -> None:
    with pytest.raises(InputError, match="all costs of the matcher are 0"):
        HungarianMatcher(0, 0, 0)


def _distributed_loss(rank: int, store: str, results: Any) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    prediction, labels = _example(rank)
    loss, terms = detr_loss(models.config(), prediction, [], labels)
    results[rank] = (float(loss), float(terms["loss_bbox"]))
    distributed.destroy_process_group()


def _example(rank: int) -> tuple[Prediction, list[dict[str, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(rank)
    prediction = Prediction(torch.randn(1, 9, 6, generator=generator), torch.rand(1, 9, 4, generator=generator) * 0.4 + 0.3)
    return prediction, targets([1 + 3 * rank], seed=rank)


def test_the_number_of_boxes_is_averaged_over_processes(tmp_path: Any) -> None:
    context = torch.multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        processes = [
            context.Process(target=_distributed_loss, args=(rank, str(tmp_path / "store"), results)) for rank in (0, 1)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0]
        for rank, count in ((0, 1), (1, 4)):
            prediction, labels = _example(rank)
            _, terms = detr_loss(models.config(), prediction, [], labels)
            mean = (1 + 4) / 2
            assert results[rank][1] == pytest.approx(float(terms["loss_bbox"]) * count / mean, rel=1e-5)
