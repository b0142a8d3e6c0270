"""Bytes between what we were given (a terminal, pipe or file) and the FIFOs of a process in a pod."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import termios
import tty
from collections.abc import Iterator

from common.errors import SandboxdError
from common.readiness import wait_readable, wait_writable
from sandboxctl.tasks import Process

_CHUNK_BYTES = 64 * 1024
_REST_LIMIT_S = 5.0
"""How long the end of the output is waited for once the process has ended: what it has left running may hold it."""
_REST_LIMIT_BYTES = 16 * 1024 * 1024


class Output:
    """Carries what a process writes to where somebody looks, no faster than that one reads, and to a log.

    Needs a running loop. Who looks may look away: then the log gets the rest.
    """

    def __init__(self, source: int, sink: int, *, log: int | None = None, prefix: bytes = b"") -> None:
        """Begin.

        :param source: a FIFO that has a writer; it is ours from now on, and so is `log`. `sink` is not.
        :param prefix: what each line begins with where somebody looks.
        """
        self._source, self._sink, self._log = source, _reopened(sink), log
        self._prefix, self._at_line_start = prefix, True
        self._has_ended = False
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._chunks: asyncio.Queue[bytes] = asyncio.Queue()
        self._collecting = asyncio.ensure_future(self._collect())
        self._delivering = asyncio.ensure_future(self._deliver())
        # Callbacks, since a task that is cancelled early runs nothing of its own.
        self._collecting.add_done_callback(self._on_collected)
        self._delivering.add_done_callback(lambda _: os.close(self._sink))

    async def finish(self) -> None:
        """Wait until all is delivered, or `close` is called: the process has ended.

        The log is finished first, however slow a reader is.
        """
        self._has_ended = True
        self._has_room.set()
        await asyncio.wait([self._collecting], timeout=_REST_LIMIT_S)
        self._collecting.cancel()
        await asyncio.wait([self._delivering])

    def close(self) -> None:
        """Carry no more. Idempotent."""
        self._collecting.cancel()
        self._delivering.cancel()

    async def _collect(self) -> None:
        rest_bytes = _REST_LIMIT_BYTES
        while rest_bytes > 0:
            await self._has_room.wait()
            data = await _read(self._source)
            if not data:
                return
            if self._log is not None:
                # A log that cannot be written, for want of space, stops neither the container nor the output.
                with contextlib.suppress(OSError):
                    _write_file(self._log, data)
            self._chunks.put_nowait(data)
            if self._has_ended:
                rest_bytes -= len(data)
            else:
                self._has_room.clear()

    def _on_collected(self, _: asyncio.Future[None]) -> None:
        self._chunks.put_nowait(b"")
        os.close(self._source)
        if self._log is not None:
            os.close(self._log)

    async def _deliver(self) -> None:
        is_wanted = True
        while data := await self._chunks.get():
            if is_wanted:
                try:
                    await _write(self._sink, self._prefixed(data))
                except OSError:
                    is_wanted = False
            self._has_room.set()

    def _prefixed(self, data: bytes) -> bytes:
        if not self._prefix:
            return data
        lines = data.splitlines(keepends=True)
        first = self._prefix if self._at_line_start else b""
        self._at_line_start = data.endswith(b"\n")
        return first + self._prefix.join(lines)


class InputFifo:
    """The write end of a FIFO for a process that may not have begun to read, or may have ended."""

    def __init__(self, path: str) -> None:
        """Make the FIFO. Raises OSError."""
        os.mkfifo(path, 0o600)
        # For reading too: without a reader it cannot be opened for writing.
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def take(self) -> int:
        """Return the write end, which the caller closes; only the process reads now."""
        fd = os.open(f"/proc/self/fd/{self._fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.close()
        return fd

    def close(self) -> None:
        """Let go of it. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


async def feed(process: Process, sink: int) -> None:
    """Pass our input on to its end, or to that of the process, and close `sink`."""
    try:
        with contextlib.suppress(OSError):  # the process reads no more, or our input cannot be read
            while data := await _read(0):
                await _write(sink, data)
    finally:
        os.close(sink)
    with contextlib.suppress(SandboxdError):  # the process has ended meanwhile
        await process.close_stdin()


async def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        if _can_wait(fd):
            await wait_writable(fd)
        with contextlib.suppress(BlockingIOError):
            rest = rest[os.write(fd, rest) :]


def _write_file(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _reopened(sink: int) -> int:
    """Return a descriptor of our own, one that does not block where that is possible without others' noticing."""
    if _can_wait(sink):
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        # A socket cannot be opened, nor a pipe that nobody reads.
        with contextlib.suppress(OSError):
            return os.open(f"/proc/self/fd/{sink}", flags)
    return os.dup(sink)


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
