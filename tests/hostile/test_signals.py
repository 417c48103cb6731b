"""Ctrl-C, SIGTERM and SIGHUP end a command in order; and what it started ends with it, also after `kill -9`."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detr_export import signals
from detr_export.graphs.tracing import export_module
from detr_export.runtimes.errors import ArtifactError
from detr_export.signals import handled, handled_signals, interruption_in
from detr_export.training.interruption import held_interrupts, ignore_interrupts
from tests.hostile.killing import ROOT, finish, start, wait_until_it_listens

linux = pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def _not_ignored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A shell may have started the tests deaf to Ctrl-C."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    for number in NUMBERS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    monkeypatch.setattr(signals, "_seen", signals._Seen())
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    """To this process; the handler has run when it returns."""
    os.kill(os.getpid(), number)
    time.sleep(0.001)


# ---- handlers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_an_interruption_with_its_own_exit_code(number: int) -> None:
    with handled():
        assert not signals.received()
        with pytest.raises(KeyboardInterrupt):
            send(number)
        assert signals.received()
        assert signals.exit_code() == 128 + number
    assert not signals.received()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # as before


def test_without_a_signal_the_exit_code_is_that_of_ctrl_c() -> None:
    assert signals.exit_code() == 130


@pytest.mark.parametrize("number", NUMBERS)
def test_what_is_ignored_stays_ignored(number: int) -> None:
    """nohup ignores SIGHUP, and a shell ignores SIGINT for what it starts in the background."""
    signal.signal(number, signal.SIG_IGN)
    with handled():
        assert number not in handled_signals()
        assert len(handled_signals()) == 2
        send(number)
    assert signal.getsignal(number) == signal.SIG_IGN
    assert not signals.received()


def test_a_block_in_a_block_changes_nothing() -> None:
    with handled():
        with handled():
            assert len(handled_signals()) == 3
        assert len(handled_signals()) == 3
    assert handled_signals() == []


def test_at_the_end_of_a_process_signals_are_ignored() -> None:
    """Python would restore the default while it cleans up, and the exit code would be another one."""
    with handled(to_the_end=True):
        pass
    assert {signal.getsignal(number) for number in NUMBERS} == {signal.SIG_IGN}


def test_outside_the_main_thread_nothing_changes() -> None:
    def work() -> list[int]:
        with handled():
            return handled_signals()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == []


def test_the_same_signal_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal and the program that started us may both send it."""
    ended: list[bool] = []
    monkeypatch.setattr(signals, "end_at_once", lambda: ended.append(True))
    with handled():
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        send(signal.SIGTERM)
        assert ended == []
        signals._seen.at -= 10
        send(signal.SIGTERM)
        assert ended == [True]
        assert signals.exit_code() == 130  # the first one counts


def test_a_signal_in_a_finaliser_comes_again() -> None:
    class Finalised:
        def __del__(self) -> None:
            send(signal.SIGTERM)

    def wait() -> None:
        item = Finalised()
        del item  # the exception of the handler is lost here
        for _ in range(500):
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt), handled():
        wait()


def test_other_lost_exceptions_go_where_they_went(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    with handled():

        class Failing:
            def __del__(self) -> None:
                raise ValueError

        item = Failing()
        del item
    assert [found.exc_type for found in seen] == [ValueError]


# ---- errors that libraries make of an interruption ----------------------------------------------------------------------


def chained(*errors: BaseException, explicit: bool) -> BaseException:
    """The last of the errors; each is the cause, or the context, of the next."""
    for before, after in itertools.pairwise(errors):
        if explicit:
            after.__cause__ = before
        else:
            after.__context__ = before
    return errors[-1]


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_an_interruption_is_found_in_a_chain(depth: int, explicit: bool) -> None:
    interruption = KeyboardInterrupt()
    others = [RuntimeError(str(number)) for number in range(depth)]
    assert interruption_in(chained(interruption, *others, explicit=explicit)) is interruption
    assert interruption_in(chained(ValueError(), *others, explicit=explicit)) is None


def test_a_chain_without_end() -> None:
    first, second = ValueError(), TypeError()
    first.__context__, second.__context__ = second, first
    assert interruption_in(first) is None


@pytest.mark.parametrize(
    ("raised", "expected"), [(KeyboardInterrupt(), KeyboardInterrupt), (RuntimeError("no"), ArtifactError)]
)
def test_ctrl_c_while_pytorch_traces(raised: BaseException, expected: type[BaseException]) -> None:
    class Interrupted(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            raise raised

    with pytest.raises(expected):
        export_module(Interrupted(), (torch.zeros(1),), {"x": (1,)}, ["y"], {}, 18)


# ---- training -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", NUMBERS)
def test_training_holds_all_signals_of_a_command(number: int) -> None:
    with handled():
        with held_interrupts() as flag:
            send(number)
            assert flag
            send(number)  # the same one
        assert len(handled_signals()) == 3
        assert signals.exit_code() == 128 + number


def test_in_a_library_training_holds_ctrl_c_alone() -> None:
    with held_interrupts() as flag:
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        send(signal.SIGINT)
        assert flag
        flag.since -= 10
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert not signals.received()


def test_the_processes_of_a_data_loader_ignore_them() -> None:
    ignore_interrupts()
    assert {signal.getsignal(number) for number in NUMBERS} == {signal.SIG_IGN}


# ---- commands -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("module", ["detr_export", "detr_export.benchmarks.command"])
def test_in_the_first_moment(number: int, module: str, tmp_path: Path) -> None:
    """While the command itself is still being imported."""
    process = start(module, ["--help"], tmp_path)
    wait_until_it_listens(process)
    process.send_signal(number)
    assert finish(process, 128 + number) == ("", "interrupted\n")


def test_in_the_first_moment_with_json(tmp_path: Path) -> None:
    process = start("detr_export", ["inspect", "a", "--json"], tmp_path)
    wait_until_it_listens(process)
    process.send_signal(signal.SIGTERM)
    out, err = finish(process, 143)
    assert ('"Interrupted"' in out, err) == (True, "interrupted\n")


# A command that is at work: it has a temporary file and a folder, and its cleaning up takes long.
_WORK = """
import signal, sys, time, types
sys.argv = ["detr-export"]
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
from detr_export import cli, entry
from detr_export.runtimes.files import replacing
from detr_export.runtimes.temporary import temporary_folder
from detr_export.terminal import reports_errors

@reports_errors
def work():
    with replacing({target!r}), temporary_folder():
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            {cleaning}

cli.app = lambda prog_name: work()
try:
    entry.export()
except BaseException as error:
    sys.exit(getattr(error, "exit_code", getattr(error, "code", 99)))
"""


def working(folder: Path, cleaning: str) -> subprocess.Popen[str]:
    """A command that is at work in a folder."""
    (folder / "scratch").mkdir()
    program = _WORK.format(target=str(folder / "own" / "a"), cleaning=cleaning)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "scratch")},
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert [len(list((folder / name).iterdir())) for name in ("own", "scratch")] == [1, 1]
    return process


@pytest.mark.parametrize("number", NUMBERS)
def test_temporary_files_are_removed(number: int, tmp_path: Path) -> None:
    process = working(tmp_path, "pass")
    process.send_signal(number)
    assert finish(process, 128 + number) == ("", "interrupted\n")
    assert [list((tmp_path / name).iterdir()) for name in ("own", "scratch")] == [[], []]


def test_a_second_signal_ends_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    process = working(tmp_path, "print('cleaning', flush=True); time.sleep(60)")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "cleaning\n"
    time.sleep(0.6)  # sooner it would be the same one
    process.send_signal(signal.SIGINT)
    assert finish(process, 130) == ("", "interrupted\n")
    assert [list((tmp_path / name).iterdir()) for name in ("own", "scratch")] == [[], []]


# ---- processes that a command starts ------------------------------------------------------------------------------------


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


_PARENTS = {
    "detr-bench": """
from detr_export.benchmarks.speed.process import WorkerProcess
process = WorkerProcess(1)
print(process.pid, flush=True)
""",
    "a data loader": """
import functools, os
import torch
from torch.utils.data import DataLoader
from detr_export.training.trainer import _begin_worker
loader = iter(DataLoader(range(1000), num_workers=2, worker_init_fn=functools.partial(_begin_worker, os.getpid())))
next(loader)
print(*[worker.pid for worker in loader._workers], flush=True)
""",
    "a pool": """
import multiprocessing, os
from concurrent.futures import ProcessPoolExecutor
from detr_export.runtimes.orphans import end_with
pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with, (os.getpid(),))
print(pool.submit(os.getpid).result(), flush=True)
""",
}


@linux
@pytest.mark.parametrize("what", _PARENTS)
def test_nothing_lives_on_after_a_kill(what: str, tmp_path: Path) -> None:
    program = "import sys, time\nif __name__ == '__main__':\n" + "".join(
        f"    {line}\n" for line in [*_PARENTS[what].splitlines(), "time.sleep(60)"]
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
    )
    assert parent.stdout is not None
    children = [int(word) for word in parent.stdout.readline().split()]
    assert children
    assert all(map(is_alive, children))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 4  # a data loader's process looks for its parent every 5 seconds by itself
    while any(map(is_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_alive, children))


@linux
@pytest.mark.parametrize("parent", ["os.getppid()", "os.getppid() + 1"])
def test_a_child_whose_parent_has_gone_ends(parent: str) -> None:
    program = f"import os; from detr_export.runtimes.orphans import end_with; end_with({parent}); print('lives')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (done.returncode, done.stdout) == ((0, "lives\n") if parent == "os.getppid()" else (1, ""))


def test_where_there_is_no_prctl(monkeypatch: pytest.MonkeyPatch) -> None:
    from detr_export.runtimes import orphans

    monkeypatch.setattr(orphans.sys, "platform", "darwin")
    orphans.end_with(-1)


def test_closing_a_worker_ends_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler, for example."""
    from detr_export.benchmarks.speed import process as module

    child = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); print('ready', flush=True); time.sleep(60)"
    monkeypatch.setattr(module, "_START", child)
    monkeypatch.setattr(module, "_GOODBYE_S", 0.05)
    process = module.WorkerProcess(1)
    assert process._process.stdout is not None
    process._process.stdout.readline()
    (sleeping,) = process._usage.children()
    process.close()
    assert not is_alive(process.pid)
    for _ in range(200):
        if not is_alive(sleeping.pid):
            return
        time.sleep(0.01)
    raise AssertionError("what it started lives on")


def test_threads_of_a_check_stop_with_it() -> None:
    """A pool that is left by an exception does not first do what waits for it."""
    from detr_export.data.checking import _in_threads
    from detr_export.runtimes.progress import SILENT

    done: list[int] = []
    lock = threading.Lock()

    def work(item: int) -> int:
        time.sleep(0.002)
        with lock:
            done.append(item)
        return item

    def interrupted(check: Callable[[], Any]) -> None:
        for result in check():
            if result == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(lambda: _in_threads(work, range(5000), SILENT))
    assert len(done) < 4000
