"""What an end-to-end file costs beside the plain graph in it, and beside what the user of a plain file does on the CPU.

    python -m detr_export.benchmarks.speed.end_to_end_cost PLAIN.onnx END-TO-END.onnx... [--size 1080x1920] > report.json

All variants live in one process, see `interleaved`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import psutil

from detr_export.benchmarks.speed.interleaved import Run, framed, interleaved_times, noting, summarize
from detr_export.benchmarks.speed.pictures import synthetic_picture
from detr_export.benchmarks.speed.settings import parse_size
from detr_export.graphs.end_to_end.composing import plain_part
from detr_export.graphs.reading import load_graph
from detr_export.runtimes.backends.openvino.session import OpenVinoSession
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.described import processor_of
from detr_export.runtimes.errors import DetrError, InputError
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.session import Session, as_declared
from detr_export.runtimes.temporary import temporary_folder


def measure(plain: Path, files: Sequence[Path], size: tuple[int, int], threads: int, rounds: int) -> dict[str, Any]:
    """Times the runs of all variants, one of each in every round.

    Args:
        plain: the plain file of the checkpoint, for the pipeline of its users.
        files: end-to-end files of the same checkpoint. The plain graph in the first of them is the baseline.
        size: (height, width) of the image, pixels.
        threads: of one run.
        rounds: how many.

    Returns:
        For each runtime and variant the milliseconds of every run; and the ratios of medians and of minima to the baseline.

    Raises:
        DetrError: a file cannot be opened or run.
    """
    image = synthetic_picture(0, size)
    found: dict[str, Any] = {}
    with temporary_folder() as folder:
        baseline = folder / "plain.onnx"
        onnx.save(plain_part(load_graph(files[0])), str(baseline))
        for runtime, opened in (("ort", _ort), ("openvino", _openvino)):
            sessions: dict[str, Session] = {"plain graph": opened(baseline, threads), "pipeline": opened(plain, threads)}
            refused: dict[str, str] = {}
            for file in files:
                with noting(refused, file.name):
                    sessions[file.name] = opened(file, threads)
            runs = {name: _run_of(name, session, sessions["pipeline"], image) for name, session in sessions.items()}
            found[runtime] = {**summarize(interleaved_times(runs, rounds, refused)), "refused": refused}
            for session in sessions.values():
                session.close()
    return found


def _ort(file: Path, threads: int) -> Session:
    return OrtSession(file, threads=threads, spinning=False)  # threads that wait busily slow the next variant down


def _openvino(file: Path, threads: int) -> Session:
    return OpenVinoSession(file, threads=threads)


def _run_of(name: str, session: Session, described: Session, image: Any) -> Run:
    """One run: of the plain graph alone, of the whole pipeline around the plain file, or of an end-to-end file."""
    if name == "pipeline":
        predictor = Predictor(session)
        return lambda: predictor.detect(image)
    if session.metadata is None:  # the plain graph
        assert described.metadata is not None
        batch = processor_of(described.metadata).preprocess([image], return_tensors="np")
        inputs = as_declared(session.inputs, batch)
        return lambda: session.run(inputs)
    return lambda: session.run({"image": image[None]})


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("plain", type=Path, help="the plain file")
    parser.add_argument("files", type=Path, nargs="+", help="end-to-end files of the same checkpoint")
    parser.add_argument("--size", default="1080x1920", help="of the image, HxW")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args(arguments)
    try:
        if given.rounds < 1:
            raise InputError(f"rounds is {given.rounds}; expected at least 1")
        load_before = psutil.getloadavg()[0]
        found = measure(given.plain, given.files, parse_size(given.size), given.threads, given.rounds)
    except DetrError as error:
        sys.exit(f"error: {error}")
    what = (
        "milliseconds of one run; 'plain graph' is the graph in the first end-to-end file, 'pipeline' is Pillow's "
        "processor, the plain file and post-processing in NumPy. Ratios are to 'plain graph'."
    )
    report = framed(what, {"image": given.size}, given.threads, load_before, given.rounds, found)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
