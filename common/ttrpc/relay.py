"""The relay: a server that hands calls on to another one, each connection of its clients over a link of its own.

A call keeps its stream id on the link, so a call that waits, waits at the far end, and nothing but its name is kept
here. Which calls are handed on, and what is made of their answers, is said by `RelayedMethod` in the method tables;
handlers of ordinary methods hand their call on with `RelayContext.forward`, changed as they like.

What makes this survive the process: both sockets are kept by the journal. A request is on record until it is
answered, and a successor sends again what is on record: the far end drops what it has seen (`Server`,
`drops_repeats`), since stream ids only grow and arrive in order. An answer leaves the link's socket when it has been
written to the client, or is on record where a handler still has to work on it.

The far end is not trusted: an answer that is too large, undecodable, of the wrong kind or on a stream that was never
begun ends the link, and `on_lost` says why.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from common.ttrpc._calls import Call, CallContext, Method, RelayedMethod, Service, StreamMethod
from common.ttrpc._errors import ConnectionLost, RemoteProtocolError, StatusCode, StatusError
from common.ttrpc._events import RequestReceived
from common.ttrpc._frames import HEADER_SIZE, REQUEST, Frame, encode_frame
from common.ttrpc._journal import Journal, Replay
from common.ttrpc._link import Link
from common.ttrpc._marks import Spilled
from common.ttrpc._server import MESSAGE_LIMIT, Authorize, Server, StatusOf, peer_credentials
from common.ttrpc._server_connection import ServerConnection
from proto.gen.ttrpc.request_pb2 import Request, Response

M = TypeVar("M", bound=Message)
Decode = Callable[[int, Response], M]
"""Takes the answer on a stream apart; raises StatusError if it is an error, RemoteProtocolError if it is nothing."""

PENDING_LIMIT: Final = 1024
"""How many calls of a connection are handed on and not answered: a far end that is frozen answers none."""


class LinkJournal(Journal, Protocol):
    """Keeps the links, too, each with the connection that it belongs to."""

    def link_opened(self, connection_id: int, sock: socket.socket) -> None:
        """Keep the link of a connection."""

    def take_link(self, connection_id: int) -> socket.socket | None:
        """Return the link that an earlier process had for a connection."""

    def link_closed(self, connection_id: int) -> None:
        """The link of a connection is gone."""


class RelayContext(CallContext):
    """What a handler of a relay may know of its call, and do with it."""

    __slots__ = ("connection",)
    connection: RelayConnection

    async def forward(self, request: Message, answer: type[M], timeout_s: float | None = None) -> M:
        """Hand the call on, with this request instead of the client's, and return the answer, of the type `answer`.

        Raises StatusError as the far end does, ConnectionLost if there is none or what it answers is nothing of the
        kind. Once per call.
        """
        if timeout_s is None and self.deadline is not None:
            timeout_s = max(0.001, self.deadline - asyncio.get_running_loop().time())
        envelope = Request(service=self.service, method=self.method, payload=request.SerializeToString())
        if timeout_s is not None:
            envelope.timeout_nano = int(timeout_s * 1e9)
        decode = partial(_decode, request.DESCRIPTOR.full_name, answer)
        return await self.connection.forward(self.stream_id, envelope.SerializeToString(), decode)


class RelayConnection(ServerConnection):
    """One accepted connection, and its link once a call needs one."""

    __slots__ = (
        "_awaited",
        "_before_link",
        "_connecting",
        "_held_by",
        "_kept_link",
        "_link",
        "_outcomes",
        "_queue",
        "_relayed",
    )
    _server: RelayServer

    def __init__(self, server: RelayServer, sock: socket.socket, connection_id: int) -> None:
        super().__init__(server, sock, peer_credentials(sock), connection_id)
        self._link: Link | None = None
        # At once: what nobody has taken is let go of when all has been recovered.
        self._kept_link = server.links.take_link(connection_id)
        self._connecting: asyncio.Task[None] | None = None
        self._held_by = 0  # the stream whose handler has not handed its call on yet: later calls wait for it
        self._queue: deque[tuple[RequestReceived, Service, Method | StreamMethod | RelayedMethod, bool]] = (
            deque()
        )
        self._before_link: list[tuple[int, bytes]] = []
        self._relayed: dict[int, tuple[RelayedMethod, Any, Any]] = {}
        # Each with what takes its answer apart.
        self._awaited: dict[int, tuple[asyncio.Future[Any], Decode[Message]]] | None = None
        self._outcomes: dict[int, Response] | None = None

    # ── calls in order: a stream id that was passed by on the link cannot be used any more ────────

    def _begin(
        self,
        event: RequestReceived,
        service: Service,
        method: Method | StreamMethod | RelayedMethod,
        replayed: bool = False,
    ) -> None:
        if self._held_by:
            self._queue.append((event, service, method, replayed))
        elif type(method) is RelayedMethod:
            self._relay(event, service, method)
        else:
            if method.journaled:
                self._held_by = event.stream_id
                self._pause()
            super()._begin(event, service, method, replayed)

    def _context(self, *arguments: Any) -> CallContext:
        context = RelayContext(*arguments)
        context.connection = self
        return context

    def _release(self, stream_id: int) -> None:
        """The handler that later calls have waited for has handed its call on, or will not do so."""
        if self._held_by != stream_id:
            return
        self._held_by = 0
        while self._queue and not self._held_by and not self._closed:
            self._begin(*self._queue.popleft())
        self._read_if_ready()

    def _read_if_ready(self) -> None:
        if not self._held_by:
            if self._link is not None:
                self._link.resume()
            if self._connecting is None:
                self._unpause()

    # ── a call is handed on ─────────────────────────────────────────────────────────────────────

    def _relay(self, event: RequestReceived, service: Service, method: RelayedMethod) -> None:
        stream_id, request, _ = event
        try:
            message = method.request.FromString(request.payload)
        except DecodeError:
            text = f"the payload is no {method.request.DESCRIPTOR.full_name}"
            self._respond(stream_id, stream_id, None, StatusError(StatusCode.INVALID_ARGUMENT, text))
            return
        substitute = method.bereaved if self._server.bereaved else method.before
        answer: Message | None = None
        error: Exception | None = None
        try:
            answer = substitute(service.target, message)
        except Exception as refusal:
            error = refusal
        if answer is not None or error is not None:
            self._respond(stream_id, stream_id, answer, error)
            return
        if len(self._relayed) >= PENDING_LIMIT:
            text = f"{PENDING_LIMIT} calls wait for the far end already"
            self._respond(stream_id, stream_id, None, StatusError(StatusCode.RESOURCE_EXHAUSTED, text))
            return
        self._relayed[stream_id] = (method, service.target, message)
        self._send_on(stream_id, request.SerializeToString())

    async def forward(self, stream_id: int, request: bytes, decode: Decode[M]) -> M:
        """Hand on the call of a handler; see `RelayContext.forward`."""
        try:
            if self._outcomes and (outcome := self._outcomes.pop(stream_id, None)) is not None:
                return decode(stream_id, outcome)
            if self._server.bereaved:
                raise ConnectionLost(self._server.bereaved)
            answer: asyncio.Future[M] = self._loop.create_future()
            if self._awaited is None:
                self._awaited = {}
            self._awaited[stream_id] = (answer, decode)
            self._send_on(stream_id, request)
        finally:
            # Not from within the handler: other handlers may begin.
            self._loop.call_soon(self._release, stream_id)
        try:
            return await answer
        finally:
            if self._awaited is not None:
                self._awaited.pop(stream_id, None)

    def _send_on(self, stream_id: int, request: bytes) -> None:
        frame = encode_frame(stream_id, REQUEST, 0, request)
        if self._link is not None:
            self._link.send(stream_id, frame)
            return
        self._before_link.append((stream_id, frame))
        if self._connecting is None and not self._server.condemned:
            self._pause()
            self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        error: Exception | None = None
        sock: socket.socket | None = None
        try:
            sock = await self._server.connect()
            if not self._closed:
                self._server.links.link_opened(self._id, sock)
                # What is done over a link that nobody keeps would be done again over the next one.
                kept = asyncio.Event()
                self._server.links.when_kept(kept.set)
                await kept.wait()
                self._link = Link(self, sock)
        except Exception as failure:
            error = failure
        finally:
            self._connecting = None
            if self._link is None and sock is not None:
                sock.close()
                self._server.links.link_closed(self._id)
        waiting, self._before_link = self._before_link, []
        for stream_id, frame in waiting:
            if self._link is not None:
                self._link.send(stream_id, frame)
            elif not self._closed:
                self._fail(stream_id, error or ConnectionLost("the connection is closed"))
        self._read_if_ready()

    def _fail(self, stream_id: int, error: Exception) -> None:
        relayed = self._relayed.pop(stream_id, None)
        if relayed is not None:
            self._respond(stream_id, stream_id, None, error)
        if self._awaited is not None and stream_id in self._awaited:
            answer, _ = self._awaited[stream_id]
            if not answer.done():
                answer.set_exception(error)

    # ── an answer comes back ────────────────────────────────────────────────────────────────────

    def answered(self, stream_id: int, response: Response, frame: Frame) -> None:
        """Called by the link before it consumes the frame.

        Raises RemoteProtocolError if it is not an answer to what was asked.
        """
        answer: Message | None = None
        error: Exception | None = None
        relayed = self._relayed.get(stream_id)
        if relayed is not None:
            method, target, request = relayed
            try:
                if response.status.code:
                    error = _status_error(response)
                else:
                    answer = method.after(target, request, response.payload)
            except (DecodeError, ValueError) as lie:
                raise _lie(stream_id, method.request.DESCRIPTOR.full_name, lie) from None
            except Exception as refusal:
                error = refusal
            del self._relayed[stream_id]
            self._respond(stream_id, stream_id, answer, error)
            return
        if self._awaited is not None and stream_id in self._awaited:
            waiting, decode = self._awaited[stream_id]
            if waiting.done():
                return
            try:
                answer = decode(stream_id, response)
            except StatusError as told:
                error = told
            self._server.journal.outcome(self._id, stream_id, encode_frame(*frame))
            if error is None:
                waiting.set_result(answer)
            else:
                waiting.set_exception(error)

    def bereave(self, reason: str) -> None:
        """Answer what waits for the far end, which is gone for good."""
        if self._link is not None:
            link, self._link = self._link, None
            link.close()
            self._server.links.link_closed(self._id)
        self._before_link.clear()
        relayed, self._relayed = self._relayed, {}
        for stream_id, (method, target, request) in relayed.items():
            answer: Message | None = None
            error: Exception | None = None
            try:
                answer = method.bereaved(target, request)
            except Exception as refusal:
                error = refusal
            if not self._closed:
                if answer is None and error is None:
                    error = ConnectionLost(reason)
                self._respond(stream_id, stream_id, answer, error)
        for waiting, _ in list((self._awaited or {}).values()):
            if not waiting.done():
                waiting.set_exception(ConnectionLost(reason))

    def link_lost(self, reason: Exception | None) -> None:
        """Called by the link, which nobody here has closed."""
        self._link = None
        self._server.links.link_closed(self._id)
        self._server.condemn(str(reason or "it closed a connection"))

    # ── a connection of an earlier process ──────────────────────────────────────────────────────

    def replay(self, replay: Replay) -> None:
        """Go on with what was left undone, over the link that was left, too."""
        sock, self._kept_link = self._kept_link, None
        if sock is not None and not self._closed and not self._server.bereaved:
            # Not read from before all that was asked over it has been asked again.
            self._link = Link(self, sock, recovered=True)
        elif sock is not None:
            sock.close()
            self._server.links.link_closed(self._id)
        super().replay(replay)
        if not self._held_by and self._link is not None:
            self._link.resume()

    def _go_on_sending(self, rest: Spilled) -> int:
        stream_id = rest.requests
        if not stream_id:
            return super()._go_on_sending(rest)
        if self._link is None:
            self._end(rest, 0)
        else:
            self._link.go_on_sending(rest)
        return 0  # its answer is still to come

    def _complete(self, event: RequestReceived, outcome: bytes) -> None:
        service = self._server.services.get(event.request.service)
        method = service.methods.get(event.request.method) if service is not None else None
        if type(method) is not Method:
            super()._complete(event, outcome)
            return
        if self._outcomes is None:
            self._outcomes = {}
        self._outcomes[event.stream_id] = Response.FromString(outcome[HEADER_SIZE:])
        self._repeat(event)

    # ── hooks ──────────────────────────────────────────────────────────────────────────────────

    def _finished(self, call: Call, result: Message | None, error: BaseException | None) -> None:
        super()._finished(call, result, error)
        self._release(call.context.stream_id)

    def _lost(self, reason: Exception | None) -> None:
        super()._lost(reason)
        if self._connecting is not None:
            self._connecting.cancel()
        self._relayed.clear()
        self._queue.clear()
        if self._link is not None:
            link, self._link = self._link, None
            link.close()
            self._server.links.link_closed(self._id)

    @property
    def journal(self) -> LinkJournal:
        return self._server.links

    @property
    def id(self) -> int:
        return self._id


class RelayServer(Server):
    """Serves method tables that hold `RelayedMethod`s, too. Handlers that are journaled must be repeatable: they run
    again, and `forward` then returns what the far end had answered.

    `connect` returns a connected socket to the far end, whose server drops repeated requests; `on_lost` is told, once,
    when a link ends that nobody here has closed. From then on no new link is made, and what waits for the far end
    goes on waiting until `bereave`.
    """

    __slots__ = ("bereaved", "condemned", "connect", "links", "on_lost")

    def __init__(
        self,
        services: Mapping[str, Service],
        *,
        links: LinkJournal,
        connect: Callable[[], Awaitable[socket.socket]],
        on_lost: Callable[[str], None],
        status_of: StatusOf | None = None,
        authorize: Authorize | None = None,
    ) -> None:
        super().__init__(services, status_of=status_of, authorize=authorize, journal=links)
        self.links = links
        self.connect = connect
        self.on_lost = on_lost
        self.condemned = False
        self.bereaved = ""

    def condemn(self, reason: str) -> None:
        """Make no link any more."""
        if not self.condemned:
            self.condemned = True
            self.on_lost(reason)

    def bereave(self, reason: str) -> None:
        """The far end is gone for good: answer all that waits for it, and from now on everything, without it."""
        self.condemned = True
        self.bereaved = reason
        for connection in list(self._connections.values()):
            assert isinstance(connection, RelayConnection)
            connection.bereave(reason)

    def _connection(self, sock: socket.socket, connection_id: int) -> ServerConnection:
        return RelayConnection(self, sock, connection_id)


def _decode(call: str, answer: type[M], stream_id: int, response: Response) -> M:
    if response.status.code:
        raise _status_error(response)
    try:
        return answer.FromString(response.payload)
    except (DecodeError, ValueError) as lie:
        raise _lie(stream_id, call, lie) from None


def _lie(stream_id: int, call: str, lie: Exception) -> RemoteProtocolError:
    return RemoteProtocolError(f"stream {stream_id}: the answer to {call}: {lie}")


def _status_error(response: Response) -> StatusError:
    code = response.status.code
    known = 0 < code <= max(StatusCode)
    # For people to read, in logs and terminals.
    text = "".join(
        c if c.isprintable() or c == "\n" else "?" for c in response.status.message[:MESSAGE_LIMIT]
    )
    return StatusError(code if known else StatusCode.UNKNOWN, text)
