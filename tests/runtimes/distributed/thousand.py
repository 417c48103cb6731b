"""1000 drawn pictures, 20 broken in ten ways, two workers killed and the driver once: is the table that of a local run?

    python -m tests.runtimes.distributed.thousand

It prints what it did, and ends with 1 if a row is lost, twice there, or another one.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
from PIL import Image

from detr_export.checkpoints.reading import load_checkpoint
from detr_export.graphs.export import ExportOptions, export_onnx
from detr_export.runtimes.distributed import parts
from detr_export.runtimes.temporary import temporary_folder
from detr_export.training.demo_data import write_demo_data
from tests.runtimes.distributed.comparing import local_table, model_workers, ray_workers, table_in

_PICTURES, _BROKEN = 1000, 20


def _cut(file: Path, share: float) -> None:
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[0:2] = b"\x00\x00"
    file.write_bytes(content)


WAYS: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("no picture"),
    "cut in half": lambda file: _cut(file, 0.5),
    "its end is missing": lambda file: _cut(file, 0.98),
    "one byte": lambda file: file.write_bytes(b"\xff"),
    "the beginning is damaged": _flip,
    "a header without pixels": lambda file: _cut(file, 0.02),
    "too thin": lambda file: Image.new("RGB", (4000, 1)).save(file),
    "zeros": lambda file: file.write_bytes(bytes(5000)),
    "a web page": lambda file: file.write_text("<html><body>404</body></html>"),
}


def main() -> None:
    """Entry point."""
    draw = random.Random(7)
    with temporary_folder() as work:
        model = export_onnx(load_checkpoint("demo"), work / "demo.onnx", ExportOptions(verify=False)).path
        write_demo_data(work, _PICTURES, "val")
        files = sorted((work / "val").iterdir())
        for number, file in enumerate(draw.sample(files, _BROKEN)):
            way = [*WAYS][number % len(WAYS)]
            WAYS[way](file)
            print(f"broken: {file.name}, {way}")

        output, mark = work / "out", uuid.uuid4().hex
        command = [sys.executable, "-m", "detr_export", "predict", str(model), str(work / "val"), "--engine", "ray"]
        command += ["-o", str(output), "--task", "panoptic", "--json"]
        environment = {**os.environ, "DETR_EXPORT_TEST": mark}

        def rows() -> int:
            return sum(
                stop - first for file in parts.part_files(output / parts.FOLDER) for first, stop in parts.ranges_of(file)
            )

        def kill_workers_until(enough: int, driver: subprocess.Popen[bytes], times: int) -> None:
            """Kills an actor at random moments, until there are enough rows."""
            killed = 0
            while rows() < enough and driver.poll() is None:
                time.sleep(draw.uniform(0.3, 2.0))
                actors = model_workers(psutil.Process(driver.pid))
                if rows() and actors and killed < times:
                    worker = draw.choice(actors)
                    worker.send_signal(signal.SIGKILL)
                    killed += 1
                    print(f"killed -9: worker {worker.pid}, at {rows()} rows")

        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as driver:
            kill_workers_until(draw.randint(300, 600), driver, 1)
            driver.kill()
        at_kill, begin = rows(), time.monotonic()
        print(f"killed -9: the driver, at {at_kill} rows")
        while ray_workers(mark):
            time.sleep(0.1)
        print(f"its workers ended within {time.monotonic() - begin:.1f} s, and left {rows()} rows")

        with subprocess.Popen(command, env=environment) as driver:
            kill_workers_until(_PICTURES, driver, 1)
        print(f"started again: exit code {driver.returncode}")

        found, expected = table_in(output), local_table(model, [str(work / "val")], "panoptic", 0.5)
        failed = len(found) - found["error"].null_count
        print(f"{len(found)} rows, {failed} with an error; equal to a local run: {found.equals(expected)}")
        if not found.equals(expected) or len(found) != _PICTURES or failed != _BROKEN:
            sys.exit(1)


if __name__ == "__main__":
    main()
