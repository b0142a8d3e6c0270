"""Connections that carry plain bytes: the standard streams of processes, and TCP ports of the pod.

The kernel copies input from a connection into a pipe (splice(2)), 32 KiB at most at a time; output is read and sent.
Who writes a stream counts the bytes, since the end of a connection says nothing (docs/agent-protocol.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable

from common.accepting import Acceptor
from common.errors import AlreadyExists, InvalidArgument, NotFound, ResourceExhausted, SandboxdError
from common.log import get_logger
from common.readiness import has_input, wait_writable
from common.transport.streams import receive_line
from vmm.protocol import ACCEPTED, OPENING_LIMIT_BYTES, WRITE_LIMIT_BYTES, parse_opening

_UNCLAIMED_LIMIT = 256
_OPENING_TIMEOUT_S = 5.0
_COPIES_PER_WAKEUP = 8
_CLOSED = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN})
_PORT_ADDRESSES = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))

Ended = Callable[[str, int], None]
"""Called with the id of an output stream and the number of bytes in it, when all of them are in the connection."""

log = get_logger()


class Streams:
    """All streams of a guest by id: opened by the host, claimed by a process, ended by a count."""

    __slots__ = ("_acceptor", "_inputs", "_lengths", "_loop", "_on_end", "_opening", "_unclaimed")

    def __init__(self, on_end: Ended) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_end = on_end
        self._acceptor: Acceptor | None = None
        self._opening: set[asyncio.Task[None]] = set()
        self._unclaimed: dict[str, socket.socket] = {}
        self._inputs: dict[str, InputStream] = {}
        self._lengths: dict[str, int] = {}

    def listen(self, listener: socket.socket) -> None:
        """Take connections from a listening socket, which this owns from now on."""
        self._acceptor = Acceptor(listener, self._accept)

    def claim_input(self, stream_id: str) -> tuple[int, InputStream]:
        """Return the read end of a pipe into which a stream flows.

        :raise NotFound: the host has opened no such stream.
        """
        sock = self._claim(stream_id)
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        stream = InputStream(sock, writer, lambda: self._inputs.pop(stream_id, None))
        self._inputs[stream_id] = stream
        if stream_id in self._lengths:
            stream.end(self._lengths.pop(stream_id))
        return reader, stream

    def claim_output(self, stream_id: str) -> tuple[int, OutputStream]:
        """Return the write end of a pipe that flows into a stream.

        :raise NotFound: the host has opened no such stream.
        """
        sock = self._claim(stream_id)
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        return writer, OutputStream(sock, reader, lambda length: self._on_end(stream_id, length))

    def end(self, stream_id: str, length: int) -> None:
        """A stream from the host ends after so many bytes, perhaps before a process has claimed it.

        :raise NotFound: there is no such stream.
        :raise InvalidArgument: more has already come.
        """
        stream = self._inputs.get(stream_id)
        if stream is not None:
            stream.end(length)
        elif stream_id in self._unclaimed:
            self._lengths[stream_id] = length
        else:
            raise NotFound(f"there is no stream {stream_id} from the host, or its process has ended")

    def close(self) -> None:
        """Close the listener and what nobody has claimed."""
        if self._acceptor is not None:
            self._acceptor.close()
        for task in self._opening:
            task.cancel()
        for sock in self._unclaimed.values():
            sock.close()
        self._unclaimed.clear()

    def _claim(self, stream_id: str) -> socket.socket:
        try:
            return self._unclaimed.pop(stream_id)
        except KeyError:
            raise NotFound(f"the host has opened no stream {stream_id}") from None

    def _accept(self, sock: socket.socket) -> None:
        task = self._loop.create_task(self._open(sock))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, sock: socket.socket) -> None:
        try:
            async with asyncio.timeout(_OPENING_TIMEOUT_S):
                wanted = parse_opening(await receive_line(sock, OPENING_LIMIT_BYTES))
                if isinstance(wanted, int):
                    target = await _connect_port(wanted)
                    sock.send(ACCEPTED)
                    Relay(sock, target)
                else:
                    self._keep(wanted, sock)
                    sock.send(ACCEPTED)
        except SandboxdError as error:
            with contextlib.suppress(OSError):
                sock.send(f"ERROR {error}"[: OPENING_LIMIT_BYTES - 2].encode("ascii", "replace") + b"\n")
            sock.close()
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError):
                raise

    def _keep(self, stream_id: str, sock: socket.socket) -> None:
        if stream_id in self._unclaimed or stream_id in self._inputs:
            raise AlreadyExists(f"stream {stream_id} is open already")
        if len(self._unclaimed) >= _UNCLAIMED_LIMIT:
            self._drop_abandoned()
        if len(self._unclaimed) >= _UNCLAIMED_LIMIT:
            raise ResourceExhausted(f"{_UNCLAIMED_LIMIT} streams wait for a process")
        self._unclaimed[stream_id] = sock

    def _drop_abandoned(self) -> None:
        for stream_id, sock in list(self._unclaimed.items()):
            if is_closed(sock):
                self._unclaimed.pop(stream_id).close()
                self._lengths.pop(stream_id, None)


class InputStream:
    """A connection that flows into a pipe."""

    __slots__ = ("_copied", "_length", "_loop", "_on_close", "_sock", "_writer")

    def __init__(self, sock: socket.socket, writer: int, on_close: Callable[[], object]) -> None:
        """Takes over both; `on_close` is called when they are closed."""
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._writer = writer
        self._on_close = on_close
        self._copied = 0
        self._length: int | None = None
        self._loop.add_reader(sock, self._copy)

    def end(self, length: int) -> None:
        """The stream ends after so many bytes.

        :raise InvalidArgument: more has already come.
        """
        if length < self._copied:
            raise InvalidArgument(f"a stream cannot end after {length} bytes: {self._copied} have come")
        self._length = length
        if length == self._copied:
            self.close()

    def close(self) -> None:
        """Let the reader of the pipe see its end, and drop the connection. Idempotent."""
        if self._writer < 0:
            return
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._writer)
        os.close(self._writer)
        self._writer = -1
        self._sock.close()
        self._on_close()

    def _copy(self) -> None:
        for _ in range(_COPIES_PER_WAKEUP):
            size = WRITE_LIMIT_BYTES if self._length is None else self._length - self._copied
            try:
                copied = os.splice(
                    self._sock.fileno(),
                    self._writer,
                    min(size, WRITE_LIMIT_BYTES),
                    flags=os.SPLICE_F_NONBLOCK,
                )
            except BlockingIOError:
                if has_input(self._sock.fileno()):
                    # It is the process that does not read.
                    self._loop.remove_reader(self._sock)
                    self._loop.add_writer(self._writer, self._go_on)
                return
            except BrokenPipeError:
                self.close()
                return
            except OSError:
                copied = 0
            if not copied:
                # Lost before its end: what has come is not all, so the process must not take it for that.
                self._loop.remove_reader(self._sock)
                return
            self._copied += copied
            if self._copied == self._length:
                self.close()
                return

    def _go_on(self) -> None:
        self._loop.remove_writer(self._writer)
        self._loop.add_reader(self._sock, self._copy)


class OutputStream:
    """A pipe that flows into a connection, until its last writer is gone; then it is the host's turn to close."""

    __slots__ = ("_copied", "_idle", "_loop", "_on_end", "_reader", "_sock", "_unsent")

    def __init__(self, sock: socket.socket, reader: int, on_end: Callable[[int], None]) -> None:
        """Takes over both; `on_end` is told how many bytes the stream has, once all of them are in the connection."""
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = sock
        self._reader = reader
        self._on_end = on_end
        self._copied = 0
        # What a full connection did not take; whoever waits for it to take more does not look at the pipe.
        self._unsent = b""
        self._idle: asyncio.Future[None] | None = None
        self._loop.add_reader(reader, self._copy)

    @property
    def is_behind(self) -> bool:
        """Whether something has still to be sent, or the end to be told."""
        return self._reader >= 0 and (bool(self._unsent) or has_input(self._reader))

    async def pass_on(self) -> None:
        """Return when what was in the pipe is in the connection."""
        if self._reader >= 0 and not self._unsent:
            self._copy()
        while self.is_behind:
            self._idle = self._loop.create_future()
            await self._idle

    def _copy(self) -> None:
        for _ in range(_COPIES_PER_WAKEUP):
            if not self._copy_some():
                break
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _copy_some(self) -> bool:
        """Tell whether more may go at once; if not, the loop looks at what has to change first."""
        sent = 0
        try:
            if not self._unsent:
                # Kernels before 6.5 splice each page into a packet of its own, for each of which the host is woken.
                self._unsent = os.read(self._reader, WRITE_LIMIT_BYTES)
                if not self._unsent:
                    self._end()
                    return False
            sent = len(self._unsent) if self._sock is None else self._sock.send(self._unsent)
        except BlockingIOError:
            if not self._unsent:
                return False
        except OSError as error:
            # The host has closed it: what still comes is thrown away, and the process goes on.
            if error.errno not in _CLOSED:
                log.warning("stream.lost", error=error)
            self._close_connection()
            return False
        self._copied += sent
        self._unsent = self._unsent[sent:]
        if self._sock is not None and self._unsent:
            self._loop.remove_reader(self._reader)
            self._loop.add_writer(self._sock, self._go_on)
        return not self._unsent

    def _go_on(self) -> None:
        if self._sock is not None:
            self._loop.remove_writer(self._sock)
        self._loop.add_reader(self._reader, self._copy)
        self._copy()

    def _end(self) -> None:
        self._loop.remove_reader(self._reader)
        os.close(self._reader)
        self._reader = -1
        if self._sock is not None:
            self._loop.add_reader(self._sock, self._on_readable)
            self._on_end(self._copied)

    def _on_readable(self) -> None:
        # Nothing is to be read on an output stream but its end.
        self._close_connection()

    def _close_connection(self) -> None:
        self._unsent = b""
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()
            self._sock = None


class Relay:
    """Two connections, each of which flows into the other, until one ends."""

    __slots__ = ("_a", "_b", "_directions", "_loop")

    def __init__(self, a: socket.socket, b: socket.socket) -> None:
        """Takes over both."""
        self._loop = asyncio.get_running_loop()
        self._a, self._b = a, b
        self._directions = (_Direction(self, a, b), _Direction(self, b, a))

    def close(self) -> None:
        """Close both connections. Idempotent."""
        for direction in self._directions:
            direction.stop()
        self._a.close()
        self._b.close()


class _Direction:
    __slots__ = ("_loop", "_pending", "_relay", "_source", "_target")

    def __init__(self, relay: Relay, source: socket.socket, target: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._relay = relay
        self._source, self._target = source, target
        self._pending = b""
        self._loop.add_reader(source, self._copy)

    def stop(self) -> None:
        if self._source.fileno() >= 0:
            self._loop.remove_reader(self._source)
        if self._target.fileno() >= 0:
            self._loop.remove_writer(self._target)

    def _copy(self) -> None:
        try:
            if not self._pending:
                self._pending = self._source.recv(WRITE_LIMIT_BYTES)
            if not self._pending:
                self._relay.close()
                return
            self._pending = self._pending[self._target.send(self._pending) :]
        except BlockingIOError:
            pass
        except OSError:
            self._relay.close()
            return
        if self._pending:
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._target, self._go_on)

    def _go_on(self) -> None:
        self._loop.remove_writer(self._target)
        self._loop.add_reader(self._source, self._copy)
        self._copy()


async def _connect_port(port: int) -> socket.socket:
    error = 0
    for family, address in _PORT_ADDRESSES:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect_ex((address, port))
            await wait_writable(sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        except BaseException:
            sock.close()
            raise
        if not error:
            return sock
        sock.close()
    raise NotFound(f"port {port} of the pod: {os.strerror(error)}")


def is_closed(sock: socket.socket) -> bool:
    """Tell whether the peer has closed a connection of which nothing is left to read."""
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
