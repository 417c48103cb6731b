"""The worker of one variant: what it answers, in this process and through the pipe of a real one."""

from __future__ import annotations

import io
import os
import pickle
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from detr_export.benchmarks.speed.process import WorkerDiedError, WorkerProcess, how_a_process_ended
from detr_export.benchmarks.speed.worker import (
    Failure,
    Measure,
    Measured,
    Open,
    Opened,
    Prepare,
    Prepared,
    Throughput,
    Worker,
    memory_of,
    peak_resident_bytes,
    serve,
)
from detr_export.runtimes.backends.cuda import opening as cuda_opening
from detr_export.runtimes.backends.ort.session import OrtSession
from detr_export.runtimes.errors import BackendError, InputError
from detr_export.runtimes.processing.image_processor import DetrImageProcessor
from tests import models
from tests.tensorrt_double.fixtures import Install

HEIGHT, WIDTH = 96, 128
PICTURES = tuple(np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8) for seed in range(3))
BATCHES = ((PICTURES[0],), (PICTURES[1],), (PICTURES[2],))


def answers(*commands: Any) -> list[Any]:
    """What `serve` replies to pickled commands."""
    replies = io.BytesIO()
    serve(io.BytesIO(b"".join(pickle.dumps(command) for command in commands)), replies)
    replies.seek(0)
    found = []
    while replies.tell() < len(replies.getvalue()):
        reply, memory = pickle.load(replies)
        assert memory.peak_resident_bytes > 1 << 20
        assert memory.device_bytes is None
        found.append(reply)
    return found


def test_from_opening_to_throughput(tiny_onnx: Path) -> None:
    opened, prepared, measured, one, two = answers(
        Open("ort", str(tiny_onnx), 1),
        Prepare(HEIGHT, WIDTH, BATCHES),
        Measure(warmup_runs=1, runs=4, seconds=None),
        Throughput(1, 0.02),
        Throughput(2, 0.02),
    )
    assert isinstance(opened, Opened)
    assert opened.precision == "fp32"
    assert opened.own_size == (models.SIZE["shortest_edge"], 128)  # of a picture of 480 x 640
    assert not opened.draws_masks
    assert opened.load_s > 0
    assert isinstance(prepared, Prepared)
    assert opened.input == "float32"
    # The outputs are those of all pictures, at the size that was asked for.
    inputs = DetrImageProcessor(size={"height": HEIGHT, "width": WIDTH}).preprocess(list(PICTURES), return_tensors="np")
    assert inputs["pixel_values"].shape == (3, 3, HEIGHT, WIDTH)
    with OrtSession(tiny_onnx, threads=1) as session:
        expected = session.run({name: inputs[name] for name in ("pixel_values", "pixel_mask")})
    np.testing.assert_allclose(prepared.outputs["logits"], expected["logits"], atol=1e-5)
    assert isinstance(measured, Measured)
    for samples in (measured.preprocess_ms, measured.session_ms, measured.postprocess_ms, measured.end_to_end_ms):
        assert len(samples) == 4
        assert min(samples) > 0
    assert one > 0
    assert two > 0


def test_lean_inputs_lie_in_page_locked_memory(
    tiny_onnx: Path, install_tensorrt: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = install_tensorrt().device
    worker = Worker()
    assert worker.handle(Open("ort", str(tiny_onnx), 1, lean_input=True)).input == "float32, page-locked"
    plain = Worker()
    plain.handle(Open("ort", str(tiny_onnx), 1))
    for batches in (BATCHES, (PICTURES,)):  # the memory of the first is given back for the second
        command = Prepare(HEIGHT, WIDTH, batches)
        found, expected = worker.handle(command).outputs, plain.handle(command).outputs
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
        addresses = {array.ctypes.data for inputs in worker._inputs for array in inputs.values()}
        assert addresses == set(device.pinned)
        assert len(addresses) == 2 * len(batches)
    # Without a library to get such memory with, the report says so.
    monkeypatch.setattr(cuda_opening, "open_device", no_gpu)
    assert Worker().handle(Open("ort", str(tiny_onnx), 1, lean_input=True)).input == "float32"


def no_gpu(index: int = 0) -> None:
    raise BackendError("cuda-python is not installed")


def test_turns_take_one_batch_after_the_other(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker()
    worker.handle(Open("ort", str(tiny_onnx), 1))
    worker.handle(Prepare(HEIGHT, WIDTH, BATCHES))
    seen: list[int] = []
    run_once = worker._run_once
    monkeypatch.setattr(worker, "_run_once", lambda index: (seen.append(index), run_once(index))[1])
    worker.handle(Measure(0, 2, None))
    worker.handle(Measure(0, 3, None))
    assert seen == [0, 1, 2, 0, 1]


def test_seconds_run_at_least_once(tiny_onnx: Path) -> None:
    worker = Worker()
    worker.handle(Open("ort", str(tiny_onnx), 1))
    worker.handle(Prepare(HEIGHT, WIDTH, BATCHES))
    assert len(worker.handle(Measure(0, None, 1e-9)).session_ms) == 1


def test_errors_are_answers_and_the_worker_goes_on(tiny_onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    replies = answers(
        Measure(0, 1, None),
        Open("ort", str(tmp_path / "bad.onnx"), 1),
        Open("ort", str(tiny_onnx), 1),
        Measure(0, 1, None),
        "nonsense",
        Prepare(HEIGHT, WIDTH, BATCHES),
        "nonsense",
        Throughput(1, 0.0),
    )
    messages = [reply.message if isinstance(reply, Failure) else None for reply in replies]
    assert messages[0] == "nothing is open yet"
    assert "cannot be loaded by ONNX Runtime" in str(messages[1])
    assert "\n" not in str(messages[1])
    assert messages[2] is None
    assert messages[3] == "no size is prepared yet"
    assert messages[4] == "no size is prepared yet"
    assert messages[6] == "str is no command"
    assert replies[7] > 0


def test_a_caller_that_fails_fails_the_throughput(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker()
    worker.handle(Open("ort", str(tiny_onnx), 1))
    worker.handle(Prepare(HEIGHT, WIDTH, BATCHES))

    def fail(inputs: Any) -> Any:
        raise InputError("no")

    monkeypatch.setattr(worker._pipeline.session, "run", fail)
    with pytest.raises(InputError, match="no"):
        worker.handle(Throughput(2, 0.01))


def test_throughput_counts_images_of_all_callers(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker()
    worker.handle(Open("ort", str(tiny_onnx), 1))
    worker.handle(Prepare(HEIGHT, WIDTH, (PICTURES,)))
    clock = iter(np.arange(0.0, 100.0, 1.0))  # every look at the clock is a second later
    monkeypatch.setattr("detr_export.benchmarks.speed.worker.time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    monkeypatch.setattr(worker._pipeline.session, "run", lambda inputs: {})
    # Deadline at 0 s, one look a run: 1 run of 3 images; begin and end are two more looks, in some order of the threads.
    assert worker.handle(Throughput(1, 0.5)) in (3.0, 1.5, 1.0)


@pytest.fixture
def process() -> Any:
    process = WorkerProcess(threads=1)
    yield process
    process.close()


def test_a_real_process(process: WorkerProcess, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = process.request(Open("ort", str(tiny_onnx), 1))
    assert isinstance(opened, Opened)
    with pytest.raises(BackendError, match="no size is prepared yet"):
        process.request(Measure(0, 1, None))
    process.wait_until_idle()
    assert process.memory is not None
    assert process.memory.peak_resident_bytes > 10 << 20
    # Ctrl-C is for the parent.
    os.kill(process.pid, signal.SIGINT)
    assert isinstance(process.request(Prepare(HEIGHT, WIDTH, BATCHES)), Prepared)
    # One that is killed is named as such, and leaves nothing behind when it is closed.
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match="SIGKILL; was there enough memory"):
        process.request(Measure(0, 1, None))
    scratch = process._scratch.path
    process.close()
    assert not Path(scratch).exists()


def test_what_a_library_prints_does_not_garble_the_answers(process: WorkerProcess) -> None:
    # Opening a checkpoint that is not there prints nothing, yet the error must come through the same pipe.
    with pytest.raises(BackendError, match="does not exist"):
        process.request(Open("ort", "/nowhere/x.onnx", 1))


def test_how_a_process_ended() -> None:
    assert how_a_process_ended(-11, "") == "its process was ended by SIGSEGV"
    assert how_a_process_ended(1, "ImportError: no") == "its process ended with exit code 1: ImportError: no"
    assert how_a_process_ended(3, "") == "its process ended with exit code 3"
    assert how_a_process_ended(-250, "x") == "its process ended with exit code -250: x"


def test_memory() -> None:
    assert peak_resident_bytes() > 10 << 20
    processes = [
        SimpleNamespace(pid=1, usedGpuMemory=5),
        SimpleNamespace(pid=2, usedGpuMemory=7),
        SimpleNamespace(pid=2, usedGpuMemory=1),
        SimpleNamespace(pid=3, usedGpuMemory=None),
    ]
    assert memory_of(2, processes) == 8
    assert memory_of(3, processes) is None
    assert memory_of(4, processes) is None
