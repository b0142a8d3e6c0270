"""A relay that is killed at any instruction: `python -m tests.unit.common.ttrpc.mortal_relay <directory>`.

Its far end is the server at `<directory>/far`.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys

from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BytesValue

from common.failpoints import arm
from common.journal import ConnectionJournal
from common.ttrpc import CallContext, Method, RelayedMethod, Service
from common.ttrpc.relay import RelayContext, RelayServer
from tests.unit.common.ttrpc.mortal import LISTENER, NAME, StoreOfTest


class Relay:
    """What the handlers of the relay act on."""

    def nothing(self, request: BytesValue) -> Message | None:
        return None

    def checked(self, request: BytesValue, payload: bytes) -> BytesValue:
        return BytesValue.FromString(payload)

    def gone(self, request: BytesValue) -> BytesValue:
        return BytesValue(value=b"without the far end: " + request.value)

    async def prepared(self, request: BytesValue, context: CallContext) -> BytesValue:
        """Wait for a moment, hand on the call with a changed request, and wait again."""
        assert isinstance(context, RelayContext)
        await asyncio.sleep(0.001)
        answer = await context.forward(BytesValue(value=request.value[:16] + b"+"), BytesValue)
        await asyncio.sleep(0.001)
        assert answer.value == request.value[:16] + b"+"
        return request

    async def local(self, request: BytesValue, _: CallContext) -> BytesValue:
        return request


_RELAYED = RelayedMethod(BytesValue, Relay.nothing, Relay.checked, Relay.gone)
METHODS: dict[str, Method | RelayedMethod] = {
    "AddBlindly": _RELAYED,
    "Wait": _RELAYED,
    "Release": _RELAYED,
    "LookLater": _RELAYED,
    "Nonsense": _RELAYED,
    "Add": Method(BytesValue, Relay.prepared, journaled=True, repeatable=True),
    "Look": Method(BytesValue, Relay.local),
}


async def connect_to(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    await asyncio.sleep(0)
    return sock


async def serve(directory: str) -> None:
    """Take over what an earlier one has left, and serve until killed."""
    handed = json.loads(os.environ["STORE_HANDED"])
    store = StoreOfTest(socket.socket(fileno=int(os.environ["STORE_FD"])), handed, f"{directory}/serials")
    journal = ConnectionJournal(f"{directory}/journal", store)
    server = RelayServer(
        {NAME: Service(METHODS, Relay())},
        links=journal,
        connect=lambda: connect_to(f"{directory}/far"),
        on_lost=lambda reason: server.bereave(reason),
    )
    arm()
    listener = socket.socket(fileno=store.take(LISTENER)[0])
    path = listener.getsockname()
    server.listen(listener)
    journal.adopt_into(server, path)
    journal.abandon_rest(keep=False)
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
