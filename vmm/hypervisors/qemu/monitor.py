"""The daemon's side of a QMP connection: commands with deadlines, events as they come.

Raw and non-blocking, without tasks or timers of its own while nothing is asked: an idle connection is a descriptor
and a small object.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common.errors import DeadlineExceeded, Internal, Unavailable
from common.log import get_logger
from vmm.hypervisors.qemu.qmp import Decoder, Event, Greeting, Message, ProtocolError, encode

_READ_BYTES = 64 * 1024
_READS_PER_WAKEUP = 4

COMMAND_LIMIT_S = 10.0
"""QEMU answers in milliseconds; one that is starved of the processor in a second or two."""

log = get_logger()


class Monitor:
    """A connection, from `connect` to `close` or the end of QEMU."""

    __slots__ = ("_decoder", "_is_closed", "_loop", "_number", "_on_event", "_replies", "_sock", "version")

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        self.version = ""
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder()
        # Number 0 waits for the greeting.
        self._number = 0
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._sock = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        self._is_closed = False

    @classmethod
    async def connect(cls, path: str, on_event: Callable[[Event], None], timeout_s: float) -> Monitor:
        """Connect to a monitor's socket and wait until it takes commands.

        Raises Unavailable when nobody listens or QEMU goes away, DeadlineExceeded when it does not greet in time.
        """
        monitor = cls(on_event)
        try:
            greeted = monitor._expect(0)
            try:
                monitor._sock.connect(path)
            except OSError as error:
                raise Unavailable(f"cannot connect to QEMU's monitor {path}: {error.strerror}") from error
            monitor._loop.add_reader(monitor._sock, monitor.drain)
            monitor.version = await monitor._answer(0, greeted, "its greeting", timeout_s)
            await monitor.execute("qmp_capabilities", timeout_s=timeout_s)
        except BaseException:
            monitor.close()
            raise
        return monitor

    @property
    def is_closed(self) -> bool:
        """Whether QEMU has gone away, or `close` was called."""
        return self._is_closed

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        fds: Sequence[int] = (),
        timeout_s: float = COMMAND_LIMIT_S,
    ) -> Any:
        """Send a command, and copies of descriptors for those that take them; return its answer.

        Raises Internal with QEMU's words when it refuses, DeadlineExceeded, Unavailable when QEMU goes away.
        """
        self._number += 1
        number = self._number
        reply = self._expect(number)
        self._send(encode(number, command, arguments or {}), fds)
        return await self._answer(number, reply, command, timeout_s)

    def drain(self) -> None:
        """Handle what has arrived and is not handled yet; of a flood a part, the rest when the loop comes by again."""
        for _ in range(_READS_PER_WAKEUP):
            if self._is_closed:
                return
            try:
                data = self._sock.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            try:
                messages = self._decoder.feed(data)
            except ProtocolError as error:
                log.error("qmp.broken", error=error)
                self.close()
                return
            for message in messages:
                self._handle(message)

    def close(self) -> None:
        """Disconnect; whoever waits for an answer gets Unavailable."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._sock)
        self._sock.close()
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(_gone())
                # Looked at: nobody may be waiting for it (yet).
                reply.exception()
        self._replies.clear()

    def _expect(self, number: int) -> asyncio.Future[Any]:
        self._replies[number] = reply = self._loop.create_future()
        return reply

    async def _answer(self, number: int, reply: asyncio.Future[Any], what: str, timeout_s: float) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                return await reply
        except TimeoutError:
            raise DeadlineExceeded(f"QEMU did not answer {what} within {timeout_s:g} s") from None
        finally:
            self._replies.pop(number, None)

    def _send(self, data: bytes, fds: Sequence[int]) -> None:
        if self._is_closed:
            raise _gone()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            # A command is far smaller than what a socket takes: it goes whole, or QEMU has not read for long.
            sent = self._sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            raise Unavailable("QEMU does not read its monitor") from None
        except OSError:
            self.close()
            raise _gone() from None
        if sent != len(data):
            self.close()
            raise Unavailable("QEMU does not read its monitor")

    def _handle(self, message: Message) -> None:
        if isinstance(message, Event):
            self._on_event(message)
            return
        number = 0 if isinstance(message, Greeting) else message.number
        reply = self._replies.get(number)
        # Of one whose deadline has passed nobody wants to know.
        with contextlib.suppress(asyncio.InvalidStateError):
            if reply is None:
                return
            if isinstance(message, Greeting):
                reply.set_result(message.version)
            elif message.error:
                reply.set_exception(Internal(f"QEMU: {message.error}"))
            else:
                reply.set_result(message.value)


def _gone() -> Unavailable:
    return Unavailable("QEMU has closed its monitor")
