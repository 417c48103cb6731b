"""The second stage: an actor has the model, runs it, and makes rows of what it finds. Pictures come to it resized."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Optional

import pyarrow as pa
import ray

from detr_export.runtimes.distributed.attempts import RUN, Attempts, attempts
from detr_export.runtimes.distributed.job import Job, ModelOptions
from detr_export.runtimes.distributed.reading import Item
from detr_export.runtimes.distributed.schema import row_of, table_of
from detr_export.runtimes.errors import ArtifactError, DetrError, ImageError, InputError, OptionError
from detr_export.runtimes.file_batches import FileOptions, require_file_batches, run_pictures
from detr_export.runtimes.files import sha256_of_files, user_path
from detr_export.runtimes.opening import spins
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.ready import Preparation
from detr_export.runtimes.results.classes import require_classes, split_names
from detr_export.runtimes.session import largest_batch
from detr_export.runtimes.stream import find_in
from detr_export.runtimes.tasks import Result

RESULT = pa.schema([("first", pa.int64()), ("stop", pa.int64()), ("rows", pa.large_binary())])
_OF_CHECKPOINTS = (".json", ".safetensors", ".bin", ".pth", ".pt")


@dataclass(frozen=True)
class Description:
    """What the driver has to know of a model: it may run on a machine that cannot open it."""

    digest: str  # SHA-256 of the file; of a folder, of its files by their names
    preparation: Preparation
    id2label: Mapping[int, str]
    classes: Optional[tuple[str, ...]]  # of `Work`, one by one


def describe(job: Job) -> Description:
    """Opens the model on a worker, and refuses there what it does not have.

    Raises:
        DetrError: it cannot be opened, or does not do what is asked for. The message names the node.
    """
    job.enter()
    digest = _on_this_node(partial(model_digest, job.model.path))
    with _on_this_node(partial(_open, job.model)) as predictor:
        work = job.work
        require_file_batches(predictor, work.task, work.batch, 0.0)
        predictor.predict([], work.task, work.threshold, clip=work.clip)  # refuses what the model cannot do
        largest = largest_batch(predictor.session, job.model.device)
        if largest is not None and work.batch > largest:
            raise InputError(
                f"--batch is {work.batch}, but the model on the device {job.model.device} takes {largest} at most"
            )
        classes = None
        if work.classes is not None:
            classes = tuple(sorted(require_classes(split_names(work.classes, predictor.id2label), predictor.id2label)))
        return Description(digest, predictor.preparation, dict(predictor.id2label), classes)


def model_digest(path: str) -> str:
    """Hex SHA-256 of a model's file; of a checkpoint's folder that of its documents and weights, sorted by name.

    Raises:
        ArtifactError: there is no such file or folder here.
    """
    place = user_path(path)
    try:
        if place.is_dir():
            return sha256_of_files(sorted(file for file in place.iterdir() if file.suffix in _OF_CHECKPOINTS))
        return sha256_of_files([place])
    except OSError as error:
        raise ArtifactError(
            f"the model {path} cannot be read: {error.strerror or error}; expected a file or folder that all nodes see "
            "under this path; download a model of the hub first"
        ) from error


class ModelWorker:
    """The actor. One that cannot open the model says so when it gets its first pictures: then the whole job ends.

    Args:
        job: the run.
        digest: that the model's file must have here.
    """

    def __init__(self, job: Job, digest: str) -> None:
        job.enter()
        self._job, self._digest = job, digest
        self._predictor: Optional[Predictor] = None
        self._error: Optional[DetrError] = None
        work = job.work
        wanted = None if work.classes is None else frozenset(work.classes)
        self._options = FileOptions(work.task, work.threshold, work.batch, 0.0, work.clip, wanted)
        try:
            self._predictor = _on_this_node(self._opened)
        except DetrError as error:  # an actor whose __init__ raises is started again and again
            self._error = error

    def __call__(self, messages: pa.Table) -> pa.Table:
        """Runs the model on messages of the first stage.

        Returns:
            A table of `RESULT` with a row for each: `rows` is a table of `schema_of` in Arrow's stream format.

        Raises:
            DetrError: the model could not be opened; or as in `predict_files`.
        """
        if self._error is not None or self._predictor is None:
            raise self._error or ArtifactError("the model is not open")
        columns: dict[str, list[Any]] = {name: [] for name in RESULT.names}
        for record in messages.to_pylist():
            first = record["first"]
            with attempts(self._job.output, RUN, first) as tries:
                rows = self._rows(self._predictor, first, pickle.loads(record["content"]), tries)
            sink = pa.BufferOutputStream()
            table = table_of(rows, self._options.task)
            with pa.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table)
            for name, value in zip(columns, (first, record["stop"], sink.getvalue().to_pybytes())):
                columns[name].append(value)
        return pa.Table.from_pydict(columns, RESULT)

    def _opened(self) -> Predictor:
        found = model_digest(self._job.model.path)
        if found != self._digest:
            raise ArtifactError(
                f"the model {self._job.model.path} has SHA-256 {found[:16]}... here and {self._digest[:16]}... elsewhere; "
                "copy one file to all nodes"
            )
        return _open(self._job.model)

    def _rows(self, predictor: Predictor, first: int, items: list[Item], tries: Attempts) -> list[dict[str, Any]]:
        pictures: list[Any] = [_Refused(item.error) if item.picture is None else item.picture for item in items]
        if tries.noting:  # one picture at a time
            found = [self._found_alone(predictor, number, picture, tries) for number, picture in enumerate(pictures, first)]
        else:
            found = self._found(predictor, pictures)
        rows = []
        for number, (item, outcome) in enumerate(zip(items, found), first):
            result: Optional[Result] = None
            error: Optional[str] = None
            if isinstance(outcome, _Refused):
                error = str(outcome)
            elif isinstance(outcome, (ImageError, InputError)):
                error = f"{item.path}: {outcome}"
            else:
                result, _ = outcome
            rows.append(row_of(number, item.path, self._digest, result, error))
        return rows

    def _found(self, predictor: Predictor, pictures: list[Any]) -> list[Any]:
        run = partial(run_pictures, predictor, self._options)
        return find_in(run, pictures, predictor.model_size, self._options.batch, 0.0)

    def _found_alone(self, predictor: Predictor, number: int, picture: Any, tries: Attempts) -> Any:
        if tries.crashed(number):
            return InputError("processes that ran the model on it crashed; expected a picture that the model takes")
        tries.at(number)
        return self._found(predictor, [picture])[0]


class _Refused(Exception):
    """Stands for a picture that the first stage could not read, and says why."""


def _open(options: ModelOptions) -> Predictor:
    return Predictor.load(
        options.path,
        options.device,
        options.threads,
        spinning=False if spins(options.path, options.device) else None,
        trust_engine=options.trust_engine,
        processor=options.processor,
        strict=options.strict,
        cache=options.cache,
    )


def _on_this_node(work: Any) -> Any:
    """What a function returns. Its error names the node."""
    try:
        return work()
    except OptionError:
        raise
    except DetrError as error:
        raise type(error)(f"on the worker node {ray.util.get_node_ip_address()}: {error}") from error
