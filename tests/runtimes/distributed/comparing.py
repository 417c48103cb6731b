"""The table of a run on Ray, and the table that `predict_files` would have made."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from detr_export.runtimes.distributed import parts
from detr_export.runtimes.distributed.schema import row_of, table_of
from detr_export.runtimes.files import sha256_of_file
from detr_export.runtimes.folder import predict_files
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.sources import Source, find_sources


def table_in(output: Path) -> pa.Table:
    """The whole table of a run, in the order of the list. Its schema is that of the files."""
    files = parts.part_files(output / parts.FOLDER)
    return pa.concat_tables([pq.read_table(file) for file in files]).sort_by("row").replace_schema_metadata(None)


def local_table(
    model: Path, pictures: Sequence[str | Source], task: str, threshold: float, names: Sequence[str] | None = None
) -> pa.Table:
    """The same of a local run, one picture at a time.

    Args:
        model: an ONNX file.
        pictures: as on the command line.
        task, threshold: as there.
        names: what the table calls the pictures, if not as they were named.
    """
    sources = [item for text in pictures for item in ([text] if isinstance(text, Source) else find_sources([text]).pictures)]
    digest = sha256_of_file(model)
    with Predictor.load(model, threads=1, spinning=False) as predictor:
        rows = []
        for number, outcome in enumerate(predict_files(predictor, sources, threshold, task=task)):
            path = str(outcome.image) if names is None else names[number]
            error = None if outcome.error is None else str(outcome.error)
            rows.append(row_of(number, path, digest, outcome.result, error))
    return table_of(rows, task).replace_schema_metadata(None)


def copies(photo: Path, folder: Path, count: int) -> Path:
    """A folder of small pictures that all differ."""
    folder.mkdir(parents=True)
    with Image.open(photo) as image:
        for number in range(count):
            left, top = 7 * number % 400, 11 * number % 250
            size = (96, 64) if number % 3 else (64, 96)
            image.crop((left, top, left + 200, top + 160)).resize(size).save(folder / f"{number:04d}.png")
    return folder


def break_pictures(folder: Path) -> None:
    """Adds files that are no pictures, or no longer."""
    whole = sorted(folder.glob("*.png"))[0]
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no picture")
    (folder / "cut.png").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    Image.new("RGB", (3000, 1)).save(folder / "thin.png")
    (folder / "gone.png").symlink_to(folder / "nowhere")
    shutil.copy(whole, folder / "named.webp")


def marked_processes(mark: str) -> list[psutil.Process]:
    """The processes that have a value in the variable DETR_EXPORT_TEST of their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or is another user's
            if process.environ().get("DETR_EXPORT_TEST") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def ray_workers(mark: str) -> list[psutil.Process]:
    """Those of them that could still write: Ray's processes for tasks and actors, and what starts these."""
    found = []
    for process in marked_processes(mark):
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if "raylet" in command.split("--")[0] or "ModelWorker" in command or "MapBatches" in command:
                found.append(process)
    return found


def model_workers(parent: psutil.Process) -> list[psutil.Process]:
    """The actors that run the model, below a process."""
    found = []
    for process in parent.children(recursive=True):
        with suppress(psutil.Error):
            if "ModelWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found
