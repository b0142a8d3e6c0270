"""A service that deposits descriptors when it is asked to, and tells what those before it have deposited.

    depositor.py [--supervise] --config SOCKET

Requests come over the unix socket, each on a connection of its own: a line of JSON in, one out.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from common.descriptors.kinds import link_of
from common.descriptors.names import EXIT_LOG_NAME
from common.descriptors.notify import barrier, notify, open_store
from common.descriptors.store import DescriptorStore
from common.process.supervisor import FLAG, supervise

BARRIER_LIMIT_S = 120.0


@contextmanager
def made(kind: str, text: str) -> Iterator[int]:
    """Make a descriptor that can be told from others by a text."""
    other = -1
    match kind:
        case "file":
            fd = os.memfd_create("deposit")
            os.pwrite(fd, text.encode(), 0)
        case "hung-up pipe":
            fd, other = os.pipe()
            os.write(other, text.encode())
            os.close(other)
        case "hung-up connection":
            near, far = socket.socketpair()
            far.sendall(text.encode())
            far.close()
            fd = near.detach()
        case "process that has ended":
            pid = os.posix_spawn("/bin/true", ["/bin/true"], {})
            fd = os.pidfd_open(pid)
            os.waitpid(pid, 0)
        case _:
            raise ValueError(kind)
    try:
        yield fd
    finally:
        os.close(fd)


def text_of(fd: int) -> str:
    """Return the text of a descriptor that `made` has made; its kind, where it can have none."""
    link = link_of(fd)
    if link.startswith("/memfd:"):
        return os.pread(fd, 64, 0).decode()
    if link.startswith(("pipe:", "socket:")):
        text = os.read(fd, 64)
        assert os.read(fd, 1) == b"", "the other end is not closed"
        return text.decode()
    assert select.select([fd], [], [], 0)[0], "the process has not ended"
    return "process that has ended"


class Depositor:
    """Does what it is asked to."""

    def __init__(self, store: DescriptorStore) -> None:
        self._store = store
        self._handed: dict[str, list[str]] = {}
        for name in store.untaken():
            if name != EXIT_LOG_NAME:
                fds = store.take(name)
                self._handed[name] = sorted(map(text_of, fds))
                for fd in fds:
                    os.close(fd)
        self._names = set(self._handed)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        # Who only tries whether anybody listens asks for nothing.
        if request := await reader.readline():
            writer.write(json.dumps(await self._answer(**json.loads(request))).encode() + b"\n")
            await writer.drain()
        writer.close()

    async def _answer(self, do: str, **arguments: Any) -> Any:
        match do:
            case "handed":
                return self._handed
            case "put":
                self._put(**arguments)
            case "share":
                self._share(**arguments)
            case "remove":
                self._remove(arguments["names"])
            case "remove all":
                self._remove(self._names)
            case "barrier":
                return await barrier(BARRIER_LIMIT_S)
            case "exit":
                os._exit(arguments["code"])
        return None

    def _put(
        self, groups: Mapping[str, Sequence[str]], kind: str = "file", *, then_die: bool = False
    ) -> None:
        """Put a descriptor for each text; a group is one message."""
        self._names |= groups.keys()
        for name, texts in groups.items():
            with ExitStack() as made_fds:
                self._store.put(name, [made_fds.enter_context(made(kind, text)) for text in texts])
        if then_die:
            signal.raise_signal(signal.SIGKILL)

    def _share(self, names: Sequence[str]) -> None:
        """Put one open file into several groups."""
        self._names |= set(names)
        with made("file", "shared") as fd:
            for name in names:
                self._store.put(name, [fd])

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            self._store.remove(name)


async def main(path: str) -> None:
    """Serve until killed."""
    depositor = Depositor(open_store())
    if os.path.lexists(path):
        os.unlink(path)
    server = await asyncio.start_unix_server(depositor.serve, path)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, os._exit, 0)
    notify("READY=1")
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    if FLAG in sys.argv:
        supervise(sys.orig_argv)
    asyncio.run(main(sys.argv[-1]))
