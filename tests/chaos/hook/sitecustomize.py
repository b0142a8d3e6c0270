"""Loaded by the Pythons of a chaos trial as they start: lets the next daemon wait, or pass armed failpoints.

    $CHAOS_DIRECTORY/hold       while it exists, no daemon gets further than this
    $CHAOS_DIRECTORY/arm        its text becomes SANDBOXD_FAILPOINTS of the one daemon that takes it, when it
                                starts or is sent SIGUSR1; then the file is gone
    $CHAOS_DIRECTORY/starts     gets a line for each daemon that has started

The supervisor is a Python too, and not meant.
"""

import contextlib
import os
import signal
import sys
import time
from types import FrameType

_directory = os.environ.get("CHAOS_DIRECTORY", "")
if _directory and "--config" in sys.orig_argv and "--supervise" not in sys.orig_argv:
    while os.path.exists(f"{_directory}/hold"):
        time.sleep(0.01)

    def _take() -> None:
        with contextlib.suppress(FileNotFoundError), open(f"{_directory}/arm", encoding="ascii") as file:
            os.environ["SANDBOXD_FAILPOINTS"] = file.read()

    def _arm(_number: int, _frame: FrameType | None) -> None:
        from common import failpoints

        _take()
        failpoints.arm()
        os.unlink(f"{_directory}/arm")

    signal.signal(signal.SIGUSR1, _arm)
    _take()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{_directory}/arm")
    with open(f"{_directory}/starts", "a", encoding="ascii") as _file:
        _file.write(f"{os.getpid()}\n")
