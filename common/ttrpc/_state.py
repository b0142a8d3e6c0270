"""The life of one stream, as a table.

Everything that decides whether a frame is legal at this moment is in this file. It does not know which
side is ours: it speaks of the client's and the server's frames, so both sides are held to the same rules.

The server's last frame ends a stream whatever the client still wanted to send: the protocol knows no
stream that the server has closed and the client has not. A client may not know that yet, so frames on a
finished stream are not errors when they arrive; `Connection` drops them. They are errors when sent.
"""

from __future__ import annotations

import enum
from typing import Final


class StreamState(enum.Enum):
    IDLE = "idle"  # no frame yet
    UNARY = "unary"  # a unary request was sent: only a response may follow
    OPEN = "open"  # both sides may send data
    CLIENT_CLOSED = "client closed"  # only the server may still send
    FINISHED = "finished"


class Trigger(enum.Enum):
    REQUEST_UNARY = "Request"
    REQUEST_OPEN = "Request [remote open]"
    REQUEST_CLOSED = "Request [remote closed]"
    CLIENT_DATA = "client's Data"
    CLIENT_CLOSE = "client's Data [remote closed]"
    SERVER_DATA = "server's Data"
    SERVER_CLOSE = "server's Data [remote closed]"
    RESPONSE = "Response"


TRANSITIONS: Final[dict[StreamState, dict[Trigger, StreamState]]] = {
    StreamState.IDLE: {
        Trigger.REQUEST_UNARY: StreamState.UNARY,
        Trigger.REQUEST_OPEN: StreamState.OPEN,
        Trigger.REQUEST_CLOSED: StreamState.CLIENT_CLOSED,
    },
    StreamState.UNARY: {
        Trigger.RESPONSE: StreamState.FINISHED,
    },
    StreamState.OPEN: {
        Trigger.CLIENT_DATA: StreamState.OPEN,
        Trigger.CLIENT_CLOSE: StreamState.CLIENT_CLOSED,
        Trigger.SERVER_DATA: StreamState.OPEN,
        Trigger.SERVER_CLOSE: StreamState.FINISHED,
        Trigger.RESPONSE: StreamState.FINISHED,
    },
    StreamState.CLIENT_CLOSED: {
        Trigger.SERVER_DATA: StreamState.CLIENT_CLOSED,
        Trigger.SERVER_CLOSE: StreamState.FINISHED,
        Trigger.RESPONSE: StreamState.FINISHED,
    },
    StreamState.FINISHED: {},
}
