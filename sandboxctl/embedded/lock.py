"""A lock on a file that whoever waits for it can be interrupted at."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator

_POLL_S = 0.02


@contextlib.asynccontextmanager
async def locked_file(path: str) -> AsyncIterator[None]:
    """Be the only one who has this file locked, which is made if need be. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Again and again: a flock(2) that waits can be waited for in a thread, but nothing ends that.
        while not _lock(fd):  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(_POLL_S)
        yield
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
