"""A process's standard streams between the engine's FIFOs and the guest: carried by the kernel (splice(2)).

A byte is in a FIFO or in a socket, never in this process, so none is lost when it dies; whoever does not read stops
the carrying, and so the writer, but nobody else. A stream ends by a count of bytes, which its writer tells
(docs/agent-protocol.md): the end of a connection is not the end of the data.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from common.descriptors.kinds import is_readable, link_of
from common.descriptors.store import DescriptorStore, all_sent
from common.errors import InvalidArgument, SandboxdError
from common.log import get_logger
from common.task.stdio import StdioSpec, open_fifo
from vmm.guest.client import GuestClient
from vmm.protocol import WRITE_LIMIT_BYTES, stream_uri

STREAM_GROUP = "v"
_OPEN_TIMEOUT_S = 10.0
_END_TIMEOUT_S = 10.0
_COPY_BYTES = 1 << 20
_QUIET_S = 0.3
_UNKNOWN = -1

log = get_logger()


class StreamNames(NamedTuple):
    """The ids of a process's streams, which are their names in the descriptor store, too; "" where it has none."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""

    @classmethod
    def new(cls, spec: StdioSpec, store: DescriptorStore) -> StreamNames:
        """Return names that no stream has had. Engines may name a FIFO for stderr of a terminal, which has none."""
        wanted = (spec.stdin, spec.stdout, "" if spec.terminal else spec.stderr)
        return cls(*(store.new_name(STREAM_GROUP) if path else "" for path in wanted))

    def uris(self) -> tuple[str, str, str]:
        """Return the strings by which a Create or Exec tells the agent."""
        stdin, stdout, stderr = (stream_uri(name) if name else "" for name in self)
        return stdin, stdout, stderr


class OutputStream:
    """From a guest's socket into a FIFO. Owns its descriptors."""

    __slots__ = ("_fifo", "_hold", "_length", "_loop", "_on_end", "_quiet", "_sock", "_taken")

    def __init__(self, sock: socket.socket, hold: int, fifo: int, on_end: Callable[[], None]) -> None:
        """:param hold: a read end, so that an engine that restarts does not break the pipe. :param fifo: the write end.
        :param on_end: called once when all is carried, or never will be.
        """
        self._loop = asyncio.get_running_loop()
        self._sock, self._hold, self._fifo, self._on_end = sock, hold, fifo, on_end
        self._taken = 0
        self._length = _UNKNOWN
        self._quiet: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock, self._carry)

    def forget_count(self) -> None:
        """Of a stream that an earlier daemon has carried nobody knows how far it came."""
        self._taken = _UNKNOWN

    def end_after(self, length: int) -> None:
        """The guest says how much it has written in all."""
        if self._sock.fileno() < 0:
            return
        self._length = length
        if self._taken == _UNKNOWN:
            self._end_when_quiet()
        elif self._taken >= length:
            self.close()

    def close(self) -> None:
        """End it: the engine sees end-of-file. Idempotent."""
        if self._sock.fileno() < 0:
            return
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._fifo)
        if self._quiet is not None:
            self._quiet.cancel()
        self._sock.close()
        os.close(self._fifo)
        os.close(self._hold)
        self._on_end()

    def _carry(self) -> None:
        try:
            moved = os.splice(self._sock.fileno(), self._fifo, _COPY_BYTES, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            # There is something to read, so it is the engine that does not.
            self._loop.remove_reader(self._sock)
            self._loop.add_writer(self._fifo, self._go_on)
            return
        except OSError:
            self.close()
            return
        if not moved:
            self.close()
        elif self._taken == _UNKNOWN:
            if self._length != _UNKNOWN:
                self._end_when_quiet()
        else:
            self._taken += moved
            if self._length != _UNKNOWN and self._taken >= self._length:
                self.close()

    def _go_on(self) -> None:
        self._loop.remove_writer(self._fifo)
        self._loop.add_reader(self._sock, self._carry)

    def _end_when_quiet(self) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
        self._quiet = self._loop.call_later(_QUIET_S, self.close)


class InputStream:
    """From a FIFO into a guest's socket. Owns its descriptors."""

    __slots__ = ("_end", "_fifo", "_hold", "_loop", "_on_end", "_sent", "_sock")

    def __init__(
        self,
        sock: socket.socket,
        fifo: int,
        hold: int,
        end: Callable[[int], Awaitable[None]],
        on_end: Callable[[], None],
    ) -> None:
        """:param hold: a write end, so that a client that detaches does not end the input. :param fifo: the read end.
        :param end: tells the guest after how many bytes its stream ends.
        """
        self._loop = asyncio.get_running_loop()
        self._sock, self._fifo, self._hold, self._end, self._on_end = sock, fifo, hold, end, on_end
        self._sent = 0
        self._loop.add_reader(fifo, self._carry)
        # The agent closes it when nobody reads it any more, and writes nothing.
        self._loop.add_reader(sock, self.close)

    def finish(self) -> None:
        """Let it end when the engine's writers have closed the FIFO and all is carried. Idempotent."""
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1

    def close(self) -> None:
        """Drop it. Idempotent."""
        if self._sock.fileno() < 0:
            return
        self._stop_reading()
        self.finish()
        self._loop.remove_writer(self._sock)
        self._loop.remove_reader(self._sock)
        self._sock.close()
        self._on_end()

    def _stop_reading(self) -> None:
        if self._fifo >= 0:
            self._loop.remove_reader(self._fifo)
            os.close(self._fifo)
            self._fifo = -1

    def _carry(self) -> None:
        try:
            moved = os.splice(self._fifo, self._sock.fileno(), WRITE_LIMIT_BYTES, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            # There is something to read, so it is the guest that does not.
            self._loop.remove_reader(self._fifo)
            self._loop.add_writer(self._sock, self._go_on)
            return
        except OSError:
            self.close()
            return
        if moved:
            self._sent += moved
            return
        self._stop_reading()
        self.finish()
        self._loop.create_task(self._tell_end())

    def _go_on(self) -> None:
        self._loop.remove_writer(self._sock)
        if self._fifo >= 0:
            self._loop.add_reader(self._fifo, self._carry)

    async def _tell_end(self) -> None:
        try:
            await self._end(self._sent)
        except SandboxdError as error:
            log.warning("stream.end_not_told", error=error)
            self.close()


class Streams:
    """The streams of one process. Their descriptors are kept for a later daemon, each stream under its name."""

    __slots__ = ("_guest", "_names", "_outputs", "_stdin", "_store")

    def __init__(self, names: StreamNames, guest: GuestClient, store: DescriptorStore) -> None:
        self._names = names
        self._guest = guest
        self._store = store
        self._stdin: InputStream | None = None
        self._outputs: dict[str, OutputStream] = {}

    async def open(self, spec: StdioSpec) -> None:
        """Open the FIFOs, and a stream of the guest for each; all or nothing.

        :raise InvalidArgument, NotFound: a path is not a FIFO, or there is none.
        :raise Unavailable, DeadlineExceeded: the guest does not answer.
        """
        paths = (spec.stdin, spec.stdout, spec.stderr)
        try:
            for name, path in zip(self._names, paths, strict=True):
                if name:
                    await self._open(name, path)
            # The guest is told of them next, and must find them whichever daemon there is then.
            await all_sent(self._store)
        except BaseException:
            self.close()
            raise

    def recover(self) -> bool:
        """Go on with what an earlier daemon has kept of them; tell whether anything of them is there no more.

        What is only half there stays kept, lest the engine sees an end of it, until `forget`.
        """
        complete = True
        for name in filter(None, self._names):
            kept = self._store.take(name)
            sockets = [fd for fd in kept if link_of(fd).startswith("socket:")]
            fifos = [fd for fd in kept if fd not in sockets]
            if len(sockets) != 1 or not fifos:
                complete = False
                for fd in kept:
                    os.close(fd)
                continue
            readers = [fd for fd in fifos if is_readable(fd)]
            writers = [fd for fd in fifos if not is_readable(fd)]
            self._carry(name, socket.socket(fileno=sockets[0]), readers[0], writers[0] if writers else -1)
            if name in self._outputs:
                self._outputs[name].forget_count()
        return complete

    def forget(self) -> None:
        """Keep nothing of them any more."""
        self.close()
        for name in filter(None, self._names):
            self._store.remove(name)

    def close_stdin(self) -> None:
        """Let the process read end-of-file after what the engine has written."""
        if self._stdin is not None:
            self._stdin.finish()

    def has_output(self, name: str) -> bool:
        """Tell whether an output of this name is being carried."""
        return name in self._outputs

    def end_output(self, name: str, length: int) -> None:
        """The guest says how much it has written to a stream in all; harmless if it is not one of these."""
        stream = self._outputs.get(name)
        if stream is not None:
            stream.end_after(length)

    def drain(self) -> None:
        """The guest is gone: what it has sent is still carried, and then the engine sees the end."""
        if self._stdin is not None:
            self._stdin.close()
        for stream in list(self._outputs.values()):
            stream.forget_count()
            stream.end_after(0)

    def close(self) -> None:
        """Close everything. Idempotent."""
        if self._stdin is not None:
            self._stdin.close()
        for stream in list(self._outputs.values()):
            stream.close()

    async def _open(self, name: str, path: str) -> None:
        if path.startswith("file://"):
            raise InvalidArgument(
                f"streams of containers in a virtual machine must be FIFOs, not {path[:200]}"
            )
        reader, writer = open_fifo(path, None)
        # At once: an engine that once saw the end of an output does not read on.
        self._store.put(name, [reader, writer])
        try:
            sock = await self._guest.open_stream(name, _OPEN_TIMEOUT_S)
        except BaseException:
            self._store.remove(name)
            os.close(reader)
            os.close(writer)
            raise
        self._carry(name, sock, reader, writer)
        self._store.put(name, [sock.fileno()])

    def _carry(self, name: str, sock: socket.socket, reader: int, writer: int) -> None:
        sock.setblocking(False)

        def forget() -> None:
            self._outputs.pop(name, None)
            self._store.remove(name)

        if name == self._names.stdin:
            guest = self._guest

            async def end(length: int) -> None:
                await guest.end_stream(name, length, _END_TIMEOUT_S)

            self._stdin = InputStream(sock, reader, writer, end, forget)
        else:
            self._outputs[name] = OutputStream(sock, reader, writer, forget)
