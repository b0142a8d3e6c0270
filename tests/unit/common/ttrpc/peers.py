"""A server with a few methods on a real unix socket, and ways to talk to it: the client, and raw bytes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.wrappers_pb2 import BytesValue

from common.ttrpc import (
    CallContext,
    Client,
    Frame,
    FrameBuffer,
    Method,
    OversizedFrame,
    Server,
    ServerStream,
    Service,
    StatusCode,
    StatusError,
    StreamMethod,
    encode_frame,
)
from proto.gen.ttrpc.request_pb2 import KeyValue, Request, Response

NAME = "test.Bench"


class Bench:
    """What the handlers act on, and what tests look at afterwards."""

    def __init__(self) -> None:
        self.contexts: list[CallContext] = []
        self.cancelled = 0
        self.parked = 0
        self.streams_ended = 0

    async def echo(self, request: BytesValue, context: CallContext) -> BytesValue:
        self.contexts.append(context)
        return request

    async def park(self, request: BytesValue, context: CallContext) -> BytesValue:
        self.parked += 1
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.parked -= 1
        return request

    async def nap(self, request: BytesValue, context: CallContext) -> BytesValue:
        await asyncio.sleep(float(request.value or b"0"))
        return request

    async def fail(self, request: BytesValue, context: CallContext) -> BytesValue:
        raise StatusError(StatusCode.NOT_FOUND, f"no {request.value.decode('utf-8', 'surrogateescape')}")

    async def crash(self, request: BytesValue, context: CallContext) -> BytesValue:
        raise KeyError("oops")

    async def nothing(self, request: BytesValue, context: CallContext) -> Any:
        return None

    async def inflate(self, request: BytesValue, context: CallContext) -> BytesValue:
        return BytesValue(value=bytes(int(request.value)))

    async def chat(self, stream: ServerStream[BytesValue], context: CallContext) -> None:
        try:
            async for message in stream:
                await stream.send(message)
        finally:
            self.streams_ended += 1

    async def join(self, stream: ServerStream[BytesValue], context: CallContext) -> BytesValue:
        return BytesValue(value=b"".join([message.value async for message in stream]))

    async def count(self, stream: ServerStream[BytesValue], context: CallContext) -> None:
        first = await stream.receive()
        assert first is not None
        for number in range(int(first.value)):
            await stream.send(BytesValue(value=b"%d" % number))

    async def deaf(self, stream: ServerStream[BytesValue], context: CallContext) -> None:
        await asyncio.get_running_loop().create_future()


METHODS: dict[str, Method | StreamMethod] = {
    "Echo": Method(BytesValue, Bench.echo),
    "Park": Method(BytesValue, Bench.park, journaled=True),
    "Nap": Method(BytesValue, Bench.nap, journaled=True),
    "Fail": Method(BytesValue, Bench.fail),
    "Crash": Method(BytesValue, Bench.crash),
    "Nothing": Method(BytesValue, Bench.nothing),
    "Inflate": Method(BytesValue, Bench.inflate),
    "Chat": StreamMethod(BytesValue, Bench.chat),
    "Join": StreamMethod(BytesValue, Bench.join),
    "Count": StreamMethod(BytesValue, Bench.count),
    "Deaf": StreamMethod(BytesValue, Bench.deaf),
}


class Raw:
    """A peer that sends whatever bytes it likes."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.buffer = FrameBuffer()

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def frame(self) -> Frame | OversizedFrame | None:
        """The next frame, or None at the end of the connection."""
        while (frame := self.buffer.next_frame()) is None:
            try:
                data = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
            except ConnectionResetError:  # closed with bytes of ours unread
                return None
            if not data:
                return None
            self.buffer.feed(data)
        return frame

    async def response(self) -> tuple[int, Response]:
        frame = await self.frame()
        assert isinstance(frame, Frame)
        assert frame.type == 2
        return frame.stream_id, Response.FromString(frame.data)

    def close(self) -> None:
        self.sock.close()


class Place:
    """One server on one socket, and everything a test opened on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bench = Bench()
        self.server = self.make()
        self._raws: list[Raw] = []
        self._clients: list[Client] = []

    def make(self, **options: Any) -> Server:
        return Server({NAME: Service(METHODS, self.bench)}, **options)

    def listen(self, **options: Any) -> None:
        if options:
            self.server = self.make(**options)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(self.path))
        sock.listen(128)
        self.server.listen(sock)

    async def client(self) -> Client:
        client = await Client.connect(self.path, timeout_s=20)
        self._clients.append(client)
        return client

    def raw(self) -> Raw:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(self.path))
        except OSError:
            sock.close()
            raise
        self._raws.append(Raw(sock))
        return self._raws[-1]

    async def close(self) -> None:
        for raw in self._raws:
            raw.close()
        for client in self._clients:
            client.close()
        self.server.close()
        await self.server.wait_closed()


def request_frame(
    stream_id: int,
    method: str,
    value: bytes = b"",
    *,
    flags: int = 0,
    service: str = NAME,
    timeout_nano: int = 0,
    metadata: tuple[tuple[str, str], ...] = (),
) -> bytes:
    request = Request(
        service=service,
        method=method,
        payload=BytesValue(value=value).SerializeToString(),
        timeout_nano=timeout_nano,
        metadata=[KeyValue(key=key, value=value) for key, value in metadata],
    )
    return encode_frame(stream_id, 1, flags, request.SerializeToString())


async def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    """Let the loop run until the condition holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - any condition, not only what sets an event
            await asyncio.sleep(0.001)
