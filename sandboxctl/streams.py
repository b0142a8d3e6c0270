"""Bytes between what we were given (a terminal, pipe or file) and the FIFOs of a process in a pod."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import termios
import tty
from collections.abc import Iterator

from common.readiness import wait_readable, wait_writable

_CHUNK_BYTES = 64 * 1024


async def copy(source: int, sink: int) -> None:
    """Copy until the end of `source`, or until nobody reads `sink` any more."""
    with contextlib.suppress(BrokenPipeError):
        while data := await _read(source):
            rest = memoryview(data)
            while rest:
                if _can_wait(sink):
                    await wait_writable(sink)
                with contextlib.suppress(BlockingIOError):
                    rest = rest[os.write(sink, rest) :]


async def _read(fd: int) -> bytes:
    while True:
        if _can_wait(fd):
            await wait_readable(fd)
        try:
            return os.read(fd, _CHUNK_BYTES)
        except BlockingIOError:
            continue
        except OSError as error:
            if error.errno == errno.EIO:
                return b""  # the terminal was hung up
            raise


def _can_wait(fd: int) -> bool:
    """Tell whether epoll(7) takes a descriptor: what it does not take (files, /dev/null) is always ready."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)


@contextlib.contextmanager
def raw_terminal(fd: int) -> Iterator[None]:
    """Let the terminal behind `fd` pass on every key for a while."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
