"""A connection to Ray: a cluster that is there, or one on this machine, which ends with the block."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Optional

# Ray reads these when it is imported. It tells nobody of this run, and says in an exception what it would print.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ side prints to stderr
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.data import DataContext

from detr_export.runtimes.errors import BackendError, first_line
from detr_export.runtimes.temporary import temporary_folder

ADDRESS = "RAY_ADDRESS"  # Ray's own variable
_PRINTER = "print_to_stdstream"
_LEAST_CPUS = 4
_BLOCK_BYTES = 2**20
_LONGEST = 40  # characters of a folder whose sockets have names that the system takes: 107 at most, all together


@contextmanager
def connected(address: Optional[str], cpus: int, store_bytes: Optional[int] = None) -> Iterator[None]:
    """Connects to Ray for the length of a block. A connection that this process has is used, and stays.

    Args:
        address: of a cluster, as in `ray.init`; None for a cluster of this machine alone.
        cpus: that a cluster of this machine shall have, in Ray's books.
        store_bytes: of its object store; Ray's default if None.

    Raises:
        BackendError: there is no such cluster, or none can be started.
    """
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        if ray.is_initialized():
            yield
            return
        arguments: dict[str, Any] = {"address": address}
        if address is None:
            # Each stage of a pipeline needs a CPU of Ray's for itself, or it waits for ever: with fewer than four, some do.
            arguments = {
                "address": "local",
                "num_cpus": max(_LEAST_CPUS, cpus),
                "include_dashboard": False,
                "object_store_memory": store_bytes,
            }
            if len(tempfile.gettempdir()) + len("/detr-export-") + 16 <= _LONGEST:
                arguments["_temp_dir"] = str(stack.enter_context(temporary_folder()))
        terminated = False
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with _hidden_stderr():
                ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **arguments)
        except KeyboardInterrupt:
            ray.shutdown()
            raise
        except SystemExit:  # from Ray's own handler of SIGTERM
            ray.shutdown()
            terminated = True
        except Exception as error:
            ray.shutdown()
            where = "cannot start Ray on this machine" if address is None else f"cannot connect to Ray at {address}"
            raise BackendError(f"{where}: {first_line(error):.300}") from error
        finally:
            for number, handler in handlers.items():  # Ray puts its own in the place of ours
                if handler is not None and threading.current_thread() is threading.main_thread():
                    signal.signal(number, handler)
        if terminated:
            signal.raise_signal(signal.SIGTERM)  # which ours takes
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _hidden_stderr() -> Iterator[None]:
    """Ray's C++ side tells on stderr that it got its log level. What goes wrong comes as an exception."""
    try:
        kept = os.dup(2)
    except OSError:  # stderr is closed
        yield
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _print_nothing(*_: Any, **__: Any) -> None:
    pass


@contextmanager
def _quiet() -> Iterator[None]:
    """Settings of Ray Data for the length of a block."""
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    context = DataContext.get_current()
    # Each message of the first stage is a block of its own: what waits for an actor is then spread over all of them.
    # And an error of ours comes as it is: Ray Data's own around it would only have its text.
    wanted = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "target_max_block_size": _BLOCK_BYTES,
        "raise_original_map_exception": True,
    }
    before = {name: getattr(context, name) for name in wanted}
    for name, value in wanted.items():
        setattr(context, name, value)
    # A thread of Ray's prints on stdout, where results go, that a worker was killed, and has no switch for that.
    printer = getattr(ray._private.worker, _PRINTER, None)
    try:
        setattr(ray._private.worker, _PRINTER, _print_nothing)
        yield
    finally:
        setattr(ray._private.worker, _PRINTER, printer)
        for name, value in before.items():
            setattr(context, name, value)
