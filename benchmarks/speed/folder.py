"""How long `detr-export predict` takes for a folder: one picture after another, in threads, and in batches.

    python -m detr_export.benchmarks.speed.folder --output benchmarks/results/folder-cpu

All variants live in one process and take turns, so that what else the machine does meets all of them alike. The pictures are
drawn and the model is exported first, unless both are given.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from detr_export.benchmarks.speed.environment import checked_threads
from detr_export.benchmarks.speed.interleaved import framed, interleaved_times, summarize
from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.export import ExportOptions, export_onnx
from detr_export.runtimes.errors import DetrError, InputError
from detr_export.runtimes.files import write_atomically
from detr_export.runtimes.folder import predict_files
from detr_export.runtimes.image_runner import ImageRunner
from detr_export.runtimes.pipeline import WORKERS
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.processing.image_paths import iter_image_paths
from detr_export.runtimes.processing.images import load_image
from detr_export.runtimes.results.detections import Detections
from detr_export.runtimes.tasks import TASKS, drawing_of
from detr_export.runtimes.temporary import temporary_folder
from detr_export.training.demo_data import write_demo_data

_WARM_UP = 8  # pictures
_LEVELS = (6, 1)  # of zlib, in a PNG: Pillow's default, and the one that `predict_files` takes
_PADDING = 0.1

Value = TypeVar("Value")


@dataclass(frozen=True)
class Variant:
    """How a folder is run."""

    batch: int
    max_padding: float
    workers: int
    spinning: bool  # of the session; without threads beside the model it is faster


VARIANTS = {
    "one at a time": Variant(1, 0.0, 0, True),
    "threads": Variant(1, 0.0, WORKERS, False),
    "threads, batch 8": Variant(8, 0.0, WORKERS, False),
}
PADDED = {"threads, batch 8, 10 % padding": Variant(8, _PADDING, WORKERS, False)}  # detection alone is padded


def measure(model: Path, pictures: Sequence[Path], task: str, threads: int, rounds: int) -> dict[str, Any]:
    """Times whole folders, one of each variant in every round.

    Args:
        model: an ONNX file; it runs in ONNX Runtime.
        pictures: the files of the folder.
        task: one of `TASKS`.
        threads: of one run of the model.
        rounds: how many.

    Returns:
        Milliseconds for each folder, and ratios to the first variant. `parts` are the milliseconds of each step for one
        picture, and `changes` are the largest differences from one picture at a time.

    Raises:
        DetrError: the file cannot be opened or run, or a picture cannot be read.
    """
    variants = {**VARIANTS, **(PADDED if task == "detection" else {})}
    sessions = {spinning: Predictor.load(model, threads=threads, spinning=spinning) for spinning in (True, False)}

    def run(variant: Variant, images: Sequence[Path]) -> None:
        predictor = sessions[variant.spinning]
        with temporary_folder() as folder:
            for outcome in predict_files(
                predictor, images, 0.5, folder, True, task, variant.batch, variant.max_padding, variant.workers
            ):
                if outcome.error is not None:
                    raise outcome.error

    for variant in variants.values():
        run(variant, pictures[:_WARM_UP])
    runs = {name: partial(run, variant, pictures) for name, variant in variants.items()}
    refused: dict[str, str] = {}
    times = interleaved_times(runs, rounds, refused, warm_up=0)
    if refused:
        raise InputError(f"the folder does not run: {next(iter(refused.values()))}")
    changes = {}
    if task == "detection":
        every = {name: _every_score(sessions[False], pictures, variant) for name, variant in variants.items()}
        changes = {name: _changes(every["one at a time"], results) for name, results in every.items()}
    parts = profile(sessions[False], pictures, task)
    for predictor in sessions.values():
        predictor.close()
    return {**summarize(times), "pictures": len(pictures), "parts": parts, "changes": changes}


def profile(predictor: Predictor, pictures: Sequence[Path], task: str) -> dict[str, dict[str, float]]:
    """The median milliseconds of each step for one picture, one at a time: of the clock, and of all cores together."""
    runner = ImageRunner(predictor.session)
    wall: dict[str, list[float]] = {}
    cores: dict[str, list[float]] = {}

    def timed(name: str, step: Callable[[], Value]) -> Value:
        begin, busy = time.perf_counter(), time.process_time()
        value = step()
        wall.setdefault(name, []).append((time.perf_counter() - begin) * 1e3)
        cores.setdefault(name, []).append((time.process_time() - busy) * 1e3)
        return value

    for file in pictures:
        image = timed("reading", partial(load_image, file))
        inputs = timed("preparing", partial(runner.prepare, [image]))
        timed("the model", partial(predictor.session.run, inputs))
        result = timed("all but reading and drawing", partial(predictor.predict, image, task, 0.5))
        drawn = timed("drawing", partial(drawing_of, result, image))
        for level in _LEVELS:
            content = io.BytesIO()
            timed(f"PNG at level {level}", partial(drawn.save, content, "PNG", compress_level=level))
            wall.setdefault(f"kilobytes at level {level}", []).append(content.tell() / 1e3)
    return {
        "clock": {name: round(statistics.median(values), 2) for name, values in wall.items()},
        "all cores": {name: round(statistics.median(values), 2) for name, values in cores.items()},
    }


def _every_score(predictor: Predictor, pictures: Sequence[Path], variant: Variant) -> list[Detections]:
    """All queries of each picture, whatever their score."""
    outcomes = predict_files(
        predictor, pictures, 0.0, batch=variant.batch, max_padding=variant.max_padding, workers=variant.workers, clip=False
    )
    results = [outcome.result for outcome in outcomes]
    return [result for result in results if isinstance(result, Detections)]


def _changes(before: Sequence[Detections], after: Sequence[Detections]) -> Mapping[str, float]:
    """The largest differences of scores, and of boxes in pixels, and how many objects above 0.5 there are in either."""
    pairs = list(zip(before, after, strict=True))
    sure = [np.maximum(one.scores, other.scores) > 0.5 for one, other in pairs]
    boxes = [np.abs(one.boxes - other.boxes)[which] for which, (one, other) in zip(sure, pairs, strict=True)]
    return {
        "score": max(float(np.abs(one.scores - other.scores).max(initial=0)) for one, other in pairs),
        "box_px": max(float(box.max(initial=0)) for box in boxes),
        "objects_before": sum(int((one.scores > 0.5).sum()) for one, _ in pairs),
        "lost": sum(int(((one.scores > 0.5) & (other.scores <= 0.5)).sum()) for one, other in pairs),
        "gained": sum(int(((one.scores <= 0.5) & (other.scores > 0.5)).sum()) for one, other in pairs),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="an ONNX file; the demo checkpoint is exported if left out")
    parser.add_argument("--folder", type=Path, help="pictures; they are drawn if left out")
    parser.add_argument("--images", type=int, default=200, help="how many pictures are drawn")
    parser.add_argument("--task", choices=TASKS, default="detection")
    parser.add_argument("--threads", type=int, help="of one run of the model; the physical cores if left out")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="a folder for TASK.json; stdout if left out")
    given = parser.parse_args(arguments)
    scratch = temporary_folder()
    work = scratch.path
    try:
        if given.rounds < 1:
            raise InputError(f"rounds is {given.rounds}; expected at least 1")
        threads = checked_threads(given.threads)
        model = given.model
        if model is None:
            options = ExportOptions(verify=False)
            model = export_onnx(load_checkpoint("demo"), work / "demo.onnx", options).path
        if given.folder is None:
            write_demo_data(work, given.images, "val")
        pictures = iter_image_paths(given.folder or work / "val")
        load_before = psutil.getloadavg()[0]
        found = measure(model, pictures, given.task, threads, given.rounds)
    except DetrError as error:
        sys.exit(f"error: {error}")
    finally:
        scratch.remove()
    what = (
        "milliseconds of a whole folder, with pictures drawn and written; ratios are to 'one at a time'. "
        "'parts' are milliseconds of one picture."
    )
    report = framed(what, {"task": given.task}, threads, load_before, given.rounds, found)
    text = json.dumps(report, indent=1) + "\n"
    if given.output is None:
        print(text, end="")
    else:
        write_atomically(given.output / f"{given.task}.json", text.encode())


if __name__ == "__main__":
    main()
