"""What a process is to its parent and to its descendants (prctl(2)).

Apart from `_libc`, and without `typing`: the supervisor loads it, whose memory is spent on every node.
"""

from __future__ import annotations

import ctypes
import os

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def set_child_subreaper(enabled: bool = True) -> None:
    """Make this process the parent of its orphaned descendants, or not (PR_SET_CHILD_SUBREAPER)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, int(enabled))


def set_parent_death_signal(signum: int) -> None:
    """Let the kernel send this signal to us when our parent dies; it survives an exec (PR_SET_PDEATHSIG).

    A parent that is dead already sends nothing: look at `os.getppid()` afterwards.
    """
    _prctl(_PR_SET_PDEATHSIG, signum)


def _prctl(option: int, value: int) -> None:
    # Loaded for each of the few calls: a cache would need what a supervisor does without.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
