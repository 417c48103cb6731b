"""`detr-export predict --engine ray`: what it asks for, and what it prints."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import typer

from detr_export.runtimes.distributed.job import ModelOptions, Work
from detr_export.runtimes.errors import InputError
from detr_export.runtimes.result_files import require_format
from detr_export.runtimes.totals import Totals
from detr_export.terminal import TerminalProgress, print_json, print_note

_SHOWN = 20  # errors that are printed; the table has all of them
_LOCAL = "local"  # --address of a cluster on this machine alone


def predict_with_ray(
    sources: Sequence[str],
    output: Path,
    model: ModelOptions,
    work: Work,
    column: str | None,
    workers: int | None,
    address: str | None,
    coco: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Runs `predict_on_ray`, and prints how far it is and what came out.

    Args:
        sources, output, model, work, column, workers, overwrite: as there.
        address: of a cluster; None for the variable RAY_ADDRESS, and without it for this machine.
        coco: whether COCO's documents are written, too.
        as_json: whether to print one JSON document, and no text.

    Raises:
        DetrError: as `predict_on_ray`.
        typer.Exit: a picture has an error.
    """
    from detr_export.runtimes.distributed.cluster import ADDRESS
    from detr_export.runtimes.distributed.coco import write_coco
    from detr_export.runtimes.distributed.manifest import read_manifest
    from detr_export.runtimes.distributed.run import predict_on_ray

    if coco:
        require_format("coco", work.task)
    address = address or os.environ.get(ADDRESS) or _LOCAL
    if address.startswith("ray://"):
        raise InputError(f"the address is {address}, and Ray Data needs a driver in the cluster; start the command there")
    totals, shown, begin = Totals(), 0, time.perf_counter()
    resumed = 0
    with TerminalProgress("predicting") as progress:
        steps = predict_on_ray(
            sources,
            output,
            model,
            work,
            column,
            workers,
            None if address == _LOCAL else address,
            overwrite,
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
        if coco:
            manifest = read_manifest(output)
            assert manifest is not None
            progress.stage("writing COCO's documents")
            write_coco(output, work.task, {int(label): name for label, name in manifest.id2label.items()})
    seconds = time.perf_counter() - begin
    if totals.failed > shown:
        print_note(f"{totals.failed} pictures have an error in the column error of {output / 'predictions'}")
    if resumed:
        print_note(f"{resumed} of {totals.pictures} pictures had their rows from an earlier start")
    if as_json:
        document = {"output": str(output), "pictures": totals.pictures, "failed": totals.failed, "resumed": resumed}
        print_json({**document, "objects": dict(totals.objects), "seconds": seconds})
    else:
        typer.echo(totals.summary(seconds))
    if totals.failed:
        raise typer.Exit(1)
