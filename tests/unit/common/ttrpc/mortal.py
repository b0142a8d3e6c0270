"""A server that is killed at any instruction: `python -m tests.unit.common.ttrpc.mortal <directory>`.

Its sockets are kept by `keeper.Keeper`, its requests by the journal in the directory, and what its handlers change is
one line in a file there for each request.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence

from google.protobuf.wrappers_pb2 import BytesValue

from common.descriptors.names import name_of
from common.descriptors.serials import Serials
from common.failpoints import arm
from common.journal import ConnectionJournal
from common.ttrpc import CallContext, Method, Server, ServerStream, Service, StreamMethod

NAME = "sandboxd.test.Interop"
LISTENER = "p0"


class StoreOfTest:
    """Descriptors that are kept by the test (`DescriptorStore`), told over a socket that blocks when it is full."""

    keeps = True

    def __init__(self, sock: socket.socket, handed: dict[str, int], serials_path: str) -> None:
        self._sock = sock
        self._handed = handed
        self._serials = Serials(serials_path)
        for fd in handed.values():
            os.set_inheritable(fd, False)

    def new_name(self, kind: str) -> str:
        return name_of(kind, self._serials.next())

    def put(self, name: str, fds: Sequence[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        self._sock.sendmsg([b"put " + name.encode()], rights)

    def remove(self, name: str) -> None:
        self._sock.send(b"remove " + name.encode())

    def when_sent(self, callback: Callable[[], None]) -> None:
        callback()

    def take(self, name: str) -> list[int]:
        return [self._handed.pop(name)] if name in self._handed else []

    def untaken(self) -> list[str]:
        return list(self._handed)


class Mortal:
    """Handlers that say what they did by what they answer and by the lines of two files."""

    def __init__(self, directory: str) -> None:
        self._done = f"{directory}/done"
        self._released = f"{directory}/released"
        self._changed = asyncio.Event()

    async def add(self, request: BytesValue, context: CallContext) -> BytesValue:
        """Write the first 16 bytes down, unless a replay finds them there."""
        if not context.replayed or request.value[:16] not in _lines(self._done):
            _append(self._done, request.value[:16])
        await asyncio.sleep(0)
        return request

    async def add_blindly(self, request: BytesValue, context: CallContext) -> BytesValue:
        _append(self._done, request.value[:16])
        return request

    async def release(self, request: BytesValue, context: CallContext) -> BytesValue:
        _append(self._released, request.value)
        self._changed.set()
        self._changed = asyncio.Event()
        return request

    async def wait(self, request: BytesValue, context: CallContext) -> BytesValue:
        while request.value not in _lines(self._released):
            await self._changed.wait()
        return request

    async def look(self, request: BytesValue, context: CallContext) -> BytesValue:
        return request

    async def look_later(self, request: BytesValue, context: CallContext) -> BytesValue:
        await asyncio.sleep(0.002)
        return request

    async def grow(self, request: BytesValue, context: CallContext) -> BytesValue:
        """Answer with as many copies as the number in front of the first blank says."""
        return BytesValue(value=request.value * int(request.value.split()[0]))

    async def chat(self, stream: ServerStream[BytesValue], context: CallContext) -> None:
        async for message in stream:
            await stream.send(message)


METHODS: dict[str, Method | StreamMethod] = {
    "Add": Method(BytesValue, Mortal.add, journaled=True),
    "AddBlindly": Method(BytesValue, Mortal.add_blindly, journaled=True),
    "Release": Method(BytesValue, Mortal.release, journaled=True),
    "Wait": Method(BytesValue, Mortal.wait, journaled=True, repeatable=True),
    "Look": Method(BytesValue, Mortal.look),
    "LookLater": Method(BytesValue, Mortal.look_later),
    "Grow": Method(BytesValue, Mortal.grow),
    "GrowJournaled": Method(BytesValue, Mortal.grow, journaled=True),
    "Chat": StreamMethod(BytesValue, Mortal.chat),
}


def _lines(path: str) -> list[bytes]:
    try:
        with open(path, "rb") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


def _append(path: str, line: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, line + b"\n")
    os.close(fd)


async def serve(directory: str) -> None:
    """Take over what an earlier one has left, and serve until killed."""
    store = StoreOfTest(
        socket.socket(fileno=int(os.environ["STORE_FD"])),
        json.loads(os.environ["STORE_HANDED"]),
        f"{directory}/serials",
    )
    journal = ConnectionJournal(f"{directory}/journal", store)
    server = Server({NAME: Service(METHODS, Mortal(directory))}, journal=journal)
    arm()
    listener = socket.socket(fileno=store.take(LISTENER)[0])
    path = listener.getsockname()
    server.listen(listener)
    journal.adopt_into(server, path)
    journal.abandon_rest(keep=False)
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
