"""The connection of a relay to its far end, as a client: what is sent on it, and what may come back."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final, Protocol

from common.ttrpc._connection import Connection, Role
from common.ttrpc._errors import ProtocolError, RemoteProtocolError
from common.ttrpc._events import Event, ResponseReceived
from common.ttrpc._frames import RESPONSE, Frame, OversizedFrame
from common.ttrpc._journal import Journal
from common.ttrpc._marks import Spilled
from common.ttrpc._socket import FrameSocket
from common.ttrpc._state import StreamState
from proto.gen.ttrpc.request_pb2 import Response

QUEUE_LIMIT: Final = 8 << 20


class Relaying(Protocol):
    """Whose link it is: it is told of answers, and of the end."""

    @property
    def id(self) -> int: ...
    @property
    def journal(self) -> Journal: ...

    def answered(self, stream_id: int, response: Response, frame: Frame) -> None:
        """Called before the frame is consumed; raises RemoteProtocolError if it is no answer to what was asked."""
        ...

    def link_lost(self, reason: Exception | None) -> None:
        """Called once, unless the link was closed from this side."""
        ...


class Link(FrameSocket):
    """The client's side of one connection to the far end."""

    __slots__ = ("_may_repeat", "_relay")

    def __init__(self, relay: Relaying, sock: socket.socket, *, recovered: bool = False) -> None:
        """:param recovered: an earlier process has used it, which may have handled the next frame already; it is read
        from when `resume` is called.
        """
        codec = Connection(Role.CLIENT)
        super().__init__(sock, codec, asyncio.get_running_loop(), QUEUE_LIMIT)
        self._relay: Relaying | None = relay
        self._may_repeat = recovered
        if recovered:
            self._pause()
        else:
            self.start_reading()

    def resume(self) -> None:
        """Read on."""
        self._unpause()

    def send(self, stream_id: int, frame: bytes) -> None:
        """Write a request."""
        if self._closed:
            return  # whoever waits for its answer is told by `link_lost`
        self._codec.begin_unary(stream_id)
        self._write(frame)

    def go_on_sending(self, rest: Spilled) -> None:
        """Send what an earlier process has not sent of a request."""
        self._enqueue(rest, 0)

    def close(self) -> None:
        """Close it from this side."""
        self._relay = None
        self._close(None)

    def _examine(self, frame: Frame | OversizedFrame) -> tuple[Event | None, Frame]:
        assert isinstance(frame, Frame)
        if frame.type != RESPONSE:
            raise RemoteProtocolError(
                f"stream {frame.stream_id}: a frame of type {frame.type} instead of an answer"
            )
        may_repeat, self._may_repeat = self._may_repeat, False
        if may_repeat and self._codec.stream_state(frame.stream_id) is not StreamState.UNARY:
            return None, frame
        return self._codec.receive_frame(frame), frame

    def _acts_first(self, examined: Any) -> bool:
        return True

    def _act(self, examined: tuple[Event | None, Frame]) -> None:
        event, frame = examined
        if event is None or self._relay is None:
            return
        if type(event) is not ResponseReceived:
            self._close(RemoteProtocolError(f"stream {frame.stream_id}: the frame is no answer"))
            return
        try:
            self._relay.answered(event.stream_id, event.response, frame)
        except ProtocolError as error:
            self._close(error)

    def _stop_peeking(self) -> None:
        # What is read and not yet answered would die with this process.
        self._refuse_pieces("an answer")

    def _spill(self, frame: bytes) -> Spilled | None:
        if self._relay is None:
            return None
        spilled = self._relay.journal.spill(self._relay.id, frame)
        return None if spilled is None else Spilled(spilled)

    def _unspilled(self, frame: Spilled) -> None:
        if self._relay is not None:
            self._relay.journal.unspilled(self._relay.id, frame.serial)

    def _lost(self, reason: Exception | None) -> None:
        relay, self._relay = self._relay, None
        if relay is not None:
            relay.link_lost(reason)
