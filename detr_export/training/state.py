"""The state of an unfinished run: what a later run needs to end in the same weights."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detr_export.runtimes.errors import InputError
from detr_export.runtimes.files import write_atomically

STATE_NAME = "training_state.pt"  # there until the last step is done


@dataclass(frozen=True)
class State:
    """Where a run is."""

    stage: int  # number of the stage, from 0
    step: int  # steps of it that are done
    model: dict[str, Tensor]  # state_dict
    optimizer: dict[str, Any] | None  # state_dict; None at the start of a stage


def write_state(file: Path, identity: Mapping[str, Any], state: State) -> None:
    """Writes a state.

    Args:
        file: where to.
        identity: options and data by name, all of which must be equal in a run that goes on from here.
        state: of the run.

    Raises:
        OutputError: the file cannot be written.
    """
    buffer = io.BytesIO()
    document = {"stage": state.stage, "step": state.step, "model": state.model, "optimizer": state.optimizer}
    torch.save({"identity": identity, **document}, buffer)
    write_atomically(file, buffer.getvalue())


def read_state(file: Path, identity: Mapping[str, Any]) -> State:
    """Reads the state of a run of the same identity.

    Raises:
        InputError: there is none, it is damaged, or it is of another run.
    """
    if not file.is_file():
        raise InputError(f"{file} does not exist: there is no unfinished run to resume; leave --resume out")
    try:
        document = torch.load(file, map_location="cpu", weights_only=True)
        found = document["identity"]
        state = State(document["stage"], document["step"], document["model"], document["optimizer"])
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to ask for
        raise InputError(f"{file} is damaged and cannot be resumed; begin anew with --overwrite") from error
    other = [name for name, value in identity.items() if found.get(name) != value]
    if other:
        told = ", ".join(name if name == "config" else f"{name} {found.get(name)}" for name in other)
        raise InputError(f"{file} is of another run: {told}; resume with the options of that run")
    return state
