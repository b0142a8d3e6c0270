"""One process at a time owns a state directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from common.errors import FailedPrecondition

LOCK_FILE = ".lock"
_PID_BYTES = 12
# Whoever looks whether a daemon runs (`sandboxctl`) has the lock, too, for some microseconds.
_LOOK_LIMIT_S = 0.2
# What holds a dead daemon's FIFOs (`common.linux.fd_holder`) lets go of its lock as soon as it gets a processor.
_RELEASE_LIMIT_S = 5.0
_INTERVAL_S = 0.005


@contextlib.contextmanager
def owning(state_dir: str) -> Iterator[None]:
    """Own a state directory for a while; the lock's file names the pid that does, or was the last to.

    :raise FailedPrecondition: another process owns it.
    """
    fd = os.open(f"{state_dir}/{LOCK_FILE}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with open(fd, "rb", buffering=0):
        if not _lock(fd):
            raise FailedPrecondition(
                f"{state_dir} is served by another sandboxd, pid {_owner(fd)}: stop that one first"
            )
        with contextlib.suppress(OSError):  # without room it is held all the same
            # Over what is there, for which there is room, and never empty in between.
            os.pwrite(fd, f"{os.getpid()}\n".encode().ljust(_PID_BYTES), 0)
            os.ftruncate(fd, _PID_BYTES)
        yield


def _lock(fd: int) -> bool:
    started = time.monotonic()
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        limit_s = _LOOK_LIMIT_S if os.path.exists(f"/proc/{_owner(fd)}") else _RELEASE_LIMIT_S
        if time.monotonic() - started > limit_s:
            return False
        time.sleep(_INTERVAL_S)


def _owner(fd: int) -> str:
    return os.pread(fd, _PID_BYTES, 0).decode("ascii", "replace").strip() or "unknown"
