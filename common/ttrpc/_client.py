"""The client: concurrent calls and streams over one connection."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError, Message

from common.ttrpc._connection import Connection, Role
from common.ttrpc._errors import ConnectionLost, StatusCode, StatusError
from common.ttrpc._events import DataReceived, Event, ResponseReceived, StreamRefused
from common.ttrpc._frames import Frame, OversizedFrame
from common.ttrpc._socket import FrameSocket
from common.ttrpc._state import StreamState
from common.ttrpc._stream import MessageStream, Received
from proto.gen.ttrpc.request_pb2 import KeyValue, Request, Response

QUEUE_LIMIT: Final = 32 << 20
CONNECT_RETRY_S: Final = 0.01

Result = TypeVar("Result", bound=Message)
Metadata = Iterable[tuple[str, str]]


class Client(FrameSocket):
    """One connection to a server. Any number of calls and streams may be in progress at once.

    `await Client.connect(path, timeout_s)`, or `Client(sock)` for a connected unix stream socket, which the
    client then owns. When the connection is lost every call and stream in progress raises ConnectionLost,
    and so does every later one: a client does not reconnect.
    """

    __slots__ = ("_calls", "_reason", "_streams")

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, Connection(Role.CLIENT), asyncio.get_running_loop(), QUEUE_LIMIT)
        self.start_reading()
        self._calls: dict[int, asyncio.Future[Response]] = {}
        self._streams: dict[int, ClientStream[Any]] = {}
        self._reason = "the peer closed the connection"

    @classmethod
    async def connect(cls, path: str | os.PathLike[str], timeout_s: float) -> Client:
        """Connect to a unix socket. Raises OSError (nobody listens) or TimeoutError (backlog full)."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            async with asyncio.timeout(timeout_s):
                # A full backlog is EAGAIN, and no event announces that there is room (unix(7)).
                while True:
                    try:
                        sock.connect(os.fspath(path))
                        break
                    except BlockingIOError:
                        await asyncio.sleep(CONNECT_RETRY_S)
            return cls(sock)
        except BaseException:
            sock.close()
            raise

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        response_type: type[Result],
        timeout_s: float | None = None,
        metadata: Metadata = (),
    ) -> Result:
        """Make a unary call. Raises StatusError for a status other than OK, and for a timeout
        (DEADLINE_EXCEEDED, which the server is told beforehand); ConnectionLost; LocalProtocolError if the
        request is too large.
        """
        stream_id = self._send_request(service, method, request, timeout_s, metadata, StreamState.UNARY)
        if self._closed:
            raise ConnectionLost(self._reason)
        answer = self._loop.create_future()
        self._calls[stream_id] = answer
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, _expire, answer, timeout_s)
        try:
            response = await answer
        finally:
            if timer is not None:
                timer.cancel()
            self._calls.pop(stream_id, None)
            self._codec.abandon(stream_id)
        if response.status.code:
            raise StatusError(response.status.code, response.status.message)
        try:
            return response_type.FromString(response.payload)
        except DecodeError:
            text = f"the answer is no {response_type.DESCRIPTOR.full_name}"
            raise StatusError(StatusCode.INTERNAL, text) from None

    def open_stream(
        self,
        service: str,
        method: str,
        response_type: type[Received],
        request: Message | None = None,
        *,
        client_streams: bool = True,
        timeout_s: float | None = None,
        metadata: Metadata = (),
    ) -> ClientStream[Received]:
        """Begin a stream. A method to which the client does not stream takes its only message as `request`,
        with `client_streams=False`. `timeout_s` is told to the server and not enforced here. Raises as `call`
        does.
        """
        state = StreamState.OPEN if client_streams else StreamState.CLIENT_CLOSED
        stream_id = self._send_request(service, method, request, timeout_s, metadata, state)
        if self._closed:
            raise ConnectionLost(self._reason)
        stream = ClientStream(self, stream_id, response_type)
        self._streams[stream_id] = stream
        return stream

    def close(self) -> None:
        """Close the connection; what is in progress raises ConnectionLost. Idempotent."""
        self._close(ConnectionLost("the client was closed"))

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send_request(
        self,
        service: str,
        method: str,
        message: Message | None,
        timeout_s: float | None,
        metadata: Metadata,
        state: StreamState,
    ) -> int:
        if self._closed:
            raise ConnectionLost(self._reason)
        request = Request(service=service, method=method)
        if message is not None:
            request.payload = message.SerializeToString()
        if timeout_s is not None:
            request.timeout_nano = max(1, int(timeout_s * 1e9))
        request.metadata.extend(KeyValue(key=key.lower(), value=value) for key, value in metadata)
        stream_id, frame = self._codec.send_request(request, state)
        self._write(frame)
        return stream_id

    def forget_stream(self, stream_id: int) -> None:
        self._streams.pop(stream_id, None)
        self._codec.abandon(stream_id)

    # ── bottom half: called by the event loop ──────────────────────────────────────────────────

    def _examine(self, frame: Frame | OversizedFrame) -> Event | None:
        return self._codec.receive_frame(frame)

    def _act(self, examined: Event | None) -> None:
        if type(examined) is ResponseReceived:
            self._answered(examined)
        elif type(examined) is DataReceived:
            self._deliver(examined)
        elif type(examined) is StreamRefused:
            self._fail(examined.stream_id, StatusError(examined.code, examined.message))

    def _answered(self, event: ResponseReceived) -> None:
        answer = self._calls.get(event.stream_id)
        if answer is not None:
            if not answer.done():
                answer.set_result(event.response)
            return
        status = event.response.status
        if status.code:
            self._fail(event.stream_id, StatusError(status.code, status.message))
        else:
            self._deliver(DataReceived(event.stream_id, event.response.payload, True))

    def _deliver(self, event: DataReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        if not stream.deliver(event.payload, event.closed):
            text = "the stream holds too much that was not received"
            self._fail(event.stream_id, StatusError(StatusCode.RESOURCE_EXHAUSTED, text))
            self._codec.abandon(event.stream_id)
        elif event.closed:
            del self._streams[event.stream_id]

    def _fail(self, stream_id: int, error: Exception) -> None:
        answer = self._calls.get(stream_id)
        if answer is not None and not answer.done():
            answer.set_exception(error)
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            stream.fail(error)

    def _lost(self, reason: Exception | None) -> None:
        if reason is not None:
            self._reason = str(reason)
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(ConnectionLost(self._reason))
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(ConnectionLost(self._reason))


class ClientStream(MessageStream[Received]):
    """The caller's end of a stream. Leaving it as a context manager abandons what has not ended.

    ttrpc cannot cancel a stream: an abandoned one goes on at the server until it ends or the connection does.
    """

    __slots__ = ()
    _socket: Client

    def close_send(self) -> None:
        """Say that no more messages follow. Raises ConnectionLost, or LocalProtocolError if that was said
        before.
        """
        self._socket.send_data(self._stream_id, None, close=True)

    def abandon(self) -> None:
        """Drop whatever still arrives. Idempotent."""
        self._socket.forget_stream(self._stream_id)
        self._ended = True
        self._wake()

    async def __aenter__(self) -> ClientStream[Received]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()


def _expire(answer: asyncio.Future[Response], timeout_s: float) -> None:
    if not answer.done():
        answer.set_exception(StatusError(StatusCode.DEADLINE_EXCEEDED, f"no answer within {timeout_s} s"))
