"""Files that loop for centuries, crash, or fail, in a process of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from detr_export.runtimes.errors import ArtifactError, BackendError, ImageError, InputError
from detr_export.runtimes.folder import predict_files
from detr_export.runtimes.opening import open_session
from detr_export.runtimes.predictor import Predictor
from detr_export.runtimes.timed_session import TimedSession
from tests.hostile.onnx_files import DOCUMENT, FLOAT, LOGITS, detr

PICTURE = np.zeros((40, 50, 3), np.uint8)
WHITE = np.full((40, 50, 3), 255, np.uint8)
PATIENCE = 600.0  # seconds, of what must not be timed


def looping(file: Path) -> Path:
    """A file that loops 2^62 times on white pictures, and once on others."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Sin", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", FLOAT, []),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("y", FLOAT, [])],
    )
    number = helper.make_tensor
    nodes = [
        helper.make_node("Constant", [], ["many"], value=number("m", TensorProto.INT64, [], [2**62])),
        helper.make_node("Constant", [], ["once"], value=number("o", TensorProto.INT64, [], [1])),
        helper.make_node("Constant", [], ["true"], value=number("t", TensorProto.BOOL, [], [True])),
        helper.make_node("Constant", [], ["none"], value=number("n", FLOAT, [], [0.0])),
        helper.make_node("ReduceMax", ["pixel_values"], ["brightest"], keepdims=0),
        helper.make_node("Greater", ["brightest", "none"], ["white"]),
        helper.make_node("Where", ["white", "many", "once"], ["trips"]),
        helper.make_node("Loop", ["trips", "true", "brightest"], ["looped"], body=body),
    ]
    model = onnx.load(str(detr(file, nodes=nodes)))
    # The loop is needed for the logits: their sum with zero times its result
    model.graph.node[-3].output[0] = "plain_logits"
    model.graph.node.extend(
        [
            helper.make_node("Mul", ["looped", "none"], ["nothing"]),
            helper.make_node("Add", ["plain_logits", "nothing"], ["logits"]),
        ]
    )
    onnx.save(model, str(file))
    return file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return looping(tmp_path / "a.onnx")


def test_a_run_that_takes_too_long_is_ended_and_the_next_one_runs(file: Path) -> None:
    with Predictor.load(file, timeout=PATIENCE) as predictor:
        assert isinstance(predictor.session, TimedSession)
        expected = predictor.detect(PICTURE, threshold=0.1)
        assert len(expected.scores) == 4
        predictor.session._timeout = 0.5
        with pytest.raises(
            ImageError, match=r"a\.onnx took longer than 0.5 seconds for an image \(--timeout\), and was stopped"
        ):
            predictor.detect(WHITE)
        predictor.session._timeout = PATIENCE
        assert np.array_equal(predictor.detect(PICTURE, threshold=0.1).boxes, expected.boxes)


def test_the_other_pictures_of_a_folder_are_predicted(file: Path, tmp_path: Path) -> None:
    for number, pixels in enumerate((PICTURE, WHITE, PICTURE)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    images = [tmp_path / f"{number}.png" for number in range(3)]
    with Predictor.load(file, timeout=20, threads=1) as predictor:
        assert isinstance(predictor.session, TimedSession)
        predictor.session._timeout = 5.0
        outcomes = list(predict_files(predictor, images, workers=0))
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert "1.png: the model" in str(outcomes[1].error)


def test_a_process_that_ends_is_an_error_of_its_image(file: Path) -> None:
    with Predictor.load(file, timeout=PATIENCE) as predictor:
        session = predictor.session
        assert isinstance(session, TimedSession)
        process = session._process
        assert process is not None
        killer = threading.Timer(0.5, process.kill)
        killer.start()
        with pytest.raises(ImageError, match=r"a\.onnx ended its process, and was stopped"):
            predictor.detect(WHITE)
        killer.join()
        assert len(predictor.detect(PICTURE, threshold=0.1).scores) == 4
        process = session._process
        assert process is not None
        process.kill()  # between two runs
        process.wait()
        assert len(predictor.detect(PICTURE, threshold=0.1).scores) == 4


def test_it_is_the_same_contract(file: Path) -> None:
    with open_session(file, timeout=PATIENCE) as timed, open_session(file) as plain:
        assert (timed.inputs, timed.outputs, timed.metadata) == (plain.inputs, plain.outputs, plain.metadata)
        assert timed.source == plain.source
        inputs = {"pixel_values": np.zeros((1, 3, 32, 40), np.float32)}
        given, expected = timed.run(inputs), plain.run(inputs)
        assert given.keys() == expected.keys()
        for name, value in given.items():
            assert np.array_equal(value, expected[name])
            value[:] = 5  # it belongs to the caller
        with pytest.raises(InputError, match="pixel_values is float64; expected float32"):
            timed.run({"pixel_values": np.zeros((1, 3, 32, 40))})
        with pytest.raises(InputError, match="h is 0; this model takes 1 to any"):
            timed.run_chosen({"pixel_values": np.zeros((1, 3, 0, 40), np.float32)}, lambda outputs: outputs["logits"])
    with pytest.raises(BackendError, match="the session is closed"):
        timed.run(inputs)
    timed.close()


def test_masks_are_chosen_by_the_caller(segmenter_onnx: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    with Predictor.load(segmenter_onnx, timeout=PATIENCE) as timed, Predictor.load(segmenter_onnx, spinning=False) as plain:
        one, other = (predictor.segment_instances(picture, 0.2) for predictor in (timed, plain))
        assert np.array_equal(one.map, other.map)
        assert len(one.segments) == len(other.segments) > 0


def test_an_error_of_a_choice_ends_the_process_and_not_the_session(file: Path) -> None:
    inputs = {"pixel_values": np.zeros((1, 3, 32, 40), np.float32)}

    def choose(outputs: Any) -> np.ndarray:
        raise ArtifactError("not these")

    with open_session(file, timeout=PATIENCE) as session:
        session.run_chosen(inputs, choose)  # one graph: nobody is asked
        assert np.array_equal(session.run(inputs)["logits"], LOGITS)


def test_a_file_that_does_not_open_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"hello")
    with pytest.raises(ArtifactError, match=r"a\.onnx cannot be loaded by ONNX Runtime"):
        open_session(tmp_path / "a.onnx", timeout=5)
    with pytest.raises(ArtifactError, match=r"b\.onnx does not exist"):
        open_session(tmp_path / "b.onnx", timeout=5)
    text = DOCUMENT | {"task": "x"}
    with pytest.raises(ArtifactError, match=r"c\.onnx: the file's metadata is damaged: task is 'x'"):
        open_session(detr(tmp_path / "c.onnx", metadata=text), timeout=5)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e9, True, "5"])
def test_times_that_are_none(seconds: Any, file: Path) -> None:
    with pytest.raises(InputError, match=r"timeout is .*; expected more than 0 and at most 1e"):
        open_session(file, timeout=seconds)


def test_only_onnx_files(tmp_path: Path) -> None:
    for name in ("a.engine", "checkpoint"):
        with pytest.raises(BackendError, match=r"does not take timeout: only an ONNX file runs in a process of its own"):
            open_session(tmp_path / name, "cuda", timeout=5)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("busy", [False, True])
def test_the_process_does_not_outlive_the_one_that_started_it(busy: bool, file: Path) -> None:
    """Not even if that one is killed, and the model runs."""
    code = (
        "import sys, numpy as np\n"
        "from detr_export.runtimes.predictor import Predictor\n"
        "predictor = Predictor.load(sys.argv[1], timeout=1000)\n"
        "print(predictor.session._process.pid, flush=True)\n"
        "if sys.argv[2] == 'True': predictor.detect(np.full((40, 50, 3), 255, np.uint8))\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(file), str(busy)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert is_alive(worker)
        time.sleep(0.5 if busy else 0)  # it may take longer to begin, and the test is the same then
        parent.send_signal(signal.SIGKILL)
    while is_alive(worker):
        time.sleep(0.05)


def is_alive(process: int) -> bool:
    """Whether it runs; one that has ended may wait for somebody who asks how."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X") and os.path.exists(f"/proc/{process}")
