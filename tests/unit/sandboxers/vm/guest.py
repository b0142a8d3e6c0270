"""The guest's side of streams and calls, in this process."""

from __future__ import annotations

import socket

from google.protobuf.message import Message

from common.errors import DeadlineExceeded, ResourceExhausted, Unavailable


class Guest:
    """The guest's side of streams, in this process: what `Streams` asks of a `GuestClient`."""

    def __init__(self) -> None:
        self.streams: dict[str, socket.socket] = {}
        self.ended: dict[str, int] = {}
        self.calls: list[tuple[str, Message]] = []
        self.refuses = False
        self.silent = False
        self.deaf = False
        self.exhausted = False

    async def open_tasks(self, timeout_s: float) -> socket.socket:
        if self.deaf:
            raise DeadlineExceeded("silence")
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours

    async def open_stream(self, stream_id: str, timeout_s: float) -> socket.socket:
        if self.refuses:
            raise Unavailable("no")
        if self.silent or self.deaf:
            raise DeadlineExceeded("silence")
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        if stream_id in self.streams:
            self.streams[stream_id].close()
        self.streams[stream_id] = theirs
        return ours

    async def end_stream(self, stream_id: str, length: int, timeout_s: float) -> None:
        self.ended[stream_id] = length

    async def call_task(
        self, method: str, request: Message, answer: type[Message], timeout_s: float
    ) -> Message:
        if self.refuses:
            raise Unavailable("no")
        self.calls.append((method, request))
        return answer()

    async def stats(self, timeout_s: float) -> None:
        if self.refuses:
            raise Unavailable("no")
        if self.silent:
            raise DeadlineExceeded("silence")
        if self.exhausted:
            raise ResourceExhausted("no memory")

    def close(self) -> None:
        """Close the guest's ends."""
        for sock in self.streams.values():
            sock.close()
