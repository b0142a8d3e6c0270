"""Connections are taken as they come; without descriptors they wait, and so does the loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from common.accepting import Acceptor
from common.transport.streams import listen_unix
from tests.unit.common.ttrpc.peers import until


class Door:
    """A listening socket whose connections are kept."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._clients: list[socket.socket] = []
        self.taken: list[socket.socket] = []
        self.taken_in_all = 1000
        self.acceptor = Acceptor(listen_unix(self._path), self._take)

    def knock(self, count: int = 1) -> None:
        for _ in range(count):
            client = socket.socket(socket.AF_UNIX)
            self._clients.append(client)
            client.connect(self._path)

    def _take(self, sock: socket.socket) -> None:
        self.taken.append(sock)
        if len(self.taken) == self.taken_in_all:
            self.acceptor.close()

    def close(self) -> None:
        self.acceptor.close()
        for sock in (*self.taken, *self._clients):
            sock.close()


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    door = Door(tmp_path / "door")
    yield door
    door.close()


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    fill = [os.dup(0)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))
        with contextlib.suppress(OSError):
            while True:
                fill.append(os.dup(0))
        yield
    finally:
        for fd in fill:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_all_who_come_at_once_are_taken(door: Door) -> None:
    door.knock(40)
    await until(lambda: len(door.taken) == 40)
    assert not any(sock.getblocking() for sock in door.taken)


class CountingListener(socket.socket):
    """Knows how often it was asked for a connection."""

    accepts = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.accepts += 1
        return super().accept()


async def test_nobody_is_asked_for_who_is_not_there(tmp_path: Path) -> None:
    listener = CountingListener(socket.AF_UNIX)
    listener.bind(str(tmp_path / "door"))
    listener.listen()
    taken: list[socket.socket] = []
    acceptor = Acceptor(listener, taken.append)
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        for client in (one, other):
            client.connect(str(tmp_path / "door"))
        await until(lambda: len(taken) == 2)
        await asyncio.sleep(0)
        assert listener.accepts == 2
    acceptor.close()
    for sock in taken:
        sock.close()


async def test_without_descriptors_it_waits_and_then_goes_on(door: Door) -> None:
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
    door.knock()
    with no_descriptors():
        cpu_s = time.process_time()
        await asyncio.sleep(0.1)
        assert time.process_time() - cpu_s < 0.05, "it spins"
        assert not door.taken
    assert len(told) == 1
    assert "Too many open files" in told[0]
    await until(lambda: len(door.taken) == 1)


async def test_it_can_be_closed_while_it_waits(door: Door) -> None:
    door.knock()
    with no_descriptors():
        await asyncio.sleep(0.01)
    door.acceptor.close()
    door.acceptor.close()
    with pytest.raises(ConnectionRefusedError):
        door.knock()


async def test_it_can_be_closed_by_whom_it_hands_connections_to(door: Door) -> None:
    door.taken_in_all = 2
    door.knock(3)
    await until(lambda: len(door.taken) == 2)
    with pytest.raises(ConnectionRefusedError):
        door.knock()
    assert len(door.taken) == 2
