"""A pseudo terminal between a container's process and the engine's FIFOs.

The OCI runtime makes the terminal inside the container and sends its master over a socket (runc,
docs/terminals.md). The daemon copies bytes both ways in the event loop, with one pending buffer a
direction: a reader that does not read stops the copying, and so the process, but nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket

from common.errors import DeadlineExceeded, Internal
from common.linux.terminal import set_window_size

_COPY_SIZE = 32 * 1024
_serial = itertools.count()


class Terminal:
    """One pseudo terminal. Owns all its descriptors; close() is idempotent.

    Life: hand `socket_path` to the runtime, `await receive_master()`, then bytes flow until the terminal hangs
    up (its last process has closed it), upon which the sink is closed and the engine sees end-of-file.
    """

    __slots__ = (
        "_listener",
        "_loop",
        "_master",
        "_sink",
        "_size",
        "_source",
        "_to_master",
        "_to_sink",
        "socket_path",
    )

    def __init__(self, directory: str, source: int, sink: int) -> None:
        """Listen for the master.

        :param source: non-blocking read end of the engine's stdin FIFO, or -1.
        :param sink: non-blocking write end of the engine's stdout FIFO, or -1 to discard the output.
        """
        self._loop = asyncio.get_running_loop()
        self._source, self._sink, self._master = source, sink, -1
        self._to_master, self._to_sink = b"", b""
        self._size: tuple[int, int] | None = None
        self.socket_path = f"{directory}/tty{next(_serial)}.sock"
        self._listener: socket.socket | None = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK
        )
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
                connection, _ = await self._loop.sock_accept(self._listener)
                with connection:
                    await self._wait_readable(connection)
                    _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
        except TimeoutError:
            raise DeadlineExceeded(f"the OCI runtime sent no terminal within {timeout_s:g} s") from None
        if not fds:
            raise Internal("the OCI runtime sent no descriptor for the terminal")
        self._stop_listening()
        self._master = fds[0]
        os.set_inheritable(self._master, False)
        os.set_blocking(self._master, False)
        if self._size is not None:
            set_window_size(self._master, *self._size)
        self._loop.add_reader(self._master, self._copy_output)
        if self._source >= 0:
            self._loop.add_reader(self._source, self._copy_input)

    def resize(self, width: int, height: int) -> None:
        """Set the window size, in characters; remembered if the terminal does not exist yet."""
        self._size = (width, height)
        if self._master >= 0:
            set_window_size(self._master, width, height)

    def close(self) -> None:
        """Hang up and close everything."""
        self._stop_listening()
        self._close_input()
        self._close_output()

    def _copy_output(self) -> None:
        try:
            data = os.read(self._master, _COPY_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # EIO: the last process has closed the terminal
        if not data:
            # Hung up: the output is complete, since reading stops while anything is pending for the sink.
            self.close()
        elif self._sink >= 0:
            self._to_sink = data
            self._loop.remove_reader(self._master)
            self._write_sink()

    def _write_sink(self) -> None:
        try:
            written = os.write(self._sink, self._to_sink)
        except BlockingIOError:
            written = 0
        except OSError:
            written = len(self._to_sink)
        self._to_sink = self._to_sink[written:]
        if self._to_sink:
            self._loop.add_writer(self._sink, self._write_sink)
            return
        self._loop.remove_writer(self._sink)
        if self._master >= 0:
            self._loop.add_reader(self._master, self._copy_output)

    def _copy_input(self) -> None:
        try:
            data = os.read(self._source, _COPY_SIZE)
        except BlockingIOError:
            return
        if not data:
            self._close_input()
            return
        self._to_master = data
        self._loop.remove_reader(self._source)
        self._write_master()

    def _write_master(self) -> None:
        try:
            written = os.write(self._master, self._to_master)
        except BlockingIOError:
            written = 0
        except OSError:
            self._to_master = b""
            self._close_input()
            return
        self._to_master = self._to_master[written:]
        if self._to_master:
            self._loop.add_writer(self._master, self._write_master)
            return
        self._loop.remove_writer(self._master)
        if self._source >= 0:
            self._loop.add_reader(self._source, self._copy_input)

    async def _wait_readable(self, connection: socket.socket) -> None:
        readable = asyncio.Event()
        self._loop.add_reader(connection, readable.set)
        try:
            await readable.wait()
        finally:
            self._loop.remove_reader(connection)

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
