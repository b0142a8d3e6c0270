"""Where a guest reports: its announcement first, then exits, OOM kills and ends of streams."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message

from common.accepting import Acceptor
from common.completion import Completion
from common.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    status_of,
)
from common.log import get_logger
from common.transport import Transport
from common.ttrpc import CallContext, Journal, Method, NullJournal, Server, Service
from proto.gen.containerd.events import task_pb2 as events
from proto.gen.containerd.services.ttrpc.events.v1.events_pb2 import ForwardRequest
from proto.gen.sandboxd.agent.v1 import agent_pb2 as api
from vmm.protocol import HOST_PORT, HOST_SERVICE, PROTOCOL, STREAM_END_TOPIC

EVENTS_SERVICE: Final = "containerd.services.events.ttrpc.v1.Events"

_CONNECTION_LIMIT = 4
_EVENT_LIMIT = 16
_QUEUE_LIMIT_BYTES = 1 << 20
_TEXT_LIMIT = 100

# What a guest may tell; everything else is thrown away.
_TOPICS: Final[Mapping[str, type[Message]]] = MappingProxyType(
    {
        "/tasks/oom": events.TaskOOM,
        "/tasks/exit": events.TaskExit,
        STREAM_END_TOPIC: api.StreamEnd,
    }
)

GuestEvent = events.TaskOOM | events.TaskExit | api.StreamEnd

log = get_logger()


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a guest says of itself when it is ready; texts are cut and printable, figures are the guest's word."""

    agent_version: str
    kernel_release: str
    boot_id: str
    cpus: int
    memory_bytes: int
    clock_source: str
    exec_ns: int
    ready_ns: int


class Reception:
    """Port 1025 of the host for one VM: `async with` it, start the VM, `await announcement()`.

    After a restart of the daemon a guest that is connected anew announces itself again; nobody need wait for it.
    """

    __slots__ = ("_acceptor", "_announced", "_busy", "_listener", "_on_event", "_server", "_transport")

    def __init__(
        self,
        transport: Transport,
        on_event: Callable[[GuestEvent], Awaitable[None]],
        listener: socket.socket | None = None,
        port: int = HOST_PORT,
        journal: Journal | None = None,
    ) -> None:
        """Listen.

        :param on_event: called for each event, in the order in which they happened; a guest may repeat one. The guest
            waits for it with what comes after.
        :param listener: one that an earlier daemon has left, which is taken over.
        :param journal: what keeps the guest's connections for a later daemon, who gives them to `server`.
        :raise OSError: the port is taken.
        """
        self._transport = transport
        self._on_event = on_event
        self._busy = 0
        self._announced: Completion[Announcement] = Completion()
        self._server = Server(
            {HOST_SERVICE: Service(_HOST_METHODS, self), EVENTS_SERVICE: Service(_EVENT_METHODS, self)},
            status_of=status_of,
            queue_limit=_QUEUE_LIMIT_BYTES,
            journal=journal or NullJournal(),
            whole_frames=True,
        )
        self._listener = listener or _listen(transport, port)
        _receptions.add(self)
        self._acceptor = Acceptor(self._listener, partial(hand_over, first=self))

    @property
    def server(self) -> Server:
        """Who serves the guest's connections."""
        return self._server

    @property
    def listener(self) -> socket.socket:
        """The listening socket, for a descriptor store."""
        return self._listener

    async def announcement(self, timeout_s: float) -> Announcement:
        """Return what the guest has announced.

        :raise DeadlineExceeded: it is silent.
        :raise Unavailable: `lose` was called meanwhile.
        :raise FailedPrecondition: it speaks another protocol.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._announced.wait()
        except TimeoutError:
            raise DeadlineExceeded(f"the guest has not announced itself within {timeout_s:g} s") from None

    def lose(self, error: Exception) -> None:
        """The VM is dead: whoever waits for its announcement gets `error`."""
        self._announced.interrupt(error)

    def close(self) -> None:
        """Stop listening and drop the guest's connections. Idempotent."""
        self._acceptor.close()
        _receptions.discard(self)
        self._server.close()

    def __enter__(self) -> Reception:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self, sock: socket.socket) -> bool:
        """Take a connection if it comes from this guest; one too many is closed."""
        if not self._transport.is_peer(sock):
            return False
        if self._server.connection_count >= _CONNECTION_LIMIT:
            sock.close()
        else:
            self._server.adopt(sock)
        return True

    async def announce(self, request: api.AnnounceRequest, _: CallContext) -> Empty:
        """Take an announcement, the first one for good."""
        if request.protocol != PROTOCOL:
            error = FailedPrecondition(
                f"the guest's agent speaks protocol {request.protocol}, this sandboxd {PROTOCOL}: "
                "build the guest image of this version"
            )
            self._announced.interrupt(error)
            raise error
        if self._announced.value is None:
            self._announced.set(
                Announcement(
                    agent_version=printable(request.agent_version),
                    kernel_release=printable(request.kernel_release),
                    boot_id=printable(request.boot_id),
                    cpus=request.cpus,
                    memory_bytes=request.memory_bytes,
                    clock_source=printable(request.clock_source),
                    exec_ns=request.exec_ns,
                    ready_ns=request.ready_ns,
                )
            )
        return Empty()

    async def forward(self, request: ForwardRequest, _: CallContext) -> Empty:
        """Take an event.

        :raise ResourceExhausted: the guest, which sends one after the other, sends many at once.
        """
        envelope = request.envelope
        expected = _TOPICS.get(envelope.topic)
        if expected is None or envelope.event.type_url != expected.DESCRIPTOR.full_name:
            raise InvalidArgument(f"no such event: {printable(envelope.topic)}")
        try:
            event = expected.FromString(envelope.event.value)
        except DecodeError:
            raise InvalidArgument(f"malformed event: {printable(envelope.topic)}") from None
        assert isinstance(event, GuestEvent)
        if self._busy >= _EVENT_LIMIT:
            raise ResourceExhausted(f"{_EVENT_LIMIT} events are being handled")
        self._busy += 1
        try:
            await self._on_event(event)
        except Exception as error:
            log.error("guest.event_not_handled", topic=envelope.topic, error=error)
        finally:
            self._busy -= 1
        return Empty()


_receptions: set[Reception] = set()


def hand_over(sock: socket.socket, first: Reception | None = None) -> None:
    """Give a connection to the reception of the guest that it comes from; close it if there is none.

    A port of AF_VSOCK is the whole machine's: whoever accepts first may not be whom the guest means.
    """
    if not any(reception.take(sock) for reception in (first, *_receptions) if reception is not None):
        sock.close()


def _listen(transport: Transport, port: int) -> socket.socket:
    try:
        return transport.listen(port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            for reception in _receptions:
                if (
                    reception.listener.family == socket.AF_VSOCK
                    and reception.listener.getsockname()[1] == port
                ):
                    return reception.listener.dup()
        raise


def printable(text: str) -> str:
    """Return the beginning of a guest's text, fit for logs and errors."""
    return "".join(c if c.isprintable() else "?" for c in text[:_TEXT_LIMIT])


_HOST_METHODS = MappingProxyType({"Announce": Method(api.AnnounceRequest, Reception.announce)})
_EVENT_METHODS = MappingProxyType({"Forward": Method(ForwardRequest, Reception.forward)})
