"""`detr-export predict --engine ray`: what it asks for, and what it prints."""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import typer

from detr_export.runtimes.errors import InputError
from detr_export.runtimes.totals import Totals
from detr_export.terminal import TerminalProgress, print_json, print_note

_SHOWN = 20  # errors that are printed; the table has all of them
_LOCAL = "local"  # --address of a cluster on this machine alone


@dataclass(frozen=True)
class RayRequest:
    """The options of the command."""

    model: str
    sources: tuple[str, ...]
    output: Path
    task: str
    threshold: float
    classes: tuple[str, ...] | None
    clip: bool
    batch: int
    allow_truncated: bool
    allow_http: bool
    column: str | None
    workers: int | None
    address: str | None  # None: the variable RAY_ADDRESS, and without it this machine
    coco: bool  # whether COCO's documents are written, too
    overwrite: bool
    device: str
    threads: int | None
    trust_engine: bool
    processor: str | None
    strict: bool
    cache: Path | None


def predict_with_ray(request: RayRequest, as_json: bool) -> None:
    """Runs the request, and prints how far it is and what came out.

    Raises:
        DetrError: as `predict_on_ray`.
        typer.Exit: a picture has an error.
    """
    from detr_export.runtimes.distributed.cluster import ADDRESS
    from detr_export.runtimes.distributed.coco import require_coco, write_coco
    from detr_export.runtimes.distributed.job import ModelOptions, Work
    from detr_export.runtimes.distributed.manifest import read_manifest
    from detr_export.runtimes.distributed.run import predict_on_ray

    if request.coco:
        require_coco(request.task)
    address = request.address or os.environ.get(ADDRESS) or _LOCAL
    if address.startswith("ray://"):
        raise InputError(f"the address is {address}, and Ray Data needs a driver in the cluster; start the command there")
    work = Work(
        request.task,
        request.threshold,
        request.batch,
        request.clip,
        request.classes,
        request.allow_truncated,
        request.allow_http,
    )
    model = ModelOptions(
        request.model,
        request.device,
        request.threads,
        request.trust_engine,
        request.processor,
        request.strict,
        None if request.cache is None else str(request.cache),
    )
    totals, shown, begin = Totals(), 0, time.perf_counter()
    resumed = 0
    with TerminalProgress("predicting") as progress:
        steps = predict_on_ray(
            request.sources,
            request.output,
            model,
            work,
            request.column,
            request.workers,
            None if address == _LOCAL else address,
            request.overwrite,
            progress,
        )
        with closing(steps):
            for step in steps:
                totals.pictures += step.pictures
                totals.failed += step.failed
                totals.objects.update(step.objects)
                resumed += step.pictures if step.resumed else 0
                for text in step.errors[: _SHOWN - shown]:
                    progress.error(InputError(text))
                    shown += 1
                progress.step(step.done, step.total)
        if request.coco:
            manifest = read_manifest(request.output)
            assert manifest is not None
            progress.stage("writing COCO's documents")
            write_coco(request.output, request.task, {int(label): name for label, name in manifest.id2label.items()})
    seconds = time.perf_counter() - begin
    if totals.failed > shown:
        print_note(f"{totals.failed} pictures have an error in the column error of {request.output / 'predictions'}")
    if resumed:
        print_note(f"{resumed} of {totals.pictures} pictures had their rows from an earlier start")
    if as_json:
        document = {"output": str(request.output), "pictures": totals.pictures, "failed": totals.failed, "resumed": resumed}
        print_json({**document, "objects": dict(totals.objects), "seconds": seconds})
    else:
        typer.echo(totals.summary(seconds))
    if totals.failed:
        raise typer.Exit(1)
