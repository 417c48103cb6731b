"""One predictor under many threads, in other processes, during close and after it. `make soak` does the same for hours."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detr_export import Predictor, open_session
from detr_export.runtimes.errors import BackendError
from detr_export.runtimes.pipeline import ModelThread
from tests.fuzz.seeds import metadata, tiny_graph
from tests.soak import checks

TASKS = ("detection", "panoptic")
IMAGES = checks.pictures(8)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this system has no /proc")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny graph that draws masks; not to be changed."""
    file = tmp_path_factory.mktemp("sharing") / "tiny.onnx"
    about = replace(metadata(), task="segmentation", ranges={}, quantization=None, precision="fp32")
    file.write_bytes(tiny_graph(about, masks=True))
    return file


@pytest.mark.parametrize("threads", [2, 8])
@pytest.mark.parametrize("own", [1, None], ids=["one thread a run", "the runtime's threads"])
def test_threads_get_what_one_thread_gets(model: Path, threads: int, own: int | None) -> None:
    with Predictor.load(model, threads=own) as predictor:
        found = checks.shared(predictor, IMAGES, TASKS, threads, lambda done: done < 40)
    assert found == checks.Shared(40 * threads, 0, 0.0, {})


def test_a_difference_would_be_seen(model: Path) -> None:
    with Predictor.load(model) as predictor:
        first, second = (checks.result(predictor, image, "panoptic") for image in IMAGES[:2])
    assert checks.difference(first, first) == 0
    assert checks.difference(first, second) > 0
    assert checks.difference({"map": np.ones(2)}, {"map": np.zeros(2)}) == 1


@pytest.mark.parametrize("round_", range(5))
def test_calls_that_run_while_another_thread_closes_end_well_or_with_an_error(model: Path, round_: int) -> None:
    assert checks.closed_while_running(model, IMAGES[round_:], TASKS, 8) == {"BackendError": 8}


@pytest.mark.parametrize("method", ["run", "run_into", "run_chosen"])
def test_a_closed_session_refuses(model: Path, method: str) -> None:
    session = open_session(model)
    session.close()
    session.close()  # does nothing
    inputs = {"pixel_values": np.zeros((1, 3, 8, 8), np.float32)}
    arguments = {"run": (inputs,), "run_into": (inputs, {}), "run_chosen": (inputs, lambda outputs: None)}[method]
    with pytest.raises(BackendError, match="the session is closed"):
        getattr(session, method)(*arguments)


def test_a_closed_predictor_refuses(model: Path) -> None:
    assert checks.used_after_close(model, IMAGES[0], TASKS) == {"BackendError": 2}


def test_garbage_that_is_collected_while_others_run_changes_nothing(model: Path) -> None:
    assert checks.collected_while_running(model, IMAGES[:4], 4) == 0


@needs_proc
def test_opening_and_closing_leaves_nothing_open(model: Path) -> None:
    found = checks.cycles(model, IMAGES[0], 50)
    assert max(found.values()) <= 0, found  # fewer, where threads of an earlier test end meanwhile


@needs_fork
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 warns of a fork beside threads
@pytest.mark.parametrize(
    ("action", "end"), [("run", "BackendError"), ("thread", "BackendError"), ("close", "done"), ("drop", "done")]
)
@pytest.mark.parametrize("threads", [1, None])
def test_a_forked_process_is_refused_and_ends(model: Path, action: str, end: str, threads: int | None) -> None:
    with Predictor.load(model, threads=threads) as predictor:
        checks.result(predictor, IMAGES[0], "detection")
        assert checks.forked(predictor, IMAGES[0], action) == end
        checks.result(predictor, IMAGES[0], "detection")  # here it goes on


@needs_fork
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_may_open_the_model_itself(model: Path) -> None:
    with Predictor.load(model) as predictor:
        checks.result(predictor, IMAGES[0], "detection")
        assert checks.forked(Opener(model), IMAGES[0], "run") == "done"  # type: ignore[arg-type]


class Opener:
    """Opens a model when it is asked for a result."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def predict(self, *arguments: object) -> object:
        """Of the model."""
        with Predictor.load(self.file) as predictor:
            return predictor.predict(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["run", "run_into", "run_on_device", "run_chosen"])
def test_a_session_of_another_process_says_what_to_do(model: Path, method: str) -> None:
    inputs = {"pixel_values": np.zeros((1, 3, 8, 8), np.float32)}
    with open_session(model) as session:
        session._opened_in += 1
        arguments = (inputs, {}) if method in ("run_into", "run_chosen") else (inputs,)
        with pytest.raises(
            BackendError, match=r"opened before this process was forked.*in the process that runs it.*'spawn'"
        ):
            getattr(session, method)(*arguments)


def test_the_thread_beside_a_session_is_of_one_process(model: Path) -> None:
    with open_session(model) as session, ModelThread(session) as thread:
        thread._opened_in += 1
        for run in (lambda: thread.run({}), lambda: thread.run_chosen({}, lambda outputs: np.ones(1))):
            with pytest.raises(BackendError, match="opened before this process was forked"):
                run()


def test_a_spawned_process_gets_a_predictor_of_its_own(model: Path) -> None:
    with Predictor.load(model, threads=1) as predictor:
        assert checks.spawned(predictor, IMAGES[0]) == 0
