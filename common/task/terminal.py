"""A pseudo terminal between a container's process and the engine's FIFOs.

The OCI runtime makes the terminal inside the container and sends its master over a socket (runc,
docs/terminals.md). The event loop has the kernel copy both ways (splice(2)): a byte is in the terminal or in
the FIFO, never in this process, so none is lost when it dies. A reader that does not read stops the copying,
and so the process, but nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
from collections.abc import Callable

from common.errors import DeadlineExceeded, Internal
from common.linux.terminal import set_window_size
from common.readiness import has_input, wait_readable

_COPY_SIZE = 32 * 1024
_serial = itertools.count()


class Terminal:
    """One pseudo terminal. Owns all its descriptors; close() is idempotent.

    Life: hand `socket_path` to the runtime, `await receive_master()`, then bytes flow until the terminal hangs
    up (its last process has closed it), upon which the sink is closed and the engine sees end-of-file.
    """

    __slots__ = (
        "_copied",
        "_listener",
        "_loop",
        "_master",
        "_sink",
        "_size",
        "_source",
        "on_close",
        "on_master",
        "socket_path",
    )

    def __init__(self, directory: str, source: int, sink: int) -> None:
        """Listen for the master.

        :param source: non-blocking read end of the engine's stdin FIFO, or -1.
        :param sink: non-blocking write end of the engine's stdout FIFO, or -1 to discard the output.
        """
        self._loop = asyncio.get_running_loop()
        self._source, self._sink, self._master = source, sink, -1
        self._size: tuple[int, int] | None = None
        self._copied: asyncio.Future[None] | None = None
        self.on_master: Callable[[], None] | None = None
        """Called as soon as the master is there."""
        self.on_close: Callable[[], None] | None = None
        """Called once when everything is closed."""
        self._listener: socket.socket | None = None
        self.socket_path = ""
        if directory:
            self._listen(directory)

    @classmethod
    def recover(cls, master: int, source: int, sink: int) -> Terminal:
        """Go on with a terminal whose descriptors, which are taken over, have outlived an earlier daemon."""
        terminal = cls("", source, sink)
        terminal._begin(master)
        return terminal

    @property
    def fds(self) -> list[int]:
        """The descriptors that a later daemon would need."""
        return [fd for fd in (self._master, self._source, self._sink) if fd >= 0]

    def _listen(self, directory: str) -> None:
        self.socket_path = f"{directory}/tty{next(_serial)}.sock"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._listener.bind(self.socket_path)
            os.chmod(self.socket_path, 0o600)
            self._listener.listen(1)
        except BaseException:
            # The two streams stay the caller's until the terminal stands.
            self._source = self._sink = -1
            self.close()
            raise

    async def receive_master(self, timeout_s: float) -> None:
        """Take the master from the runtime, which has already been told where, and start copying."""
        assert self._listener is not None
        try:
            async with asyncio.timeout(timeout_s):
                await wait_readable(self._listener)
                connection, _ = self._listener.accept()
                with connection:
                    await wait_readable(connection)
                    _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
        except TimeoutError:
            raise DeadlineExceeded(f"the OCI runtime sent no terminal within {timeout_s:g} s") from None
        if not fds:
            raise Internal("the OCI runtime sent no descriptor for the terminal")
        self._stop_listening()
        os.set_inheritable(fds[0], False)
        self._begin(fds[0])
        on_master, self.on_master = self.on_master, None
        if on_master is not None:
            on_master()
        if self._size is not None:
            set_window_size(self._master, *self._size)

    def _begin(self, master: int) -> None:
        self._master = master
        os.set_blocking(master, False)
        self._loop.add_reader(self._master, self._on_output)
        if self._source >= 0:
            self._loop.add_reader(self._source, self._copy_input)

    def resize(self, width: int, height: int) -> None:
        """Set the window size, in characters; remembered if the terminal does not exist yet."""
        self._size = (width, height)
        if self._master >= 0:
            set_window_size(self._master, width, height)

    async def drained(self) -> None:
        """Return when the terminal holds no output any more: a process that has ended writes no more."""
        while self._master >= 0 and has_input(self._master):
            self._copied = self._loop.create_future()
            await self._copied

    def close(self) -> None:
        """Hang up and close everything."""
        self.on_master = None
        self._stop_listening()
        self._close_input()
        self._close_output()
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()

    def _on_output(self) -> None:
        self._copy_output()
        copied, self._copied = self._copied, None
        if copied is not None and not copied.done():
            copied.set_result(None)

    def _copy_output(self) -> None:
        if self._sink < 0:
            self._discard_output()
            return
        try:
            if os.splice(self._master, self._sink, _COPY_SIZE, flags=os.SPLICE_F_NONBLOCK):
                return
        except BlockingIOError:
            # There is something to read, so it is the engine that does not.
            self._loop.remove_reader(self._master)
            self._loop.add_writer(self._sink, self._go_on_with_output)
            return
        except BrokenPipeError:
            self._discard_output()
            return
        except OSError:
            pass  # EIO: the last process has closed the terminal
        self.close()

    def _go_on_with_output(self) -> None:
        self._loop.remove_writer(self._sink)
        self._loop.add_reader(self._master, self._on_output)

    def _discard_output(self) -> None:
        try:
            if os.read(self._master, _COPY_SIZE):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.close()

    def _copy_input(self) -> None:
        try:
            if not os.splice(self._source, self._master, _COPY_SIZE, flags=os.SPLICE_F_NONBLOCK):
                self._close_input()
        except BlockingIOError:
            # There is something to read, so it is the process that does not.
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._master, self._go_on_with_input)
        except OSError:
            self._close_input()

    def _go_on_with_input(self) -> None:
        self._loop.remove_writer(self._master)
        if self._source >= 0:
            self._loop.add_reader(self._source, self._copy_input)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.socket_path)

    def _close_input(self) -> None:
        if self._source >= 0:
            self._loop.remove_reader(self._source)
            os.close(self._source)
            self._source = -1

    def _close_output(self) -> None:
        if self._master >= 0:
            self._loop.remove_reader(self._master)
            self._loop.remove_writer(self._master)
            os.close(self._master)
            self._master = -1
        if self._sink >= 0:
            self._loop.remove_writer(self._sink)
            os.close(self._sink)
            self._sink = -1
