"""The QMP client against a server on a real socket, well-behaved and not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import DeadlineExceeded, Internal, Unavailable
from common.transport.streams import listen_unix
from vmm.hypervisors.qemu.monitor import Monitor
from vmm.hypervisors.qemu.qmp import Event

GREETING = {"QMP": {"version": {"qemu": {"major": 9, "minor": 1, "micro": 2}}, "capabilities": []}}


class Server:
    """QEMU's side: a listening socket and the connection that comes."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._listener = listen_unix(path)
        self._listener.setblocking(True)
        self.connection: socket.socket | None = None
        self._lines = b""

    async def accept(self) -> None:
        connection, _ = await asyncio.to_thread(self._listener.accept)
        connection.setblocking(False)
        self.connection = connection

    def say(self, *messages: Any) -> None:
        assert self.connection is not None
        self.connection.sendall(b"".join(json.dumps(message).encode() + b"\r\n" for message in messages))

    async def hear(self) -> dict[str, Any]:
        assert self.connection is not None
        while b"\n" not in self._lines:
            self._lines += await asyncio.get_running_loop().sock_recv(self.connection, 4096)
        line, _, self._lines = self._lines.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    async def answer(self, **fields: Any) -> dict[str, Any]:
        """Hear a command and answer it."""
        command = await self.hear()
        self.say({"id": command["id"], **(fields or {"return": {}})})
        return command

    async def negotiate(self) -> None:
        await self.accept()
        self.say(GREETING)
        assert (await self.answer())["execute"] == "qmp_capabilities"

    def hang_up(self) -> None:
        assert self.connection is not None
        self.connection.close()

    def close(self) -> None:
        self._listener.close()
        if self.connection is not None:
            self.connection.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(str(tmp_path / "qmp"))
    yield server
    server.close()


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
async def monitor(server: Server, events: list[Event]) -> AsyncIterator[Monitor]:
    connecting = asyncio.create_task(Monitor.connect(server.path, events.append, 5))
    await server.negotiate()
    monitor = await connecting
    yield monitor
    monitor.close()


async def test_it_negotiates_and_learns_the_version(monitor: Monitor) -> None:
    assert monitor.version == "9.1.2"
    assert not monitor.is_closed


async def test_commands_get_their_own_answers(server: Server, monitor: Monitor) -> None:
    first = asyncio.create_task(monitor.execute("query-status"))
    second = asyncio.create_task(monitor.execute("device_del", {"id": "x"}))
    one, two = await server.hear(), await server.hear()
    assert (one["execute"], two["arguments"]) == ("query-status", {"id": "x"})
    server.say({"return": 2, "id": two["id"]}, {"return": 1, "id": one["id"]})
    assert (await first, await second) == (1, 2)


async def test_a_refusal_is_an_error_with_the_words_of_qemu(server: Server, monitor: Monitor) -> None:
    command = asyncio.create_task(monitor.execute("device_add"))
    await server.answer(error={"class": "GenericError", "desc": "no slot"})
    with pytest.raises(Internal, match="QEMU: no slot"):
        await command


async def test_events_come_in_between(server: Server, monitor: Monitor, events: list[Event]) -> None:
    command = asyncio.create_task(monitor.execute("cont"))
    sent = await server.hear()
    server.say(
        {"event": "RESUME"}, {"return": {}, "id": sent["id"]}, {"event": "SHUTDOWN", "data": {"reason": "x"}}
    )
    await command
    monitor.drain()
    assert events == [Event("RESUME", {}), Event("SHUTDOWN", {"reason": "x"})]


async def test_descriptors_go_along(server: Server, monitor: Monitor) -> None:
    ours, theirs = os.pipe()
    command = asyncio.create_task(monitor.execute("getfd", {"fdname": "tap"}, fds=[theirs]))
    assert server.connection is not None
    await asyncio.sleep(0.05)
    data, fds, _, _ = socket.recv_fds(server.connection, 4096, 1)
    server.say({"return": {}, "id": json.loads(data)["id"]})
    await command
    os.write(fds[0], b"x")
    assert os.read(ours, 1) == b"x"
    for fd in (ours, theirs, *fds):
        os.close(fd)


async def test_no_answer_in_time_is_an_error_and_a_late_one_is_nothing(
    server: Server, monitor: Monitor
) -> None:
    with pytest.raises(DeadlineExceeded, match=r"stop within 0.05 s"):
        await monitor.execute("stop", timeout_s=0.05)
    late = await server.hear()
    server.say({"return": "late", "id": late["id"]})
    command = asyncio.create_task(monitor.execute("cont"))
    await server.answer()
    assert await command == {}


async def test_the_end_of_qemu_ends_what_waits_for_it(server: Server, monitor: Monitor) -> None:
    command = asyncio.create_task(monitor.execute("stop"))
    await server.hear()
    server.hang_up()
    with pytest.raises(Unavailable, match="closed"):
        await command
    assert monitor.is_closed
    with pytest.raises(Unavailable, match="closed"):
        await monitor.execute("cont")


@pytest.mark.parametrize("junk", ["junk\n", '{"QMP": {}}\n', "[]\n"])
async def test_what_is_not_qmp_ends_the_connection(server: Server, monitor: Monitor, junk: str) -> None:
    command = asyncio.create_task(monitor.execute("stop"))
    await server.hear()
    assert server.connection is not None
    server.connection.sendall(junk.encode())
    with pytest.raises(Unavailable):
        await command
    assert monitor.is_closed


async def test_who_does_not_read_delays_nobody(server: Server, monitor: Monitor) -> None:
    sent = 0
    with pytest.raises(Unavailable, match="does not read"):
        while True:
            sent += 1
            waiting = asyncio.create_task(monitor.execute("echo", {"text": "x" * 60_000}, timeout_s=0.01))
            await waiting_or_late(waiting)
    assert sent > 1


async def waiting_or_late(task: asyncio.Task[Any]) -> None:
    """Raise what the task raises, but for its deadline."""
    with contextlib.suppress(DeadlineExceeded):
        await task


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="nonesuch"):
        await Monitor.connect(str(tmp_path / "nonesuch"), lambda _event: None, 1)


async def test_one_that_does_not_greet_is_given_up(server: Server) -> None:
    with pytest.raises(DeadlineExceeded, match="its greeting"):
        await Monitor.connect(server.path, lambda _event: None, 0.05)
    await server.accept()


async def test_one_that_goes_away_instead_of_greeting(server: Server) -> None:
    connecting = asyncio.create_task(Monitor.connect(server.path, lambda _event: None, 5))
    await server.accept()
    server.hang_up()
    with pytest.raises(Unavailable):
        await connecting


async def test_a_flood_of_events_does_not_keep_the_daemon_from_others(server: Server) -> None:
    def flood(connection: socket.socket) -> None:
        connection.setblocking(True)
        event = json.dumps({"event": "RTC_CHANGE", "data": {"offset": 1}}).encode() + b"\n"
        with contextlib.suppress(OSError):
            while time.monotonic() < over:
                connection.sendall(event * 1000)

    connecting = asyncio.create_task(Monitor.connect(server.path, lambda _: None, 5))
    await server.negotiate()
    monitor = await connecting
    assert server.connection is not None
    over = time.monotonic() + 1.0
    flooding = asyncio.create_task(asyncio.to_thread(flood, server.connection))
    turns = 0
    while not flooding.done():
        await asyncio.sleep(0)
        turns += time.monotonic() < over
    monitor.close()
    assert turns > 10
