"""What a peer did, as `Connection` reports it."""

from __future__ import annotations

from typing import NamedTuple

from common.ttrpc._state import StreamState
from proto.gen.ttrpc.request_pb2 import Request, Response


class RequestReceived(NamedTuple):
    """A client began a stream. `state` tells its kind: UNARY, OPEN (data follows) or CLIENT_CLOSED (none
    does).
    """

    stream_id: int
    request: Request
    state: StreamState


class DataReceived(NamedTuple):
    """The peer sent a message (None: none, not even an empty one), ended its side, or both."""

    stream_id: int
    payload: bytes | None
    closed: bool


class ResponseReceived(NamedTuple):
    """The server ended the stream with a result or a status."""

    stream_id: int
    response: Response


class StreamRefused(NamedTuple):
    """A frame that spoils its own stream and nothing else; the stream is finished on this side.

    A server answers it with a Response of this code and message, a client fails the call with them.
    """

    stream_id: int
    code: int
    message: str


Event = RequestReceived | DataReceived | ResponseReceived | StreamRefused
