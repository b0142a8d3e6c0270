"""Loaded by the Pythons of a chaos trial as they start: lets the next daemon wait, or pass armed failpoints.

    $CHAOS_DIRECTORY/hold       while it exists, no daemon gets further than this
    $CHAOS_DIRECTORY/arm        its text becomes SANDBOXD_FAILPOINTS of the one daemon that takes it
    $CHAOS_DIRECTORY/starts     gets a line for each daemon that has started

The supervisor is a Python too, and not meant.
"""

import contextlib
import os
import sys
import time

_directory = os.environ.get("CHAOS_DIRECTORY", "")
if _directory and "--config" in sys.orig_argv and "--supervise" not in sys.orig_argv:
    while os.path.exists(f"{_directory}/hold"):
        time.sleep(0.01)
    _armed = ""
    with contextlib.suppress(FileNotFoundError):
        os.rename(f"{_directory}/arm", f"{_directory}/armed")
        with open(f"{_directory}/armed", encoding="ascii") as _file:
            _armed = os.environ["SANDBOXD_FAILPOINTS"] = _file.read()
    with open(f"{_directory}/starts", "a", encoding="ascii") as _file:
        _file.write(f"{os.getpid()} {_armed}\n")
