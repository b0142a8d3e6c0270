"""The two ends of a stream as handlers and callers see them: receive messages until None, send messages."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from common.ttrpc._errors import StatusCode, StatusError
from common.ttrpc._socket import FrameSocket

UNREAD_LIMIT: Final = 8 << 20
_MESSAGE_COST: Final = (
    64  # what an empty message counts against the limit, so that their number is limited too
)

Received = TypeVar("Received", bound=Message)


class MessageStream(Generic[Received]):
    """What both ends share. ttrpc has no flow control: what is not received is kept, up to `UNREAD_LIMIT`
    bytes.
    """

    __slots__ = ("_ended", "_error", "_socket", "_stream_id", "_type", "_unread", "_unread_size", "_waiter")

    def __init__(self, socket: FrameSocket, stream_id: int, received: type[Received]) -> None:
        self._socket = socket
        self._stream_id = stream_id
        self._type = received
        self._unread: deque[bytes] = deque()
        self._unread_size = 0
        self._ended = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def send(self, message: Message) -> None:
        """Send a message; waits while the peer is slow to read.

        Raises ConnectionLost, or LocalProtocolError if this side of the stream is closed or the message is
        too large.
        """
        self._socket.send_data(self._stream_id, message.SerializeToString(), close=False)
        await self._socket._drain()

    async def receive(self) -> Received | None:
        """Return the next message, or None once the peer has sent its last one. One caller at a time.

        Raises StatusError if the stream failed or the bytes are no such message, ConnectionLost if the
        connection did.
        """
        while not self._unread:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            if self._waiter is not None:
                raise RuntimeError("the stream is already being received from")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        payload = self._unread.popleft()
        self._unread_size -= len(payload) + _MESSAGE_COST
        try:
            return self._type.FromString(payload)
        except DecodeError:
            text = f"the bytes are no {self._type.DESCRIPTOR.full_name}"
            raise StatusError(StatusCode.INVALID_ARGUMENT, text) from None

    async def __aiter__(self) -> AsyncIterator[Received]:
        while (message := await self.receive()) is not None:
            yield message

    # ── called by the connection ───────────────────────────────────────────────────────────────

    def deliver(self, payload: bytes | None, ended: bool) -> bool:
        """Keep what arrived; False: the limit is reached, nothing was kept."""
        if payload is not None:
            size = len(payload) + _MESSAGE_COST
            if self._unread_size + size > UNREAD_LIMIT:
                return False
            self._unread.append(payload)
            self._unread_size += size
        self._ended = self._ended or ended
        self._wake()
        return True

    def fail(self, error: Exception) -> None:
        """Raise this in `receive` once the messages that arrived before are taken."""
        self._error = error
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class ServerStream(MessageStream[Received]):
    """The handler's end. Returning from the handler ends the stream."""

    __slots__ = ()
