"""What a panoptic segmentation costs: with transformers, with one graph, and with two, which draw the masks that are wanted.

    python -m detr_export.benchmarks.speed.panoptic_cost CHECKPOINT TWO.onnx ONE.onnx [--segments 10 100] > report.json

A run is the whole way from a picture to segments. The threshold is set so that the wanted number of queries is above it.
All variants live in one process, see `interleaved`; the peak memory of each is that of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from detr_export.benchmarks.speed.interleaved import Run, framed, interleaved_times, summarize
from detr_export.benchmarks.speed.peers import TransformersSession
from detr_export.benchmarks.speed.pictures import synthetic_picture
from detr_export.benchmarks.speed.settings import parse_size
from detr_export.benchmarks.speed.worker import peak_resident_bytes
from detr_export.runtimes.errors import DetrError, InputError
from detr_export.runtimes.opening import spins
from detr_export.runtimes.orphans import end_with
from detr_export.runtimes.predictor import Predictor

_MEMORY_RUNS = 2

# By the variant's name: opens it, and gives what divides a picture at a threshold.
Segment = Callable[[np.ndarray, float], object]
Openers = Mapping[str, tuple[Callable[..., Segment], tuple[Any, ...]]]


def variants(checkpoint: str, two: str, one: str, threads: int) -> Openers:
    """What is compared; transformers, which comes first, is what the others are measured against."""
    found: dict[str, tuple[Callable[..., Segment], tuple[Any, ...]]] = {
        "transformers": (_open_transformers, (checkpoint, threads)),
    }
    for device in ("cpu", "openvino"):
        runtime = {"cpu": "ort"}.get(device, device)
        found[f"{runtime}, one graph"] = (_open_file, (one, device, threads))
        found[f"{runtime}, two graphs"] = (_open_file, (two, device, threads))
    return found


def measure(opened: Openers, two: str, size: tuple[int, int], segments: Sequence[int], rounds: int) -> dict[str, Any]:
    """Times and peak memory of all variants.

    Args:
        opened: from `variants`.
        two: the file whose scores decide the thresholds.
        size: (height, width) of the picture, pixels.
        segments: numbers of queries that survive.
        rounds: how many runs of each.

    Raises:
        DetrError: a model cannot be opened or run.
        InputError: the model has fewer queries.
    """
    picture = synthetic_picture(0, size)
    with Predictor.load(two) as predictor:
        scores = np.sort(predictor.detect(picture, threshold=0).scores)[::-1]
    if max(segments) > len(scores):
        raise InputError(f"{max(segments)} queries shall survive, and the model has {len(scores)}")
    thresholds = {count: _between(scores, count) for count in segments}
    memory = {
        count: {name: _peak_memory(opened[name], picture, threshold) for name in opened}
        for count, threshold in thresholds.items()
    }
    segment = {name: open_variant(*arguments) for name, (open_variant, arguments) in opened.items()}
    found: dict[str, Any] = {}
    for count, threshold in thresholds.items():
        runs: dict[str, Run] = {name: _run_of(each, picture, threshold) for name, each in segment.items()}
        refused: dict[str, str] = {}
        times = interleaved_times(runs, rounds, refused)
        found[f"{count} of {len(scores)} queries"] = {
            **summarize(times),
            "peak_memory_bytes": memory[count],
            "refused": refused,
        }
    return found


def _between(scores: np.ndarray, count: int) -> float:
    """A threshold that so many of the sorted scores are above."""
    return 0.0 if count == len(scores) else float(scores[count - 1] + scores[count]) / 2


def _run_of(segment: Segment, picture: np.ndarray, threshold: float) -> Run:
    return lambda: segment(picture, threshold)


def _open_file(file: str, device: str, threads: int) -> Segment:
    spinning = False if spins(file, device) else None  # threads that wait busily slow the next variant down
    predictor = Predictor.load(file, device, threads, spinning=spinning)
    return lambda picture, threshold: predictor.segment_panoptic(picture, threshold)


def _open_transformers(checkpoint: str, threads: int) -> Segment:
    session = TransformersSession(checkpoint, threads)
    return session.segment_panoptic


def _peak_memory(variant: tuple[Callable[..., Segment], tuple[Any, ...]], picture: np.ndarray, threshold: float) -> int:
    """Bytes that a process with nothing but this variant takes at most."""
    # A pool notices when its process dies.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with, (os.getpid(),)) as pool:
        return pool.submit(_run_and_tell, variant, picture, threshold).result()


def _run_and_tell(variant: tuple[Callable[..., Segment], tuple[Any, ...]], picture: np.ndarray, threshold: float) -> int:
    open_variant, arguments = variant
    segment = open_variant(*arguments)
    for _ in range(_MEMORY_RUNS):
        segment(picture, threshold)
    return peak_resident_bytes()


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", help="a folder that transformers opens")
    parser.add_argument("two", help="its export")
    parser.add_argument("one", help="its export with --one-graph")
    parser.add_argument("--size", default="800x1066", help="of the picture, HxW")
    parser.add_argument("--segments", type=int, nargs="+", default=[10, 100], help="queries that survive")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args(arguments)
    try:
        if given.rounds < 1 or min(given.segments) < 1:
            raise InputError("rounds and segments are counts; expected numbers from 1")
        for file in (given.checkpoint, given.two, given.one):
            if not Path(file).exists():
                raise InputError(f"{file} does not exist")
        load_before = psutil.getloadavg()[0]
        opened = variants(given.checkpoint, given.two, given.one, given.threads)
        found = measure(opened, given.two, parse_size(given.size), given.segments, given.rounds)
    except DetrError as error:
        sys.exit(f"error: {error}")
    what = "milliseconds from a picture to its panoptic segmentation. Ratios are to 'transformers'."
    report = framed(what, {"picture": given.size}, given.threads, load_before, given.rounds, found)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
