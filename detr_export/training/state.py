"""The state of a run: what a later run needs to end in the same weights, or to go on for more epochs."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detr_export.checkpoints.containers import is_archive
from detr_export.checkpoints.tensors import named, require_plain
from detr_export.config import DetrConfig
from detr_export.runtimes.documents import Count, Number, Size, parse, shown, typed
from detr_export.runtimes.errors import CheckpointError, DetrError, InputError
from detr_export.runtimes.files import require_regular, write_atomically
from detr_export.runtimes.processing.image_processor_fast import processor_from_dict
from detr_export.training.options import CHANGEABLE, TrainingOptions

STATE_NAME = "training_state.pt"


@dataclass(frozen=True)
class Identity:
    """What a run that goes on shares with the run that it goes on from."""

    options: Mapping[str, Any]  # of `TrainingOptions.to_dict`
    config: str  # JSON of the model's configuration
    processor: Mapping[str, Any]  # settings
    whole_backbone: bool  # whether all of the backbone is trained, with its batch norm
    images: Size  # of the data
    processes: Count
    source: Mapping[str, str] | None = None  # name and SHA-256 of the checkpoint that it began with

    def require_same(self, other: Identity, file: Path) -> None:
        """Refuses to go on from a state of `other` in `file`.

        Raises:
            InputError: they are of different runs.
        """
        mine, theirs = self._compared(), other._compared()
        differing = [name for name, value in mine.items() if theirs.get(name) != value]
        if differing:
            told = ", ".join(name if name == "config" else f"{name} {theirs.get(name)}" for name in differing)
            raise InputError(f"{file} is of another run: {told}; resume with the options of that run, or leave them out")

    def _compared(self) -> dict[str, Any]:
        options = {name: value for name, value in self.options.items() if name not in CHANGEABLE}
        return {**options, "config": self.config, "images": self.images, "processes": self.processes}


@dataclass(frozen=True)
class Best:
    """The best of the validations of a stage."""

    score: Number
    epoch: Size  # from 1
    since: Size = 0  # validations after it


@dataclass(frozen=True)
class State:
    """Where a run is."""

    identity: Identity
    stage: Size  # number of the stage, from 0
    step: Size  # steps of it that are done
    model: dict[str, Any]  # state_dict, of tensors
    optimizer: dict[str, Any] | None = None  # state_dict; None at the start of a stage
    average: dict[str, Any] | None = None  # state_dict of the moving average
    precision: dict[str, Any] = field(default_factory=dict)  # state_dict of the gradients' scale
    best: Best | None = None  # of the stage
    stopped: bool = False  # the stage ended before its last epoch
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of the command, see `train`

    @property
    def options(self) -> TrainingOptions:
        """The recipe."""
        return TrainingOptions.from_dict(self.identity.options)


def write_state(file: Path, state: State) -> None:
    """Writes a state.

    Raises:
        OutputError: the file cannot be written.
    """
    document = {item.name: getattr(state, item.name) for item in fields(state)}
    document["identity"] = vars(state.identity)
    document["best"] = None if state.best is None else vars(state.best)
    document["arguments"] = dict(state.arguments)
    buffer = io.BytesIO()
    torch.save(document, buffer)
    write_atomically(file, buffer.getvalue())


def read_state(file: Path) -> State:
    """Reads a state; its tensors are read from the disk when they are used.

    Raises:
        InputError: there is none.
        CheckpointError: it is damaged; the message names the field.
    """
    if not os.path.lexists(file):
        raise InputError(f"{file} does not exist: there is no run to resume; leave --resume out")
    require_regular(file, CheckpointError)
    damaged = f"{file} is damaged and cannot be resumed; begin anew with --overwrite"
    if not is_archive(file):
        raise CheckpointError(damaged)
    try:
        document = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to ask for
        raise CheckpointError(damaged) from error
    try:
        if not isinstance(document, dict):
            raise CheckpointError(f"it is {shown(document)}; expected an object")
        state = typed(document, State, "it", CheckpointError)
        _require_sound(state)
    except DetrError as error:
        raise CheckpointError(f"{damaged}: {error}") from error
    return state


def _require_sound(state: State) -> None:
    """Refuses a state whose parts could not be made into a run."""
    options = state.options
    if state.stage >= len(options.stages):
        raise CheckpointError(f"stage is {state.stage}; expected at most {len(options.stages) - 1}")
    config = parse(state.identity.config, "identity.config", CheckpointError)
    DetrConfig.from_dict(typed(config, dict[str, Any], "identity.config", CheckpointError))
    processor_from_dict(state.identity.processor)
    for name, tensors in (("model", state.model), ("average", state.average or {})):
        strange = next((key for key, value in tensors.items() if not isinstance(value, Tensor)), None)
        if strange is not None:
            raise CheckpointError(f"{name} has {named(strange)}, which is no tensor")
        require_plain(tensors, name)
