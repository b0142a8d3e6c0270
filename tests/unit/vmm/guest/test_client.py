"""The host's calls: answers, deadlines, and the death of the machine."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from types import MappingProxyType

import pytest
from google.protobuf.empty_pb2 import Empty

from common.errors import DeadlineExceeded, Internal, NotFound, Unavailable
from common.transport.unix import UnixTransport
from common.ttrpc import CallContext, Method, Server, Service, StatusError
from proto.gen.sandboxd.agent.v1 import agent_pb2 as api
from vmm.guest.client import GuestClient
from vmm.protocol import SANDBOX_SERVICE, STREAM_PORT, TASK_PORT

TIMEOUT_S = 20.0


class FakeAgent:
    """Answers as an agent might, or might not."""

    def __init__(self, transport: UnixTransport) -> None:
        self.drifts = [-5_000_000_000, 100]
        self.hangs = asyncio.Event()
        self._server = Server({SANDBOX_SERVICE: Service(METHODS, self)})
        self._server.listen(transport.listen(TASK_PORT))
        self.streams = transport.listen(STREAM_PORT)

    async def set_clock(self, _request: api.SetClockRequest, _: CallContext) -> api.SetClockResponse:
        return api.SetClockResponse(drift_ns=self.drifts.pop(0), source="host")

    async def stats(self, _request: Empty, _: CallContext) -> api.StatsResponse:
        await self.hangs.wait()
        return api.StatsResponse(memory_total_bytes=1)

    async def find_disk(self, request: api.FindDiskRequest, _: CallContext) -> api.FindDiskResponse:
        raise StatusError(int(request.serial), "a guest's \x1b[31m words")

    def close(self) -> None:
        self.hangs.set()
        self._server.close()
        self.streams.close()


METHODS = MappingProxyType(
    {
        "SetClock": Method(api.SetClockRequest, FakeAgent.set_clock),
        "Stats": Method(Empty, FakeAgent.stats),
        "FindDisk": Method(api.FindDiskRequest, FakeAgent.find_disk),
    }
)


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[FakeAgent]:
    agent = FakeAgent(UnixTransport(str(tmp_path)))
    yield agent
    agent.close()
    await asyncio.sleep(0)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[GuestClient]:
    client = GuestClient(UnixTransport(str(tmp_path)))
    yield client
    client.close()
    await asyncio.sleep(0)


async def test_the_clock_is_read_before_it_was_set(agent: FakeAgent, client: GuestClient) -> None:
    reading = await client.set_clock(TIMEOUT_S)
    assert reading.drift_ns == -5_000_000_000
    assert reading.uncertainty_ns > 0
    assert reading.source == "host"


async def test_errors_are_the_guests_with_its_words_made_harmless(
    agent: FakeAgent, client: GuestClient
) -> None:
    with pytest.raises(NotFound, match=r"on FindDisk: a guest's \?\[31m words"):
        await client.find_disk("5", TIMEOUT_S)
    with pytest.raises(Internal):
        await client.find_disk("4711", TIMEOUT_S)


async def test_a_frozen_guest_is_waited_for_until_the_deadline(agent: FakeAgent, client: GuestClient) -> None:
    with pytest.raises(DeadlineExceeded):
        await client.stats(0.05)


async def test_the_machines_death_ends_calls_at_once_and_forever(
    agent: FakeAgent, client: GuestClient
) -> None:
    waiting = asyncio.ensure_future(client.stats(TIMEOUT_S))
    opening = asyncio.ensure_future(client.open_stream("s", TIMEOUT_S))
    await asyncio.sleep(0.05)
    client.lose("QEMU was killed")
    for call in (waiting, opening):
        with pytest.raises(Unavailable, match="QEMU was killed"):
            await call
    with pytest.raises(Unavailable, match="QEMU was killed"):
        await client.stats(TIMEOUT_S)
    with pytest.raises(Unavailable, match="QEMU was killed"):
        await client.open_tasks(TIMEOUT_S)


async def test_a_connection_that_was_lost_is_made_again(
    agent: FakeAgent, client: GuestClient, tmp_path: Path
) -> None:
    agent.hangs.set()
    await client.stats(TIMEOUT_S)
    agent.close()
    await asyncio.sleep(0.05)
    with pytest.raises(Unavailable, match="cannot connect"):
        await client.stats(TIMEOUT_S)
    successor = FakeAgent(UnixTransport(str(tmp_path)))
    successor.hangs.set()
    assert (await client.stats(TIMEOUT_S)).memory_total_bytes == 1
    successor.close()


async def answered(agent: FakeAgent, answer: bytes) -> socket.socket:
    sock, _ = await asyncio.get_running_loop().sock_accept(agent.streams)
    await asyncio.get_running_loop().sock_recv(sock, 100)
    await asyncio.get_running_loop().sock_sendall(sock, answer)
    return sock


async def test_what_follows_the_answer_stays_in_the_stream(agent: FakeAgent, client: GuestClient) -> None:
    opening = asyncio.ensure_future(client.open_stream("out", TIMEOUT_S))
    theirs = await answered(agent, b"OK\nbytes")
    with theirs, await opening as ours:
        assert await asyncio.get_running_loop().sock_recv(ours, 100) == b"bytes"


@pytest.mark.parametrize("answer", [b"ERROR no\n", b"\n", b"ok\n", b"OK \n", b"x" * 200])
async def test_streams_that_are_refused_or_answered_with_garbage(
    agent: FakeAgent, client: GuestClient, answer: bytes
) -> None:
    opening = asyncio.ensure_future(client.open_stream("out", TIMEOUT_S))
    with await answered(agent, answer), pytest.raises(Unavailable):
        await opening
