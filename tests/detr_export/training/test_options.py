"""The recipe's values and the stages that follow from them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from detr_export.runtimes.errors import InputError
from detr_export.training.options import Stage, TrainingOptions


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({}, (Stage("detector", 300),)),
        ({"task": "panoptic"}, (Stage("detector", 300), Stage("masks", 25))),
        ({"task": "panoptic", "jointly": True}, (Stage("all", 300),)),
        ({"task": "panoptic", "epochs": 0}, (Stage("masks", 25),)),
        ({"task": "panoptic", "mask_epochs": 0}, (Stage("detector", 300),)),
    ],
)
def test_stages(changes: dict[str, Any], stages: tuple[Stage, ...]) -> None:
    assert TrainingOptions(**changes).stages == stages


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "both"}, "task is 'both'; expected one of detection, panoptic"),
        ({"epochs": -1}, "epochs is -1; expected at least 0"),
        ({"epochs": 0}, "there are no epochs to train"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; expected a number from 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"drop": 1.5}, "drop is 1.5; expected a number from 0 to 1"),
        ({"scale": (1.0, 0.5)}, "scale is .*the lower one first"),
        ({"scale": (0.0, 1.0)}, "scale is"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainingOptions(**changes)


def test_options_are_json() -> None:
    document = json.loads(json.dumps(TrainingOptions().to_dict()))
    assert document["scale"] == [0.6, 1.0]
    assert document["clip"] == 0.1
