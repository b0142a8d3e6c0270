"""One accepted connection of a server, and the calls that live no longer than it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

from google.protobuf.message import DecodeError, Message

from common.ttrpc._calls import (
    Call,
    CallContext,
    CallObserver,
    Method,
    PeerCredentials,
    RelayedMethod,
    Service,
    StreamMethod,
)
from common.ttrpc._connection import Connection, Role
from common.ttrpc._errors import LocalProtocolError, StatusCode, StatusError
from common.ttrpc._events import DataReceived, Event, RequestReceived, StreamRefused
from common.ttrpc._frames import HEADER, HEADER_SIZE, REQUEST, Frame, OversizedFrame, encode_frame
from common.ttrpc._journal import NULL_JOURNAL, Journal, Replay
from common.ttrpc._marks import Spilled
from common.ttrpc._socket import FrameSocket
from common.ttrpc._state import StreamState
from common.ttrpc._stream import ServerStream
from proto.gen.ttrpc.request_pb2 import Response


class ConnectionOwner(Protocol):
    """What a connection asks of its server, whose arguments say what each is."""

    services: Mapping[str, Service]
    journal: Journal
    queue_limit: int
    drops_repeats: bool
    whole_frames: bool

    def status(self, error: BaseException) -> tuple[int, str]:
        """Return the code and the text, fit for the wire, with which an error is answered."""
        ...

    def lost(self, connection: ServerConnection, *, lingers: bool) -> None:
        """The connection is gone; it `lingers` while a cancelled handler has not ended yet."""
        ...

    def forget(self, connection: ServerConnection) -> None:
        """It lingers no more."""
        ...


class _Admitted(NamedTuple):
    """An event and whom it concerns, found out while the frame was still in the socket."""

    event: Event | None
    service: Service | None = None
    method: Method | StreamMethod | RelayedMethod | None = None
    error: Exception | None = None


class ServerConnection(FrameSocket):
    """One accepted connection and the handlers bound to it. `observer` is told of calls that were answered, on all
    connections of the process."""

    __slots__ = ("_begun", "_calls", "_id", "_peer", "_repeated", "_server")

    observer: ClassVar[CallObserver | None] = None

    def __init__(
        self, server: ConnectionOwner, sock: socket.socket, peer: PeerCredentials | None, connection_id: int
    ) -> None:
        codec = Connection(Role.SERVER, drops_repeats=server.drops_repeats)
        super().__init__(sock, codec, asyncio.get_running_loop(), server.queue_limit)
        self._server = server
        self._peer = peer
        self._id = connection_id
        self._repeated = 0  # the stream id that may be in the journal and in the socket as well
        self._calls: dict[int, Call] | None = None  # those that wait, and all that stream
        self._begun: dict[int, tuple[str, str, float]] | None = None  # for the observer, if there is one

    # ── taking over from a process that died ───────────────────────────────────────────────────

    def replay(self, replay: Replay) -> None:
        """Go on with what was left undone; to be called before the event loop reads from the socket."""
        half_sent = set()
        for frame in replay.spilled:
            rest = Spilled(frame)
            if rest.begun and not self._closed:
                half_sent.add(self._go_on_sending(rest))
            else:
                self._end(rest, 0)  # what it answers is on record with its outcome, or still in the socket
        for stream_id, data, outcome in replay.requests:
            if self._closed:
                return
            self._repeated = stream_id
            _size, _id, frame_type, flags = HEADER.unpack_from(data)
            event = self._codec.receive_frame(Frame(stream_id, frame_type, flags, data[HEADER_SIZE:]))
            if stream_id in half_sent:
                self._codec.abandon(stream_id)
            elif type(event) is RequestReceived:
                if outcome is None:
                    self._repeat(event)
                else:
                    self._complete(event, outcome)
        if not self._closed:
            self._resume(replay.pieces)

    def _go_on_sending(self, rest: Spilled) -> int:
        """Send the rest of a large frame; return the stream that needs no other answer then."""
        answered = rest.answers  # it is closed as soon as all of it is sent
        self._enqueue(rest, answered)
        return answered

    def _complete(self, event: RequestReceived, outcome: bytes) -> None:
        """Answer a call that was done."""
        self._codec.abandon(event.stream_id)
        self._write(outcome, event.stream_id)

    def _repeat(self, event: RequestReceived) -> None:
        service = self._server.services.get(event.request.service)
        method = service.methods.get(event.request.method) if service is not None else None
        if service is None or method is None:
            error = _unimplemented(f"{event.request.service}/{event.request.method}")
            self._respond(event.stream_id, event.stream_id, None, error)
        elif type(method) is StreamMethod:
            error = StatusError(StatusCode.UNAVAILABLE, "the server was restarted: begin the stream anew")
            self._respond(event.stream_id, event.stream_id, None, error)
        else:
            self._begin(event, service, method, replayed=True)

    # ── a frame arrives ────────────────────────────────────────────────────────────────────────

    def _examine(self, frame: Frame | OversizedFrame) -> _Admitted:
        repeated, self._repeated = self._repeated, 0
        if repeated and frame.type == REQUEST and frame.stream_id == repeated:
            return _Admitted(None)
        event = self._codec.receive_frame(frame)
        if type(event) is RequestReceived:
            service = self._server.services.get(event.request.service)
            if service is None:
                return _Admitted(event, error=_unimplemented(f"service {event.request.service}"))
            method = service.methods.get(event.request.method)
            if method is None:
                name = f"method {event.request.method} of service {event.request.service}"
                return _Admitted(event, error=_unimplemented(name))
            error = self._admit(frame) if method.journaled else None
            return _Admitted(event, service, method, error)
        return _Admitted(event)

    def _admit(self, frame: Frame | OversizedFrame) -> Exception | None:
        assert isinstance(frame, Frame)
        try:
            self._server.journal.admitted(self._id, frame.stream_id, encode_frame(*frame))
        except Exception as error:
            return error
        return None

    def _acts_first(self, examined: _Admitted) -> bool:
        # What is on record is safe. All else stays in the socket until it has its answer.
        method = examined.method
        if method is None or examined.error is not None:
            return examined.error is not None or type(examined.event) is StreamRefused
        return not method.journaled

    def _acted(self, frame: Frame | OversizedFrame, examined: _Admitted) -> None:
        if (self._calls is None and self._unsent is None) or type(examined.event) is not RequestReceived:
            return
        call = self._call(frame.stream_id)
        if call is not None:
            # It waits after all: from now on its frame is nowhere but here.
            call.journaled = self._admit(frame) is None
            call.repeatable = True
        elif self._unsent is not None and self._admit(frame) is None:
            self._enqueue(memoryview(b""), frame.stream_id)

    def _act(self, examined: _Admitted) -> None:
        event = examined.event
        if type(event) is RequestReceived:
            if examined.error is not None:
                self._respond(event.stream_id, 0, None, examined.error)
                return
            assert examined.service is not None
            assert examined.method is not None
            if examined.method.journaled:
                self._server.journal.consumed(self._id, event.stream_id)
            if ServerConnection.observer is not None:
                self._note_begin(event.stream_id, event.request.service, event.request.method)
            self._begin(event, examined.service, examined.method)
        elif type(event) is DataReceived:
            self._deliver(event)
        elif type(event) is StreamRefused:
            self._refuse(event)

    def _begin(
        self,
        event: RequestReceived,
        service: Service,
        method: Method | StreamMethod | RelayedMethod,
        replayed: bool = False,
    ) -> None:
        stream_id, request, state = event
        deadline = None
        if request.timeout_nano:
            deadline = self._loop.time() + request.timeout_nano / 1e9
        metadata = tuple((pair.key, pair.value) for pair in request.metadata) if request.metadata else ()
        context = self._context(
            request.service, request.method, metadata, deadline, self._peer, self._id, stream_id, replayed
        )
        journaled = method.journaled or replayed
        report = stream_id if journaled else 0
        stream: ServerStream[Any] | None = None
        argument: Any
        if type(method) is StreamMethod:
            if state is StreamState.UNARY:
                text = f"{request.method} is a streaming method, the request is unary"
                self._respond(stream_id, report, None, StatusError(StatusCode.INVALID_ARGUMENT, text))
                return
            argument = stream = ServerStream(self, stream_id, method.request)
            # The payload cannot be told from no payload when it is empty: only a client that sends nothing
            # else must have meant a message.
            closed = state is StreamState.CLIENT_CLOSED
            stream.deliver(request.payload if request.payload or closed else None, closed)
        else:
            try:
                argument = method.request.FromString(request.payload)
            except DecodeError:
                text = f"the payload is no {method.request.DESCRIPTOR.full_name}"
                self._respond(stream_id, report, None, StatusError(StatusCode.INVALID_ARGUMENT, text))
                return
        assert isinstance(method, Method | StreamMethod)  # others are a relay's alone
        call = Call(context, journaled, stream, self._loop, self._finished)
        call.repeatable = stream is not None or type(method) is not Method or method.repeatable
        if stream is not None:
            self._keep(call)
        try:
            awaitable = method.handler(service.target, argument, context)
        except Exception as error:
            self._finished(call, None, error)
            return
        if not call.run(awaitable):
            self._keep(call)
            if self._closed:
                self._server.lost(self, lingers=True)
                call.cancel()

    def _deliver(self, event: DataReceived) -> None:
        call = self._call(event.stream_id)
        if call is None or call.stream is None:
            return
        if not call.stream.deliver(event.payload, event.closed):
            text = "the stream holds too much that was not received"
            error = StatusError(StatusCode.RESOURCE_EXHAUSTED, text)
            self._respond(event.stream_id, event.stream_id if call.journaled else 0, None, error)
            call.cancel()

    def _refuse(self, refused: StreamRefused) -> None:
        call = self._call(refused.stream_id)
        ended = self._codec.stream_state(refused.stream_id) is StreamState.FINISHED
        report = refused.stream_id if ended and call is not None and call.journaled else 0
        self._write(self._codec.refuse(refused), report)
        if ended and call is not None:
            self._note_end(refused.stream_id, refused.code)
            call.cancel()

    # ── a call ends ────────────────────────────────────────────────────────────────────────────

    def _finished(self, call: Call, result: Message | None, error: BaseException | None) -> None:
        stream_id = call.context.stream_id
        if self._calls is not None:
            self._calls.pop(stream_id, None)
            if not self._calls:
                self._calls = None
                if self._closed:
                    self._server.forget(self)
        if self._closed:
            return
        if self._codec.stream_state(stream_id) is StreamState.FINISHED:
            return  # it was refused or overrun meanwhile and has its answer
        report = stream_id if call.journaled else 0
        if error is None and result is None and call.stream is not None:
            self._note_end(stream_id, 0)
            self._write(self._codec.send_data(stream_id, None, close=True), report)
        else:
            self._respond(stream_id, report, result, error, record=bool(report) and not call.repeatable)

    def _respond(
        self,
        stream_id: int,
        report: int,
        result: Message | None,
        error: BaseException | None,
        *,
        record: bool = False,
    ) -> None:
        if error is None:
            try:
                if result is None:
                    raise TypeError("the handler returned no message")
                frame = self._codec.send_response(stream_id, Response(payload=result.SerializeToString()))
            except LocalProtocolError as too_large:
                error = StatusError(
                    StatusCode.RESOURCE_EXHAUSTED, f"the response cannot be sent: {too_large}"
                )
            except Exception as unusable:
                error = unusable
        code = 0
        if error is not None:
            code, text = self._server.status(error)
            response = Response()
            response.status.code = code
            response.status.message = text
            frame = self._codec.send_response(stream_id, response)
        self._note_end(stream_id, code)
        if record:
            self._server.journal.outcome(self._id, stream_id, frame)
        self._write(frame, report)

    # ── bookkeeping ────────────────────────────────────────────────────────────────────────────

    _context: Callable[..., CallContext] = CallContext

    def _note_begin(self, stream_id: int, service: str, method: str) -> None:
        if self._begun is None:
            self._begun = {}
        self._begun[stream_id] = (service, method, self._loop.time())

    def _note_end(self, stream_id: int, code: int) -> None:
        if self._begun is None or (begun := self._begun.pop(stream_id, None)) is None:
            return
        if ServerConnection.observer is not None:
            service, method, begun_s = begun
            ServerConnection.observer(service, method, code, self._loop.time() - begun_s)

    def _call(self, stream_id: int) -> Call | None:
        return None if self._calls is None else self._calls.get(stream_id)

    def _keep(self, call: Call) -> None:
        if self._calls is None:
            self._calls = {}
        self._calls[call.context.stream_id] = call

    @property
    def _outlives(self) -> bool:
        return self._server.journal is not NULL_JOURNAL

    def _partial(self, piece: memoryview) -> None:
        if self._outlives:
            self._server.journal.partial(self._id, bytes(piece))

    def _stop_peeking(self) -> None:
        if self._server.whole_frames:
            self._refuse_pieces("a frame")
        else:
            super()._stop_peeking()

    def _spill(self, frame: bytes) -> Spilled | None:
        spilled = self._server.journal.spill(self._id, frame)
        return None if spilled is None else Spilled(spilled)

    def _unspilled(self, frame: Spilled) -> None:
        self._server.journal.unspilled(self._id, frame.serial)

    def _sent(self, report: int) -> None:
        self._server.journal.answered(self._id, report)

    def _lost(self, reason: Exception | None) -> None:
        self._server.journal.closed(self._id)
        self._server.lost(self, lingers=self._calls is not None)
        for call in list((self._calls or {}).values()):
            # One whose deadline has passed is taking back what it did: a second time would interrupt that.
            if not call.expired:
                call.cancel()

    def close(self) -> None:
        self._close(None)

    def tasks(self) -> list[asyncio.Task[Any]]:
        """The tasks of the handlers that wait."""
        return [call.task for call in (self._calls or {}).values() if call.task is not None]


def _unimplemented(what: str) -> StatusError:
    return StatusError(StatusCode.UNIMPLEMENTED, f"{what} is not offered here")
