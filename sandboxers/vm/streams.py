"""A process's standard streams between the engine's FIFOs and the guest: carried by the kernel (splice(2)).

A byte is in a FIFO, a socket or a file in memory, never in this process alone, so none is lost when it dies; whoever
does not read stops the carrying, and so the writer, but nobody else. A stream ends by a count of bytes, which its
writer tells (docs/agent-protocol.md): the end of a connection is not the end of the data. The kernel counts them, so
that a later daemon knows the count.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

from common.descriptors.kinds import is_readable, link_of
from common.descriptors.store import DescriptorStore, all_sent
from common.errors import InvalidArgument, SandboxdError
from common.failpoints import Failpoint, failpoint
from common.linux.spool import Spool
from common.log import get_logger
from common.readiness import has_input
from common.task.fifos import open_both_ends, open_end, readers_came, reopen_end
from common.task.stdio import StdioSpec
from common.transport.counts import MODULUS, ReadCount
from vmm.guest.client import GuestClient
from vmm.protocol import WRITE_LIMIT_BYTES, stream_uri

STREAM_GROUP = "v"
_HOLD_GROUP = "h"
_OPEN_TIMEOUT_S = 10.0
_END_TIMEOUT_S = 10.0
_COPY_BYTES = 1 << 20

# How many bytes are still to come, where that is no number.
_UNKNOWN = -1
_WHAT_IS_THERE = -2

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


class InputListener(NamedTuple):
    """Who is told of an input: `on_finish` when it needs no write end any more, `end` with the count of its bytes when
    all are sent, which the guest is to hear, `on_end` when it is closed.
    """

    on_finish: Callable[[], None]
    end: Callable[[int], Awaitable[None]]
    on_end: Callable[[], None]


class OutputStream:
    """From a guest's socket into a FIFO. Owns its descriptors."""

    __slots__ = ("_count", "_hold", "_left", "_loop", "_on_end", "_sock", "fifo")

    def __init__(
        self, sock: socket.socket, fifo: int, on_end: Callable[[], None], *, recovered: bool = False
    ) -> None:
        """:param fifo: the write end. :param on_end: called once when all is carried, or never will be.
        :param recovered: an earlier daemon has carried a part of it.
        """
        self._loop = asyncio.get_running_loop()
        self._sock, self.fifo, self._on_end = sock, fifo, on_end
        self._hold = -1
        self._count = ReadCount(sock, recovered=recovered)
        self._left = _UNKNOWN

    def begin(self, hold: int) -> None:
        """Carry from now on. `hold` is a read end, so that an engine that restarts does not break the pipe."""
        self._hold = hold
        self._loop.add_reader(self._sock, self._carry)

    @property
    def waits_for_guest(self) -> bool:
        """Whether its end is the guest's to tell or to bring about: all that has come is carried."""
        return self._sock.fileno() >= 0 and not has_input(self._sock.fileno())

    def end_after(self, length: int) -> None:
        """The guest says how much it has written in all."""
        if self._sock.fileno() < 0:
            return
        carried = self._count.value
        if carried is None:
            # What came before this word on the kernel's vsock is in the socket already.
            self.drain()
            return
        self._left = (length - carried) % MODULUS
        if not self._left:
            self.close()

    def drain(self) -> None:
        """All that will ever come is in the socket: end when that is carried."""
        if self._sock.fileno() >= 0:
            self._left = _WHAT_IS_THERE
            self._carry()

    def close(self) -> None:
        """End it: the engine sees end-of-file. Idempotent."""
        if self._sock.fileno() < 0:
            return
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self.fifo)
        self._sock.close()
        os.close(self.fifo)
        if self._hold >= 0:
            os.close(self._hold)
        self._on_end()

    def _carry(self) -> None:
        size = min(self._left, _COPY_BYTES) if self._left > 0 else _COPY_BYTES
        try:
            moved = os.splice(self._sock.fileno(), self.fifo, size, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            if has_input(self._sock.fileno()):
                # It is the engine that does not read.
                self._loop.remove_reader(self._sock)
                self._loop.add_writer(self.fifo, self._go_on)
            elif self._left == _WHAT_IS_THERE:
                self.close()
            return
        except OSError:
            moved = 0
        if not moved:
            self.close()
            return
        self._count.add(moved)
        if self._left == _WHAT_IS_THERE:
            self._loop.call_soon(self._go_on)
        elif self._left > 0:
            self._left -= moved
            if not self._left:
                self.close()

    def _go_on(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.remove_writer(self.fifo)
            self._loop.add_reader(self._sock, self._carry)
            self._carry()


class InputStream:
    """From a FIFO into a guest's socket. Owns its descriptors."""

    __slots__ = ("_end", "_fifo", "_hold", "_loop", "_on_end", "_on_finish", "_sock", "_spool")

    def __init__(self, sock: socket.socket, spool: Spool, fifo: int, hold: int, told: InputListener) -> None:
        """:param hold: a write end, so that a client that detaches does not end the input. :param fifo: the read end.
        :param spool: what the bytes pass through, perhaps with what an earlier daemon has left in it.
        """
        self._loop = asyncio.get_running_loop()
        self._sock, self._spool, self._fifo, self._hold = sock, spool, fifo, hold
        self._on_finish, self._end, self._on_end = told
        # The agent closes it when nobody reads it any more, and writes nothing.
        self._loop.add_reader(sock, self.close)
        self._send()

    def finish(self) -> None:
        """Let it end when the engine's writers have closed the FIFO and all is carried. Idempotent."""
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1
            self._on_finish()

    def close(self) -> None:
        """Drop it. Idempotent."""
        if self._sock.fileno() < 0:
            return
        self._stop_reading()
        self.finish()
        self._loop.remove_writer(self._sock)
        self._loop.remove_reader(self._sock)
        self._sock.close()
        self._spool.close()
        self._on_end()

    def _stop_reading(self) -> None:
        if self._fifo >= 0:
            self._loop.remove_reader(self._fifo)
            os.close(self._fifo)
            self._fifo = -1

    def _carry(self) -> None:
        try:
            moved = self._spool.take_from(self._fifo)
        except BlockingIOError:
            return
        except OSError as error:
            log.warning("stream.lost", error=error)
            self.close()
            return
        if moved:
            self._send()
            return
        self._stop_reading()
        self.finish()
        self._loop.create_task(self._tell_end(self._spool.sent))

    def _send(self) -> None:
        self._loop.remove_writer(self._sock)
        try:
            self._spool.send_to(self._sock, WRITE_LIMIT_BYTES)
        except BlockingIOError:
            # It is the guest that does not read.
            self._loop.remove_reader(self._fifo)
            self._loop.add_writer(self._sock, self._send)
        except OSError:
            self.close()
        else:
            self._loop.add_reader(self._fifo, self._carry)

    async def _tell_end(self, length: int) -> None:
        try:
            await self._end(length)
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
            opening = [self._open(name, path) for name, path in zip(self._names, paths, strict=True) if name]
            for failure in await asyncio.gather(*opening, return_exceptions=True):
                if failure is not None:
                    raise failure
            await self._attend()
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
            kept = _KeptStream([*self._store.take(name), *self._store.take(_hold_of(name))])
            if not kept.is_complete(is_input=name == self._names.stdin):
                complete = False
                kept.close()
            elif name == self._names.stdin:
                self._carry_in(
                    name, kept.socket(), Spool(kept.spools[0]), kept.readers[0], [*kept.writers, -1][0]
                )
            else:
                self._add_output(name, kept.socket(), kept.writers[0], recovered=True).begin(kept.readers[0])
        return complete

    def hold(self, spec: StdioSpec) -> None:
        """Of a process that was not made: carry nothing, but keep the FIFOs open until `forget`.

        They are opened anew. What was not kept yet is open in a holder (`common.linux.fd_holder`), which goes when
        recovery is over.
        """
        ends = {}
        for name, path in zip(self._names, (spec.stdin, spec.stdout, spec.stderr), strict=True):
            if name:
                mode = os.O_RDONLY if name == self._names.stdin else os.O_WRONLY
                with contextlib.suppress(SandboxdError, OSError):
                    ends[name] = open_end(path, mode)
        self.close()
        for name, fd in ends.items():
            self._store.put(name, [fd])
            os.close(fd)

    def forget(self) -> None:
        """Keep nothing of them any more."""
        self.close()
        for name in filter(None, self._names):
            self._store.remove(name)
            self._store.remove(_hold_of(name))

    def close_stdin(self) -> None:
        """Let the process read end-of-file after what the engine has written."""
        if self._stdin is not None:
            self._stdin.finish()

    @property
    def wait_for_guest(self) -> bool:
        """Whether an output goes on though all that has come of it is carried."""
        return any(stream.waits_for_guest for stream in self._outputs.values())

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
            stream.drain()

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
        if name == self._names.stdin:
            await self._open_input(name, path)
        else:
            await self._open_output(name, path)

    async def _open_input(self, name: str, path: str) -> None:
        with contextlib.ExitStack() as undo:
            reader, writer = open_both_ends(path, None)
            undo.callback(os.close, reader)
            undo.callback(os.close, writer)
            spool = Spool()
            undo.callback(spool.close)
            undo.callback(self._forget, name)
            self._store.put(name, [reader, spool.fd])
            undo.callback(self._store.remove, _hold_of(name))
            # Apart from the others, since it goes first.
            self._store.put(_hold_of(name), [writer])
            sock = await self._guest.open_stream(name, _OPEN_TIMEOUT_S)
            undo.pop_all()
        self._store.put(name, [sock.fileno()])
        self._carry_in(name, sock, spool, reader, writer)

    async def _open_output(self, name: str, path: str) -> None:
        with contextlib.ExitStack() as undo:
            writer = open_end(path, os.O_WRONLY)
            undo.callback(os.close, writer)
            failpoint(Failpoint.OUTPUT_OPENED)
            undo.callback(self._forget, name)
            # At once: an engine that once saw the end of an output does not read on.
            self._store.put(name, [writer])
            sock = await self._guest.open_stream(name, _OPEN_TIMEOUT_S)
            undo.pop_all()
        self._store.put(name, [sock.fileno()])
        self._add_output(name, sock, writer)

    async def _attend(self) -> None:
        """Carry output when the engine reads it: at once, normally. Only then is the process to be made."""
        await readers_came([stream.fifo for stream in self._outputs.values()])
        for name, stream in self._outputs.items():
            hold = reopen_end(stream.fifo, os.O_RDONLY)
            self._store.put(name, [hold])
            stream.begin(hold)

    def _carry_in(self, name: str, sock: socket.socket, spool: Spool, reader: int, writer: int) -> None:
        sock.setblocking(False)
        guest = self._guest

        async def end(length: int) -> None:
            await guest.end_stream(name, length, _END_TIMEOUT_S)

        listener = InputListener(
            partial(self._store.remove, _hold_of(name)), end, partial(self._forget, name)
        )
        self._stdin = InputStream(sock, spool, reader, writer, listener)

    def _add_output(
        self, name: str, sock: socket.socket, writer: int, *, recovered: bool = False
    ) -> OutputStream:
        sock.setblocking(False)
        stream = OutputStream(sock, writer, partial(self._forget, name), recovered=recovered)
        self._outputs[name] = stream
        return stream

    def _forget(self, name: str) -> None:
        self._outputs.pop(name, None)
        self._store.remove(name)


class _KeptStream:
    """The descriptors of a stream that an earlier daemon has kept, told apart by what they are."""

    __slots__ = ("_sockets", "readers", "spools", "writers")

    def __init__(self, fds: Sequence[int]) -> None:
        self._sockets: list[int] = []
        self.readers: list[int] = []
        self.spools: list[int] = []
        self.writers: list[int] = []
        for fd in fds:
            link = link_of(fd)
            if link.startswith("socket:"):
                self._sockets.append(fd)
            elif link.startswith("/memfd:"):
                self.spools.append(fd)
            else:
                (self.readers if is_readable(fd) else self.writers).append(fd)

    def is_complete(self, *, is_input: bool) -> bool:
        """Tell whether it can be gone on with. An input whose end was asked for has no write end any more."""
        own = self.spools if is_input else self.writers
        return bool(self._sockets and self.readers and own)

    def socket(self) -> socket.socket:
        """Return the connection to the guest."""
        return socket.socket(fileno=self._sockets[0])

    def close(self) -> None:
        """Close all."""
        for fd in (*self._sockets, *self.readers, *self.spools, *self.writers):
            os.close(fd)


def _hold_of(name: str) -> str:
    return _HOLD_GROUP + name[1:]
