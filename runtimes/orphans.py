"""Processes that this one starts end with it, even when it is killed and can end nothing itself.

A process calls `end_with` first of all. It works on Linux; elsewhere a child ends when it next reads from its parent.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def end_with(parent: int) -> None:
    """Lets the system kill this process when its parent's thread that started it has ended.

    Args:
        parent: the process id of the parent, from the parent: it may have ended by now.
    """
    if sys.platform != "linux":
        return
    try:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (OSError, AttributeError):  # a C library without it
        return
    if os.getppid() != parent:
        os._exit(1)
