"""Prediction on Ray gives the numbers of `predict_files`, whatever is killed on the way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detr_export.runtimes.distributed import manifest, parts
from detr_export.runtimes.distributed.cluster import connected
from detr_export.runtimes.distributed.coco import write_coco
from detr_export.runtimes.distributed.job import Job, ModelOptions, Work, surroundings
from detr_export.runtimes.distributed.model import Description, ModelWorker
from detr_export.runtimes.distributed.pipeline import pipeline
from detr_export.runtimes.distributed.run import Step, predict_on_ray
from detr_export.runtimes.errors import ArtifactError, DetrError, OutputError
from detr_export.runtimes.files import sha256_of_file
from detr_export.runtimes.folder import predict_files
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.sources import find_sources
from tests.runtimes.distributed.comparing import (
    break_pictures,
    copies,
    local_table,
    model_workers,
    ray_workers,
    table_in,
)

# Ray leaves streams and sockets to the garbage collector, and calls deprecated functions of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

THRESHOLD = {"detection": 0.02, "panoptic": 0.02, "instances": 0.02}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all runs here."""
    with connected(None, 6, 200 * 2**20):
        yield


@pytest.fixture(scope="module")
def folder(photo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 small pictures, one with a wrong name, four that cannot be used, and a link to nothing; not to be changed."""
    place = copies(photo, tmp_path_factory.mktemp("pictures") / "all", 40)
    break_pictures(place)
    return place


@pytest.fixture(scope="module")
def many(photo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """320 small pictures; not to be changed."""
    return copies(photo, tmp_path_factory.mktemp("pictures") / "many", 320)


def start(sources: list[str], output: Path, model: Path, work: Work, **options: object) -> list[Step]:
    return list(predict_on_ray(sources, output, ModelOptions(str(model)), work, workers=2, **options))  # type: ignore[arg-type]


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("task", ["detection", "instances"])
def test_the_table_is_that_of_a_local_run(task: str, folder: Path, segmenter_onnx: Path, tmp_path: Path) -> None:
    work = Work(task, THRESHOLD[task])
    steps = start([str(folder)], tmp_path / "out", segmenter_onnx, work)
    found = table_in(tmp_path / "out")
    expected = local_table(segmenter_onnx, [str(folder)], task, THRESHOLD[task])
    assert found.equals(expected)
    assert found["error"].null_count == 41  # "named.webp" is a picture all the same
    assert len(found) == 45
    assert len(set(found["labels"].combine_chunks().flatten().to_pylist())) > 1  # or all of this would be about nothing
    assert sum(step.pictures for step in steps) == steps[-1].done == steps[-1].total == 45
    assert sum(step.failed for step in steps) == 4

    # And as COCO's documents
    write_coco(tmp_path / "out", task, {int(n): name for n, name in _manifest(tmp_path / "out").id2label.items()})
    with Predictor.load(segmenter_onnx, threads=1) as predictor:
        pictures = find_sources([str(folder)]).pictures
        list(predict_files(predictor, pictures, THRESHOLD[task], tmp_path / "local", task=task, form="coco"))
    for name in ("predictions.coco.json", "images.coco.json"):
        written, wanted = (json.loads((tmp_path / place / name).read_text()) for place in ("out", "local"))
        assert written == wanted

    # A second start has nothing to do; a start for something else is refused, and changes nothing
    (step,) = start([str(folder)], tmp_path / "out", segmenter_onnx, work)
    assert step.resumed
    assert step.pictures == 45
    for other, options, message in (
        (replace(work, threshold=0.5), {}, "threshold"),
        (replace(work, allow_truncated=True), {}, "allow_truncated"),
        (work, {"column": "x"}, "column"),
    ):
        with pytest.raises(OutputError, match=f"holds a run with {message} .*, and this one has {message} "):
            start([str(folder)], tmp_path / "out", segmenter_onnx, other, **options)
    assert table_in(tmp_path / "out").equals(expected)


@pytest.mark.usefixtures("cluster")
def test_another_model(folder: Path, segmenter_onnx: Path, tiny_onnx: Path, tmp_path: Path) -> None:
    pictures = [str(folder / "0000.png"), str(folder / "0001.png")]
    start(pictures, tmp_path / "out", tiny_onnx, Work(threshold=0.02))
    before = table_in(tmp_path / "out")
    with pytest.raises(
        OutputError, match=f'model "{sha256_of_file(tiny_onnx)}", .* model "{sha256_of_file(segmenter_onnx)}"'
    ):
        start(pictures, tmp_path / "out", segmenter_onnx, Work(threshold=0.02))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(tiny_onnx.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match=r"^on the worker node [0-9.]+: .*broken.onnx.*"):
        start(pictures, tmp_path / "out", broken, Work(), overwrite=True)
    assert table_in(tmp_path / "out").equals(before)  # also after --overwrite: the new run never began


@pytest.mark.usefixtures("cluster")
def test_tables(folder: Path, tiny_onnx: Path, tmp_path: Path) -> None:
    files = [folder / f"{number:04d}.png" for number in range(6)]
    paths = [str(file) for file in files]
    pq.write_table(pa.table({"n": [0] * 8, "where": [*paths, paths[0], None]}), tmp_path / "paths.parquet")
    content = [*(file.read_bytes() for file in files), b"", None]
    pq.write_table(pa.table({"image": content}), tmp_path / "bytes.parquet", row_group_size=3)
    expected = local_table(tiny_onnx, paths, "detection", 0.02)

    start([str(tmp_path / "paths.parquet")], tmp_path / "one", tiny_onnx, Work(threshold=0.02), column="where")
    found = table_in(tmp_path / "one")
    assert found.slice(0, 6).equals(expected)
    assert found["path"].to_pylist()[6:] == [f"{tmp_path / 'paths.parquet'}#7"]  # the same path twice is one row
    assert "is null or empty" in found["error"][6].as_py()

    # By their addresses, and as content
    addresses = [f"file://{path}" for path in paths]
    pq.write_table(pa.table({"where": [*addresses, f"file://{tmp_path}/nothing.png"]}), tmp_path / "stored.parquet")
    start([f"file://{tmp_path}/stored.parquet"], tmp_path / "two", tiny_onnx, Work(threshold=0.02), column="where")
    found = table_in(tmp_path / "two")
    assert found.slice(0, 6).drop(["path"]).equals(expected.drop(["path"]))
    assert found["error"][6].as_py().startswith(f"cannot read file://{tmp_path}/nothing.png: ")

    start([str(tmp_path / "bytes.parquet")], tmp_path / "three", tiny_onnx, Work(threshold=0.02), column="image")
    found = table_in(tmp_path / "three")
    assert found.slice(0, 6).drop(["path"]).equals(expected.drop(["path"]))
    assert found["path"].to_pylist() == [f"{tmp_path / 'bytes.parquet'}#{number}" for number in range(8)]
    empty, null = found["error"].to_pylist()[6:]
    assert empty.startswith(f"{tmp_path / 'bytes.parquet'}#6 is empty (0 bytes): expected the content of an image file")
    assert null == f"{tmp_path / 'bytes.parquet'}#7 is null: expected an encoded picture"


@pytest.mark.usefixtures("cluster")
def test_batches_are_equal_up_to_rounding(folder: Path, tiny_onnx: Path, tmp_path: Path) -> None:
    start([str(folder)], tmp_path / "out", tiny_onnx, Work(threshold=0.0, batch=4))
    found = table_in(tmp_path / "out")
    expected = local_table(tiny_onnx, [str(folder)], "detection", 0.0)
    same = ["row", "path", "width", "height", "error"]
    assert found.select(same).equals(expected.select(same))
    for name in ("scores", "boxes"):
        one, other = (table[name].combine_chunks().flatten() for table in (found, expected))
        one, other = (values.flatten() if name == "boxes" else values for values in (one, other))
        assert one.to_numpy() == pytest.approx(other.to_numpy(), abs=1e-2 if name == "boxes" else 1e-4)


@pytest.mark.usefixtures("cluster")
def test_workers_that_are_killed(many: Path, tiny_onnx: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    killed: list[int] = []
    steps = predict_on_ray([str(many)], tmp_path / "out", ModelOptions(str(tiny_onnx)), Work(threshold=0.02), workers=2)
    for _ in steps:
        if len(killed) < 2:
            for worker in model_workers(psutil.Process())[:1]:
                worker.send_signal(signal.SIGKILL)
                killed.append(worker.pid)
    assert len(killed) == 2
    assert capfd.readouterr().out == ""
    assert table_in(tmp_path / "out").equals(local_table(tiny_onnx, [str(many)], "detection", 0.02))


@pytest.mark.usefixtures("cluster")
def test_a_driver_that_is_killed(many: Path, tiny_onnx: Path, tmp_path: Path) -> None:
    output, mark = tmp_path / "out", uuid.uuid4().hex
    command = [sys.executable, "-m", "detr_export", "predict", str(tiny_onnx), str(many), "--engine", "ray"]
    command += ["-o", str(output), "--threshold", "0.02", "--workers", "1"]
    environment = {**os.environ, "DETR_EXPORT_TEST": mark}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        while not parts.part_files(output / parts.FOLDER):
            assert driver.poll() is None
            time.sleep(0.05)
        driver.kill()
    made = {path.name: path.read_bytes() for path in parts.part_files(output / parts.FOLDER)}
    wait_until = time.monotonic() + 60
    while (left := ray_workers(mark)) and time.monotonic() < wait_until:
        time.sleep(0.1)
    assert left == []  # and Ray's two agents end within a minute

    steps = start([str(many)], output, tiny_onnx, Work(threshold=0.02))
    assert steps[0].resumed
    assert 0 < steps[0].pictures < 320  # the kill came in the middle
    assert sum(step.pictures for step in steps) == 320
    after = {path.name: path.read_bytes() for path in parts.part_files(output / parts.FOLDER)}
    assert made.items() <= after.items()  # nothing was made again
    assert table_in(output).equals(local_table(tiny_onnx, [str(many)], "detection", 0.02))


@pytest.mark.usefixtures("cluster")
def test_a_write_that_fails_in_a_worker(many: Path, tiny_onnx: Path, tmp_path: Path) -> None:
    """What is finished stays, and the next start goes on."""
    output = tmp_path / "out"
    steps = predict_on_ray([str(many)], output, ModelOptions(str(tiny_onnx)), Work(threshold=0.02), workers=1)
    first = next(steps)
    assert first.done < first.total
    (output / parts.FOLDER).rename(output / "moved")
    (output / parts.FOLDER).write_text("in the way")
    with pytest.raises(OutputError, match=f"^cannot write to {output / parts.FOLDER}: File exists$"):
        list(steps)
    (output / parts.FOLDER).unlink()
    (output / "moved").rename(output / parts.FOLDER)
    steps_again = start([str(many)], output, tiny_onnx, Work(threshold=0.02))
    assert steps_again[0].resumed
    assert steps_again[0].pictures >= first.pictures
    assert table_in(output).equals(local_table(tiny_onnx, [str(many)], "detection", 0.02))


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("resources", [{"num_cpus": 1}, {"num_cpus": 1, "num_gpus": 1}])
def test_actors_do_not_read(
    resources: dict[str, int], tiny_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray Data joins stages where it can. A joined one would decode pictures beside the GPU."""
    job = Job(tmp_path, "token", Work(), ModelOptions(str(tiny_onnx)), None, *surroundings())
    with Predictor.load(tiny_onnx, threads=1) as predictor:
        about = Description("", predictor.preparation, {}, None)
    pipeline(job, about, [pa.table({"first": [0], "stop": [1]})], 1, 1, resources).explain()
    plan = capsys.readouterr().out.partition("Physical Plan (Optimized)")[2]
    assert re.findall(r"\w+\[.*\]", plan) == [
        "TaskPoolMapOperator[MapBatches(write_part)]",
        "ActorPoolMapOperator[MapBatches(ModelWorker)]",
        "TaskPoolMapOperator[MapBatches(read_pictures)]",
        "InputDataBuffer[Input]",
    ]


@pytest.mark.usefixtures("cluster")
def test_a_node_with_another_file_or_none(tiny_onnx: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, "token", Work(), ModelOptions(str(tiny_onnx)), None, *surroundings())
    messages = pa.table({"first": [0], "stop": [1], "content": [b""]})
    with pytest.raises(ArtifactError, match=r"on the worker node .* has SHA-256 .* here and 0{16}... elsewhere"):
        ModelWorker(job, "0" * 64)(messages)
    gone = replace(job, model=ModelOptions(str(tmp_path / "gone.onnx")))
    with pytest.raises(ArtifactError, match=r"on the worker node .* the model .*gone.onnx cannot be read"):
        ModelWorker(gone, "0" * 64)(messages)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("work", "options", "message"),
    [
        (Work("semantic"), {}, "expected one of detection, panoptic, instances"),
        (Work("panoptic"), {}, "draws no masks"),
        (Work(classes=("no such class",)), {}, "the model has no class"),
        (Work(threshold=2.0), {}, "threshold"),
        (Work("panoptic", clip=False), {}, "--no-clip"),
        (Work(), {"column": "image"}, "cannot be read as Parquet"),
    ],
)
def test_what_is_refused(
    work: Work, options: dict[str, str], message: str, folder: Path, tiny_onnx: Path, tmp_path: Path
) -> None:
    with pytest.raises(DetrError, match=message) as refused:
        start([str(folder / "0000.png")], tmp_path / "out", tiny_onnx, work, **options)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out" / manifest.NAME).exists()


def _manifest(output: Path) -> manifest.Manifest:
    found = manifest.read_manifest(output)
    assert found is not None
    return found
