"""`predict_on_ray`: the whole run, from the list of pictures to the finished table."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pyarrow as pa
import ray

from detr_export.runtimes.cpu import available_cores
from detr_export.runtimes.devices import parse_device
from detr_export.runtimes.distributed import listing, parts, schema
from detr_export.runtimes.distributed.attempts import forget_attempts
from detr_export.runtimes.distributed.cluster import connected
from detr_export.runtimes.distributed.failures import from_ray
from detr_export.runtimes.distributed.job import Job, ModelOptions, Work, surroundings
from detr_export.runtimes.distributed.manifest import (
    NAME,
    Manifest,
    Request,
    read_manifest,
    require_same,
    write_manifest,
)
from detr_export.runtimes.distributed.model import Description, describe
from detr_export.runtimes.distributed.pipeline import pipeline, resources_of, takes_threads
from detr_export.runtimes.errors import BackendError, InputError, OutputError
from detr_export.runtimes.files import make_folder, require_own_links, writing
from detr_export.runtimes.progress import SILENT, Progress
from detr_export.runtimes.results.segmentation import KINDS
from detr_export.runtimes.tasks import DETECTION, require_clip, require_filter
from detr_export.runtimes.temporary import temporary_folder
from detr_export.runtimes.thresholds import require_shares

RAY_TASKS = (DETECTION, *(kind for kind in KINDS if kind != "semantic"))

_UNIT = 32  # pictures of a message between the stages, with a batch of up to a quarter of them
_MOST_BLOCKS = 4096  # of the first stage's input: each takes a little of the driver's time
_LEAST_BLOCKS = 64
_PART = 4096  # most rows of a file of the table
_PARTS = 256  # files of a table that is too small for full ones
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/")  # `Path` makes one slash of two


@dataclass(frozen=True)
class Step:
    """What a part of the run brought."""

    done: int  # pictures of the whole run that have a row now
    total: int  # pictures of the whole run
    pictures: int  # of this step
    failed: int  # of these, the ones with an error
    objects: Counter[str]  # of each class, in this step
    errors: tuple[str, ...] = ()  # texts of the first ones
    resumed: bool = False  # whether an earlier start made these rows


def predict_on_ray(
    sources: Sequence[str],
    output: Path,
    model: ModelOptions,
    work: Work,
    column: Optional[str] = None,
    workers: Optional[int] = None,
    address: Optional[str] = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
    store_bytes: Optional[int] = None,
) -> Generator[Step, None, None]:
    """Predicts on any number of pictures with Ray Data, and writes a Parquet data set.

    Results are those of `predict_files`. With a batch of 1 they are equal bit for bit on one kind of CPU; pictures share a
    batch if they have one size at the model's input, and are then equal up to rounding.

    A run that ended early goes on when it is started again with the same arguments: what the files of the table have is not
    made again. The list of pictures is that of the first start.

    Args:
        sources: files, folders, globs, addresses, also those that `pyarrow.fs` opens; with `column` Parquet files and
            folders of them.
        output: a folder that all nodes see under this path. It gets `predictions/` with the table (`schema_of`), `run.json`,
            and `sources/` with the list.
        model: opened by each worker; its file must be the same everywhere.
        work: what is done.
        column: of tables: paths and addresses, or encoded pictures.
        workers: actors that run the model; None for one for each GPU, or for as many as the CPUs allow.
        address: of a cluster, as in `ray.init`; None for one on this machine.
        overwrite: whether to begin anew where there is a run.
        progress: gets the stages.
        store_bytes: of the object store of a cluster on this machine.

    Yields:
        A `Step` for what was there already, and one for each file of the table.

    Raises:
        ImageError, InputError: the sources, the model or the task do not have what is asked for.
        ArtifactError, CheckpointError, BackendError: a worker cannot open or run the model; or Ray failed.
        OutputError: `output` has another run, or cannot be written to. Finished files stay.
    """
    _require(work, model, workers)
    if _ADDRESS.match(str(output)):
        raise OutputError(f"{output} is an address, and results go into a folder that all machines see; give its path")
    require_own_links(output)
    make_folder(output)
    now = Request(
        schema.VERSION, "", work.task, work.threshold, None, work.clip, work.batch, model.device, model.processor,
        work.allow_truncated, work.allow_http, [*sources], column,
    )  # fmt: skip
    before = None if overwrite else read_manifest(output)
    if before is not None:
        require_same(replace(before.request, model="", classes=None), now, output)
    elif not overwrite and parts.part_files(output / parts.FOLDER):
        raise OutputError(f"{output / parts.FOLDER} has files and {output / NAME} is missing; add --overwrite to begin anew")

    with _locked(output), contextlib.ExitStack() as stack:
        # The list is made beside its place: a run that is there stays until the model is open
        made = None
        if before is None:
            progress.stage("listing pictures")
            made = stack.enter_context(_temporary(output))
            found = listing.find_pictures(sources, column, output, work.allow_http, address is not None)
            total = listing.write_listing(found, made)
        else:
            total = before.pictures

        progress.stage("starting Ray" if address is None else f"connecting to Ray at {address}")
        threads = model.threads or 1
        local = workers or max(1, available_cores() // threads)
        stack.enter_context(connected(address, local * threads + 2, store_bytes))
        if model.threads is None and takes_threads(model.device):
            model = replace(model, threads=1)
        actors, resources = resources_of(model.device, threads, workers if address is not None else local)

        progress.stage("opening the model on a worker")
        job = Job(output.absolute(), secrets.token_hex(8), work, model, column, *surroundings())
        about: Description = from_ray(lambda: ray.get(ray.remote(describe).options(**resources).remote(job)))
        job = replace(job, work=replace(work, classes=about.classes))
        now = replace(now, model=about.digest, classes=None if about.classes is None else [*about.classes])
        if before is not None:
            require_same(before.request, now, output)
        if made is not None:
            _begin(output, made)
        names = {str(label): name for label, name in about.id2label.items()}
        began_with = version("detr-export") if before is None else before.detr_export
        write_manifest(output, Manifest(now, total, names, began_with, job.token))
        forget_attempts(output)

        done = parts.finished_rows(output / parts.FOLDER, total)
        count = int(done.sum())
        if count:
            pictures, failed, objects = parts.count_results(parts.part_files(output / parts.FOLDER))
            yield Step(count, total, pictures, failed, objects, resumed=True)
        if count < total:
            progress.stage(f"predicting on {total - count} pictures with {actors} workers")
            for step in _steps(job, about, done, actors, resources):
                count += step.pictures
                yield replace(step, done=count, total=total)
        forget_attempts(output)
        left = int((~parts.finished_rows(output / parts.FOLDER, total)).sum())
        if left:
            raise BackendError(f"{left} of {total} pictures have no row; start the run again, and it goes on with them")


def _require(work: Work, model: ModelOptions, workers: Optional[int]) -> None:
    if work.task not in RAY_TASKS:
        raise InputError(f"task is {work.task!r}; expected one of {', '.join(RAY_TASKS)} on Ray")
    require_shares(threshold=work.threshold)
    require_clip(work.task, work.clip)
    if work.classes is not None:
        require_filter(work.task)
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}; expected at least 1")
    device = parse_device(model.device)
    if device.kind != "cpu" and ":" in model.device:
        raise InputError(f"device is {model.device}, and Ray chooses the GPU of each worker; leave the number out")


def _steps(job: Job, about: Description, done: np.ndarray, actors: int, resources: dict[str, Any]) -> Iterator[Step]:
    """Runs the pipeline over the rows that are not done."""
    unit = max(_UNIT, 4 * job.work.batch)
    units = [
        (first, min(first + unit, stop)) for start, stop in parts.missing_ranges(done) for first in range(start, stop, unit)
    ]
    table = pa.table({"first": [first for first, _ in units], "stop": [stop for _, stop in units]})
    a_block = max(len(units) // _MOST_BLOCKS, min(_UNIT, len(units) // _LEAST_BLOCKS), 1)
    blocks = [table.slice(start, a_block) for start in range(0, len(units), a_block)]
    part = max(1, min(_PART, len(done) // _PARTS) // unit)
    stream = pipeline(job, about, blocks, part, min(actors, len(units)), resources)
    batches = from_ray(lambda: iter(stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)))
    while (batch := from_ray(lambda: next(batches, None))) is not None:
        for record in batch.to_pylist():
            objects = Counter(json.loads(record["objects"]))
            yield Step(0, 0, record["pictures"], record["failed"], objects, tuple(record["errors"]))


def _begin(output: Path, made: Path) -> None:
    """Removes an earlier run, and moves the new list into its place. What tells of the run goes first."""
    place = output / listing.FOLDER
    with writing(output):
        (output / NAME).unlink(missing_ok=True)
        for path in parts.part_files(output / parts.FOLDER):
            path.unlink()
        if place.is_dir():
            shutil.rmtree(place)
        os.replace(made, place)
    make_folder(output / parts.FOLDER)


@contextlib.contextmanager
def _temporary(output: Path) -> Iterator[Path]:
    try:
        folder = temporary_folder(beside=output / listing.FOLDER, mode=0o777)
    except OSError as error:
        raise OutputError(f"cannot write to {output}: {error.strerror or error}") from error
    with folder as path:
        yield path


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Refuses a second driver on this machine. On another machine, the token of `run.json` ends the earlier one."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with writing(output), contextlib.ExitStack() as stack:
        descriptor = os.open(output, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"another process writes to {output}; wait for its end, or give another folder") from None
        except OSError:  # a file system without locks
            pass
        yield
