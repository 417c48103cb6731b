"""How fast `detr-export predict --engine ray` is with more and more workers, and what a row costs beside the model.

    python -m detr_export.benchmarks.speed.ray_scaling --output benchmarks/results/ray

Every run is a command of its own with a cluster of its own on this machine, so workers share its cores: with more workers
than cores the rate cannot grow. What grows with the number of machines is not measured here. Pictures are drawn; when more
are asked for than are drawn, the rest are links to the same files under other names.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from detr_export.benchmarks.speed.environment import installed_version
from detr_export.benchmarks.speed.interleaved import framed
from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.export import ExportOptions, export_onnx
from detr_export.runtimes.errors import BackendError, DetrError
from detr_export.runtimes.files import write_atomically
from detr_export.runtimes.folder import predict_files
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.processing.image_paths import iter_image_paths
from detr_export.runtimes.temporary import temporary_folder
from detr_export.training.demo_data import write_demo_data


def measure_local(model: Path, pictures: Sequence[Path]) -> dict[str, Any]:
    """The same work in one process, one picture after another, with one thread."""
    with Predictor.load(model, threads=1, spinning=False) as predictor:
        list(predict_files(predictor, pictures[:20], workers=0))
        begin, busy = time.perf_counter(), time.process_time()
        for outcome in predict_files(predictor, pictures, workers=0):
            if outcome.error is not None:
                raise outcome.error
        seconds, busy = time.perf_counter() - begin, time.process_time() - busy
    count = len(pictures)
    rates = {"pictures_per_s": round(count / seconds, 1), "cpu_ms_per_picture": round(1000 * busy / count, 2)}
    return {"pictures": count, "s": round(seconds, 2), **rates}


def measure_ray(model: Path, folder: Path, output: Path, workers: int) -> dict[str, Any]:
    """One run of the command.

    Returns:
        `s` of the whole run; `pictures_per_s` from the first file of the table to the last, so without the start of Ray and
        of the model; the driver's largest memory, looked at five times a second; `cpu_s` of all processes of the run, the
        cluster's too; and the bytes of a row in the table.

    Raises:
        BackendError: the command failed.
    """
    command = [sys.executable, "-m", "detr_export", "predict", str(model), str(folder), "--engine", "ray"]
    command += ["-o", str(output), "--workers", str(workers), "--json"]
    begin, peak = time.time(), 0
    busy: dict[int, float] = {}  # CPU seconds of each process, when it was looked at last
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        watched = psutil.Process(driver.pid)
        while driver.poll() is None:
            with contextlib.suppress(psutil.Error):  # it has just ended
                peak = max(peak, watched.memory_info().rss)
                for process in (watched, *watched.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        busy[process.pid] = sum(process.cpu_times()[:2])
            time.sleep(0.2)
    seconds = time.time() - begin
    if driver.returncode:
        raise BackendError(f"the run with {workers} workers ended with {driver.returncode}: {' '.join(command)}")
    files = sorted((output / "predictions").iterdir(), key=lambda file: file.stat().st_mtime)
    rows = [pq.read_metadata(file).num_rows for file in files]
    first, last = files[0].stat().st_mtime, files[-1].stat().st_mtime
    return {
        "workers": workers,
        "pictures": sum(rows),
        "s": round(seconds, 2),
        "start_s": round(first - begin, 2),
        "pictures_per_s": round(sum(rows[1:]) / max(last - first, 1e-9), 1),
        "cpu_s": round(sum(busy.values()), 1),
        "driver_peak_bytes": peak,
        "files": len(files),
        "bytes_per_row": round(sum(file.stat().st_size for file in files) / sum(rows), 1),
    }


def _marginal(runs: Sequence[Mapping[str, Any]], workers: int) -> float | None:
    """CPU milliseconds of one more picture: what the longest run took more than the shortest. The start is in both."""
    mine = sorted((run for run in runs if run["workers"] == workers), key=lambda run: int(run["pictures"]))
    pictures = mine[-1]["pictures"] - mine[0]["pictures"]
    return round(1000 * (mine[-1]["cpu_s"] - mine[0]["cpu_s"]) / pictures, 2) if pictures else None


def linked(drawn: Path, folder: Path, count: int) -> Path:
    """A folder of `count` pictures: links to those that are drawn."""
    folder.mkdir()
    files = sorted(drawn.iterdir())
    for number in range(count):
        source = files[number % len(files)]
        os.link(source, folder / f"{number:07d}{source.suffix}")
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--drawn", type=int, default=1000, help="how many pictures are drawn")
    parser.add_argument("--pictures", type=int, nargs="+", default=[1000, 10000], help="how many a run has")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--output", type=Path, help="a folder for report.json; stdout if left out")
    given = parser.parse_args(arguments)
    scratch = temporary_folder()
    work = scratch.path
    try:
        model = export_onnx(load_checkpoint("demo"), work / "demo.onnx", ExportOptions(verify=False)).path
        write_demo_data(work, given.drawn, "val")
        load_before = psutil.getloadavg()[0]
        local = measure_local(model, iter_image_paths(work / "val")[: given.pictures[0]])
        runs = []
        for count in given.pictures:
            folder = linked(work / "val", work / f"pictures-{count}", count)
            for workers in given.workers:
                runs.append(measure_ray(model, folder, work / f"out-{count}-{workers}", workers))
                print(json.dumps(runs[-1]), file=sys.stderr)
    except DetrError as error:
        sys.exit(f"error: {error}")
    finally:
        scratch.remove()
    what = "detection with demo.onnx on drawn pictures; the local run is one process with one thread"
    subject = {"command": ["python", "-m", "detr_export.benchmarks.speed.ray_scaling", *sys.argv[1:]], "drawn": given.drawn}
    marginal = {workers: _marginal(runs, workers) for workers in given.workers}
    found = {
        "cpu_ms_per_picture": marginal,
        "ray": installed_version("ray"),
        "pyarrow": installed_version("pyarrow"),
        "local": local,
        "runs": runs,
    }
    text = json.dumps(framed(what, subject, 1, load_before, 1, found), indent=1) + "\n"
    if given.output is None:
        print(text, end="")
    else:
        write_atomically(given.output / "report.json", text.encode())


if __name__ == "__main__":
    main()
