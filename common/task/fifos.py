"""The FIFOs by which engines name standard streams: checked, opened, and waited for.

Engines open their ends in the background, and may get to it late. One that opened after a short process has ended
would wait for ever for a writer, so no process is made before its output has a reader (`readers_came`).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import stat
import time
from collections.abc import Sequence

from common.errors import InvalidArgument, NotFound

OUR_FAULT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Why a path cannot be opened though nothing is wrong with it."""

READER_TIMEOUT_S = 20.0
"""How long an engine is waited for: one that does not run for so long has other troubles than one command whose end
it does not see."""
_READER_INTERVAL_S = 0.005


def has_reader(writer: int) -> bool:
    """Tell whether anybody holds the read end of a pipe (poll(2), POLLERR)."""
    poll = select.poll()
    poll.register(writer, 0)
    return not poll.poll(0)


async def readers_came(writers: Sequence[int], timeout_s: float = READER_TIMEOUT_S) -> None:
    """Return when each of these write ends has a reader, or the time is over: at once, normally.

    Those that are taken out of the sequence meanwhile are not waited for.
    """
    deadline = time.monotonic() + timeout_s
    while not all(map(has_reader, writers)):
        if time.monotonic() > deadline:
            return
        await asyncio.sleep(_READER_INTERVAL_S)


def open_both_ends(path: str, owner: tuple[int, int] | None) -> tuple[int, int]:
    """Open both ends of a FIFO, which then belongs to `owner` (None: to whom it does): (read end, write end), both
    non-blocking."""
    inode = _pin_fifo(path)
    try:
        reader = reopen_end(inode, os.O_RDONLY, owner)
        try:
            return reader, reopen_end(inode, os.O_WRONLY)
        except BaseException:
            os.close(reader)
            raise
    finally:
        os.close(inode)


def open_end(path: str, mode: int, owner: tuple[int, int] | None = None) -> int:
    """Open one end of a FIFO, non-blocking, and give it to `owner`."""
    inode = _pin_fifo(path)
    try:
        return reopen_end(inode, mode, owner)
    finally:
        os.close(inode)


def open_again(fd: int) -> int:
    """Open a FIFO another time, as it is open already: a store keeps a description under its first name only."""
    return reopen_end(fd, fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE)


def reopen_end(inode: int, mode: int, owner: tuple[int, int] | None = None) -> int:
    """Open one end of a FIFO that is known by a descriptor, non-blocking, and give it to `owner`."""
    path, flags = f"/proc/self/fd/{inode}", os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, mode | flags)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        # A write end can only be opened while there is a reader (fifo(7)).
        reader = os.open(path, os.O_RDONLY | flags)
        try:
            fd = os.open(path, mode | flags)
        finally:
            os.close(reader)
    try:
        if owner is not None and owner != (0, 0):
            os.fchown(fd, *owner)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _pin_fifo(path: str) -> int:
    """Return an O_PATH descriptor of a FIFO: what is checked is what will be opened, whatever happens to the path."""
    path = path.removeprefix("fifo://")
    if "://" in path:
        scheme = path.split("://", 1)[0]
        raise InvalidArgument(
            f'standard streams of the form {scheme}:// are not supported: use FIFOs (containerd: io_type = "") or file://'
        )
    if not path.startswith("/") or "/../" in path or "\0" in path:
        raise InvalidArgument(
            f"the path of a standard stream must be absolute and without '..': {path[:200]!r}"
        )
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"the FIFO {path[:200]} of a standard stream does not exist") from None
    except OSError as error:
        if error.errno in OUR_FAULT:
            raise
        raise InvalidArgument(
            f"cannot open {path[:200]!r} for a standard stream: {error.strerror}"
        ) from error
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidArgument(f"{path[:200]} is not a FIFO: standard streams must be FIFOs or file:// URIs")
    return fd
