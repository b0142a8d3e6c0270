"""No write is longer than what every vsock carries."""

from __future__ import annotations

import socket
from typing import Any

from google.protobuf.wrappers_pb2 import BytesValue

from common.ttrpc import CallContext, Client, Method, Server, Service

LIMIT_BYTES = 32 << 10


class RecordingSocket(socket.socket):
    """Writes down how much is sent at a time."""

    sizes: list[int]

    def send(self, data: Any, flags: int = 0, /) -> int:
        self.sizes.append(len(data))
        return super().send(data, flags)


async def echo(_: object, request: BytesValue, context: CallContext) -> BytesValue:
    return request


async def test_large_requests_and_answers_go_in_pieces() -> None:
    a, b = socket.socketpair()
    ours, theirs = (RecordingSocket(fileno=sock.detach()) for sock in (a, b))
    ours.sizes, theirs.sizes = [], []
    server = Server({"test.Echo": Service({"Echo": Method(BytesValue, echo)}, None)})
    server.adopt(theirs)
    async with Client(ours) as client:
        value = BytesValue(value=bytes(range(256)) * 4096)
        assert await client.call("test.Echo", "Echo", value, BytesValue, timeout_s=20) == value
    server.close()
    for sizes in (ours.sizes, theirs.sizes):
        assert sum(sizes) > 1 << 20
        assert max(sizes) <= LIMIT_BYTES
