"""One ttrpc connection without I/O: bytes in, events out, and bytes for what this side wants to say."""

from __future__ import annotations

import enum

from google.protobuf.message import DecodeError

from common.ttrpc._errors import LocalProtocolError, RemoteProtocolError, StatusCode
from common.ttrpc._events import DataReceived, Event, RequestReceived, ResponseReceived, StreamRefused
from common.ttrpc._frames import (
    DATA,
    MAX_DATA_SIZE,
    NO_DATA,
    REMOTE_CLOSED,
    REMOTE_OPEN,
    REQUEST,
    RESPONSE,
    Frame,
    FrameBuffer,
    OversizedFrame,
    encode_frame,
)
from common.ttrpc._state import TRANSITIONS, StreamState, Trigger
from proto.gen.ttrpc.request_pb2 import Request, Response

_LAST_STREAM_ID = (1 << 32) - 1

_REQUEST_TRIGGERS = {
    0: Trigger.REQUEST_UNARY,
    REMOTE_CLOSED: Trigger.REQUEST_CLOSED,
    REMOTE_OPEN: Trigger.REQUEST_OPEN,
}
_REQUEST_FLAGS = {
    StreamState.UNARY: 0,
    StreamState.CLIENT_CLOSED: REMOTE_CLOSED,
    StreamState.OPEN: REMOTE_OPEN,
}


class Role(enum.Enum):
    CLIENT = "client"
    SERVER = "server"


class Connection:
    """The protocol state of one connection, for either side.

    Feed it with `receive_data` and take events with `next_event`, or, if you cut frames out of the
    socket yourself, give them to `receive_frame`. The `send_*` methods return the bytes to write and
    raise LocalProtocolError, changing nothing, if the protocol forbids them now. Receiving raises
    RemoteProtocolError, and no other error, whatever the bytes are; the connection is unusable then.
    """

    __slots__ = ("_buffer", "_drops_repeats", "_last_stream_id", "_role", "_streams")

    def __init__(self, role: Role, *, drops_repeats: bool = False) -> None:
        """:param drops_repeats: whether a server passes over a Request whose stream id is not new, instead of refusing
        it: its client is a relay that sends again what it cannot know to have arrived.
        """
        self._role = role
        self._drops_repeats = drops_repeats
        self._streams: dict[int, StreamState] = {}  # those begun and not finished
        self._last_stream_id = 0
        self._buffer: FrameBuffer | None = None

    @property
    def role(self) -> Role:
        return self._role

    @property
    def last_stream_id(self) -> int:
        """The highest stream id that a request used; ids only grow."""
        return self._last_stream_id

    def stream_state(self, stream_id: int) -> StreamState:
        state = self._streams.get(stream_id)
        if state is not None:
            return state
        return StreamState.FINISHED if 0 < stream_id <= self._last_stream_id else StreamState.IDLE

    # ── receiving ──────────────────────────────────────────────────────────────────────────────

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes as they came, cut anywhere; then call `next_event` until it returns None."""
        if self._buffer is None:
            self._buffer = FrameBuffer()
        self._buffer.feed(data)

    def next_event(self) -> Event | None:
        """Return what the peer did next, or None until more bytes arrive."""
        if self._buffer is None:
            return None
        while (frame := self._buffer.next_frame()) is not None:
            event = self.receive_frame(frame)
            if event is not None:
                return event
        return None

    def receive_frame(self, frame: Frame | OversizedFrame) -> Event | None:
        """Take one whole frame; None means that it asks for nothing (unknown type, or late on a finished
        stream).
        """
        if type(frame) is OversizedFrame:
            return self._receive_oversized(frame)
        assert isinstance(frame, Frame)
        if frame.type == REQUEST:
            return self._receive_request(frame)
        if frame.type == DATA:
            return self._receive_data_frame(frame)
        if frame.type == RESPONSE:
            return self._receive_response(frame)
        return None

    def _receive_request(self, frame: Frame) -> Event | None:
        if self._role is Role.CLIENT:
            raise RemoteProtocolError("the server sent a Request")
        if self._drops_repeats and frame.stream_id % 2 and frame.stream_id <= self._last_stream_id:
            return None
        refusal = self._check_new_stream_id(frame.stream_id)
        if refusal is not None:
            return refusal
        self._last_stream_id = frame.stream_id
        trigger = _REQUEST_TRIGGERS.get(frame.flags & (REMOTE_CLOSED | REMOTE_OPEN))
        if trigger is None:
            return _refused(frame.stream_id, "a Request cannot be both remote-closed and remote-open")
        try:
            request = Request.FromString(frame.data)
        except DecodeError:
            return _refused(frame.stream_id, "the frame does not hold a ttrpc.Request")
        state = self._streams[frame.stream_id] = TRANSITIONS[StreamState.IDLE][trigger]
        return RequestReceived(frame.stream_id, request, state)

    def _check_new_stream_id(self, stream_id: int) -> StreamRefused | None:
        if stream_id % 2 == 0:
            return _refused(stream_id, f"stream id {stream_id} is even: those of clients are odd")
        if stream_id <= self._last_stream_id:
            return _refused(
                stream_id, f"stream id {stream_id} is not above {self._last_stream_id}, the last one"
            )
        return None

    def _receive_data_frame(self, frame: Frame) -> Event | None:
        stream_id = frame.stream_id
        closed = bool(frame.flags & REMOTE_CLOSED)
        if frame.flags & NO_DATA and frame.data:
            raise RemoteProtocolError(f"stream {stream_id}: a Data frame flagged no-data carries data")
        if self._role is Role.SERVER:
            trigger = Trigger.CLIENT_CLOSE if closed else Trigger.CLIENT_DATA
        else:
            trigger = Trigger.SERVER_CLOSE if closed else Trigger.SERVER_DATA
        if stream_id not in self._streams:
            return self._receive_on_no_stream(stream_id, "Data")
        self._advance_remote(stream_id, trigger)
        return DataReceived(stream_id, None if frame.flags & NO_DATA else frame.data, closed)

    def _receive_response(self, frame: Frame) -> Event | None:
        if self._role is Role.SERVER:
            raise RemoteProtocolError("the client sent a Response")
        if frame.stream_id not in self._streams:
            return self._receive_on_no_stream(frame.stream_id, "Response")
        self._advance_remote(frame.stream_id, Trigger.RESPONSE)
        try:
            response = Response.FromString(frame.data)
        except DecodeError:
            return StreamRefused(
                frame.stream_id, StatusCode.INTERNAL, "the peer's frame does not hold a ttrpc.Response"
            )
        return ResponseReceived(frame.stream_id, response)

    def _receive_on_no_stream(self, stream_id: int, what: str) -> Event | None:
        # A frame may have crossed the end of its stream, and answers may come twice; both are harmless.
        if stream_id % 2 and stream_id <= self._last_stream_id:
            return None
        if self._role is Role.CLIENT:
            raise RemoteProtocolError(f"the server sent {what} on stream {stream_id}, which was never opened")
        return _refused(stream_id, f"stream {stream_id} was never opened")

    def _receive_oversized(self, frame: OversizedFrame) -> Event | None:
        stream_id = frame.stream_id
        if frame.type not in (REQUEST, DATA, RESPONSE):
            return None
        if self._role is Role.SERVER and frame.type == REQUEST:
            refusal = self._check_new_stream_id(stream_id)
            if refusal is not None:
                return refusal
            self._last_stream_id = stream_id
        elif stream_id not in self._streams:
            return self._receive_on_no_stream(stream_id, "an oversized frame")
        self._streams.pop(stream_id, None)
        return StreamRefused(
            stream_id,
            StatusCode.RESOURCE_EXHAUSTED,
            f"a frame of {frame.size} bytes is beyond the limit of {MAX_DATA_SIZE} bytes",
        )

    def _advance_remote(self, stream_id: int, trigger: Trigger) -> None:
        state = self._streams[stream_id]
        after = TRANSITIONS[state].get(trigger)
        if after is None:
            raise RemoteProtocolError(f"stream {stream_id} is {state.value}: {trigger.value} is illegal")
        self._enter(stream_id, after)

    def _enter(self, stream_id: int, state: StreamState) -> None:
        if state is StreamState.FINISHED:
            del self._streams[stream_id]
        else:
            self._streams[stream_id] = state

    # ── sending ────────────────────────────────────────────────────────────────────────────────

    def send_request(self, request: Request, state: StreamState = StreamState.UNARY) -> tuple[int, bytes]:
        """Begin a stream; `state` is what it shall be: UNARY, OPEN or CLIENT_CLOSED. Return its id and the
        bytes.
        """
        if self._role is Role.SERVER:
            raise LocalProtocolError("only a client sends Requests")
        flags = _REQUEST_FLAGS.get(state)
        if flags is None:
            raise LocalProtocolError(f"a Request cannot begin a stream that is {state.value}")
        stream_id = self._last_stream_id + (2 if self._last_stream_id else 1)
        if stream_id > _LAST_STREAM_ID:
            raise LocalProtocolError("all stream ids of this connection are used up")
        frame = encode_frame(stream_id, REQUEST, flags, request.SerializeToString())
        self._last_stream_id = stream_id
        self._streams[stream_id] = state
        return stream_id, frame

    def begin_unary(self, stream_id: int) -> None:
        """Take over the id of a unary stream from the connection that its Request came on: ids only grow there, too."""
        if self._role is Role.SERVER or stream_id % 2 == 0 or stream_id <= self._last_stream_id:
            raise LocalProtocolError(f"stream {stream_id} cannot begin after {self._last_stream_id}")
        self._last_stream_id = stream_id
        self._streams[stream_id] = StreamState.UNARY

    def send_data(self, stream_id: int, payload: bytes | None, *, close: bool = False) -> bytes:
        """Send a message (None: none), and end this side of the stream if `close`. One of them is needed."""
        if payload is None and not close:
            raise LocalProtocolError("a Data frame needs a payload, or must close the stream")
        if self._role is Role.CLIENT:
            trigger = Trigger.CLIENT_CLOSE if close else Trigger.CLIENT_DATA
        else:
            trigger = Trigger.SERVER_CLOSE if close else Trigger.SERVER_DATA
        after = self._check_local(stream_id, trigger)
        flags = (REMOTE_CLOSED if close else 0) | (NO_DATA if payload is None else 0)
        frame = encode_frame(stream_id, DATA, flags, payload or b"")
        self._enter(stream_id, after)
        return frame

    def send_response(self, stream_id: int, response: Response) -> bytes:
        """End a stream with a result or a status."""
        if self._role is Role.CLIENT:
            raise LocalProtocolError("only a server sends Responses")
        after = self._check_local(stream_id, Trigger.RESPONSE)
        frame = encode_frame(stream_id, RESPONSE, 0, response.SerializeToString())
        self._enter(stream_id, after)
        return frame

    def refuse(self, refused: StreamRefused) -> bytes:
        """Return the Response with which a server answers a refused frame."""
        if self._role is Role.CLIENT:
            raise LocalProtocolError("only a server sends Responses")
        response = Response()
        response.status.code = refused.code
        response.status.message = refused.message
        return encode_frame(refused.stream_id, RESPONSE, 0, response.SerializeToString())

    def abandon(self, stream_id: int) -> None:
        """Forget a stream: ttrpc has no frame to cancel one, so what still arrives on it is dropped."""
        self._streams.pop(stream_id, None)

    def _check_local(self, stream_id: int, trigger: Trigger) -> StreamState:
        state = self.stream_state(stream_id)
        after = TRANSITIONS[state].get(trigger)
        if after is None:
            raise LocalProtocolError(f"stream {stream_id} is {state.value}: {trigger.value} is illegal")
        return after


def _refused(stream_id: int, message: str) -> StreamRefused:
    return StreamRefused(stream_id, StatusCode.INVALID_ARGUMENT, message)
