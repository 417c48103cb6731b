"""What a user asks of a training run: a new one, or to go on with one that left its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detr_export.data.sources import DataSource
from detr_export.runtimes.documents import shown, typed
from detr_export.runtimes.errors import CheckpointError, InputError
from detr_export.training.options import TrainingOptions
from detr_export.training.state import STATE_NAME, read_state


@dataclass(frozen=True)
class Request:
    """The recipe and the data of a run."""

    options: TrainingOptions
    source: DataSource
    skip_bad: bool = False  # leave bad images and annotations out

    @classmethod
    def new(cls, given: Mapping[str, Any], source: DataSource, skip_bad: bool, fine_tunes: bool) -> Request:
        """A new run.

        Args:
            given: fields of `TrainingOptions` that the user named; the others get their defaults.
            source: where the data is.
            skip_bad: leave bad images and annotations out.
            fine_tunes: whether it begins with a checkpoint.

        Raises:
            InputError: an option is out of its range.
        """
        return cls(TrainingOptions.fine_tuning(**given) if fine_tunes else TrainingOptions(**given), source, skip_bad)

    @classmethod
    def resumed(cls, folder: Path, given: Mapping[str, Any], source: DataSource | None, skip_bad: bool) -> Request:
        """The run that left its state in `folder`, with what it was given, and now `given` besides.

        Args:
            folder: of the run.
            given: as in `new`. What a run cannot change is refused when it goes on.
            source: where the data is; the state says it when None.
            skip_bad: as in `new`; it stays on if it was.

        Raises:
            InputError: there is no state, or it does not say where the data is.
            CheckpointError: the state is damaged.
        """
        state = read_state(folder / STATE_NAME)
        known = state.arguments.get("data")
        if source is None:
            if known is None:
                raise InputError(f"{folder / STATE_NAME} does not say where the data is; give it (--data)")
            where = f"{folder / STATE_NAME}: arguments.data"
            places = typed(known, dict[str, str], where, CheckpointError)
            unknown = next((name for name in places if name not in DataSource.__dataclass_fields__), None)
            if unknown is not None:
                raise CheckpointError(f"{where} has {shown(unknown)}; expected {', '.join(DataSource.__dataclass_fields__)}")
            source = DataSource.from_dict(places)
        options = replace(state.options, **given)
        return cls(options, source, skip_bad or bool(state.arguments.get("skip_bad")))

    @property
    def arguments(self) -> dict[str, Any]:
        """What the state keeps for `resumed`."""
        return {"data": self.source.to_dict(), "skip_bad": self.skip_bad}
