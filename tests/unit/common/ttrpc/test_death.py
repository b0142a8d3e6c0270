"""A server that is killed at any instruction, and a client that cannot tell it from a slow one."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from common.failpoints import Failpoint
from common.ttrpc import Client, LocalProtocolError, StatusCode, StatusError
from proto.gen.ttrpc.request_pb2 import Response
from tests.unit.common.ttrpc.keeper import Keeper
from tests.unit.common.ttrpc.mortal import NAME
from tests.unit.common.ttrpc.peers import Raw, request_frame

TIMEOUT_S = 20
RANDOM_KILLS_S = 5.0
SIZES = (0, 0, 0, 5_000, 40_000, 70_000, 300_000)
FAILPOINTS = (
    Failpoint.REQUEST_ADMITTED,
    Failpoint.REQUEST_CONSUMED,
    Failpoint.OUTCOME_RECORDED,
    Failpoint.REQUEST_ANSWERED,
)


@pytest.fixture
async def keeper(tmp_path: Path) -> AsyncIterator[Keeper]:
    async with Keeper(tmp_path) as keeper:
        yield keeper


async def call(client: Client, method: str, value: bytes) -> bytes:
    answer = await client.call(NAME, method, BytesValue(value=value), BytesValue, TIMEOUT_S)
    return answer.value


@pytest.mark.parametrize(
    "failpoint", [*(f"{f}=kill@{n}" for f in FAILPOINTS for n in (1, 3, 6)), "connection.kept=kill"]
)
async def test_each_request_is_answered_and_done_once_wherever_the_server_dies(
    keeper: Keeper, failpoint: str
) -> None:
    await keeper.start(failpoint)
    async with await Client.connect(keeper.path, timeout_s=TIMEOUT_S) as client:
        parked = asyncio.create_task(call(client, "Wait", b"end"))
        tags = [b"%016d" % number for number in range(4)]
        for tag in tags[:2]:
            assert await call(client, "AddBlindly", tag) == tag
        assert await asyncio.gather(*(call(client, "AddBlindly", tag) for tag in tags[2:])) == tags[2:]
        assert await call(client, "LookLater", b"a") == b"a"
        for method in ("Grow", "GrowJournaled"):
            assert await call(client, method, b"25000 zeros ") == b"25000 zeros " * 25000
        with pytest.raises(StatusError) as raised:
            await call(client, "Nonsense", b"")
        assert raised.value.code == StatusCode.UNIMPLEMENTED
        assert await call(client, "Release", b"end") == b"end"
        assert await parked == b"end"
        assert await call(client, "Look", b"still here") == b"still here"
    assert keeper.done() == tags
    assert keeper.deaths == 1


@pytest.mark.timeout(60)
async def test_requests_survive_kills_at_random_moments(keeper: Keeper) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    await keeper.start()
    added: list[bytes] = []
    loop = asyncio.get_running_loop()
    end = loop.time() + RANDOM_KILLS_S
    numbers = itertools.count()

    async def work(client: Client) -> int:
        calls = 0
        while loop.time() < end:
            tag = b"%016d" % next(numbers)
            method = rng.choice(("Add", "Add", "Look", "LookLater", "Grow", "GrowJournaled", "Wait", "Chat"))
            value = tag + bytes(rng.choice(SIZES))
            if method == "Add":
                added.append(tag)
                assert await call(client, method, value) == value
            elif method.startswith("Grow"):
                value = b"%d " % rng.choice((1, 3000, 30_000)) + tag
                assert await call(client, method, value) == value * int(value.split()[0])
            elif method == "Wait":
                parked = asyncio.create_task(call(client, "Wait", tag))
                await call(client, "Release", tag)
                assert await parked == tag
            elif method == "Chat":
                await chat(client, value)
            else:
                assert await call(client, method, value) == value
            calls += 1
        return calls

    async def chat(client: Client, value: bytes) -> None:
        async with client.open_stream(NAME, "Chat", BytesValue) as stream:
            try:
                await stream.send(BytesValue(value=value))
                with contextlib.suppress(LocalProtocolError):  # sending has waited, and the stream has an end
                    stream.close_send()
                assert await stream.receive() == BytesValue(value=value)
                assert await stream.receive() is None
            except StatusError as error:
                assert error.code == StatusCode.UNAVAILABLE

    clients = [await Client.connect(keeper.path, timeout_s=TIMEOUT_S) for _ in range(3)]
    try:
        for client in clients:
            await call(client, "Look", b"accepted")
        workers = [asyncio.create_task(work(client)) for client in clients for _ in range(3)]
        while loop.time() < end and not any(worker.done() for worker in workers):
            await asyncio.sleep(rng.uniform(0.0, 0.6))
            keeper.kill()
        calls = sum(await asyncio.gather(*workers))
    finally:
        for client in clients:
            client.close()
    print(f"{calls} calls, {keeper.deaths} deaths")
    assert keeper.deaths > 3
    assert collections.Counter(keeper.done()) == collections.Counter(added)


@pytest.mark.parametrize("method", ["Look", "LookLater", "Add"])
async def test_a_frame_is_put_together_whoever_has_read_its_pieces(keeper: Keeper, method: str) -> None:
    await keeper.start()
    frame = request_frame(1, method, b"%016d" % 0 + bytes(900_000), service=NAME)
    raw = connected(keeper)
    try:
        for start in range(0, len(frame), 300_000):
            await raw.send(frame[start : start + 300_000])
            await asyncio.sleep(0.05)
            await keeper.kill_and_wait()
        stream_id, response = await answer(raw)
        assert (stream_id, response.status.code) == (1, 0)
        assert BytesValue.FromString(response.payload).value == b"%016d" % 0 + bytes(900_000)
        await raw.send(request_frame(3, "Look", service=NAME))
        while stream_id != 3:
            stream_id, response = await answer(raw)
    finally:
        raw.close()
    assert keeper.done() == ([b"%016d" % 0] if method == "Add" else [])


async def test_what_is_thrown_away_is_counted_across_a_death(keeper: Keeper) -> None:
    await keeper.start()
    raw = connected(keeper)
    try:
        size = (4 << 20) + 1_000_000
        frame = request_frame(1, "Look", service=NAME)[4:10] + bytes(size)
        await raw.send(size.to_bytes(4, "big") + frame[:2_000_000])
        stream_id, response = await answer(raw)
        assert (stream_id, response.status.code) == (1, StatusCode.RESOURCE_EXHAUSTED)
        await keeper.kill_and_wait()
        await raw.send(frame[2_000_000:3_000_000])
        await keeper.kill_and_wait()
        await raw.send(frame[3_000_000:] + request_frame(3, "Look", b"next", service=NAME))
        while stream_id != 3:
            stream_id, response = await answer(raw)
        assert BytesValue.FromString(response.payload).value == b"next"
    finally:
        raw.close()


@pytest.mark.parametrize("method", ["Grow", "GrowJournaled"])
async def test_an_answer_that_was_sent_in_part_goes_on_where_it_stopped(keeper: Keeper, method: str) -> None:
    await keeper.start()
    raw = connected(keeper)
    try:
        value = b"100000 is a number "
        await raw.send(request_frame(1, method, value, service=NAME))
        await raw.send(request_frame(3, method, b"50000 is another ", service=NAME))
        await raw.send(request_frame(5, "Look", b"and this is no number", service=NAME))
        await asyncio.sleep(0.3)
        await keeper.kill_and_wait()
        answers: dict[int, Response] = {}
        while set(answers) != {1, 3, 5}:
            stream_id, response = await answer(raw)
            assert answers.setdefault(stream_id, response) == response
            if len(answers) == 1:
                await keeper.kill_and_wait()
    finally:
        raw.close()
    assert BytesValue.FromString(answers[1].payload).value == value * 100_000
    assert BytesValue.FromString(answers[3].payload).value == b"50000 is another " * 50_000
    await asyncio.sleep(0.1)
    assert sorted(name[0] for name in keeper.kept if name[0] != "c") == ["p"]


async def test_a_stream_that_was_open_ends_with_unavailable(keeper: Keeper) -> None:
    await keeper.start()
    async with await Client.connect(keeper.path, timeout_s=TIMEOUT_S) as client:
        async with client.open_stream(NAME, "Chat", BytesValue) as stream:
            await stream.send(BytesValue(value=b"a"))
            assert await stream.receive() == BytesValue(value=b"a")
            await keeper.kill_and_wait()
            with pytest.raises(StatusError, match="restarted") as raised:
                await stream.receive()
            assert raised.value.code == StatusCode.UNAVAILABLE
        assert await call(client, "Look", b"still here") == b"still here"


async def test_a_client_that_goes_away_while_no_server_runs_is_forgotten(keeper: Keeper) -> None:
    await keeper.start()
    client = await Client.connect(keeper.path, timeout_s=TIMEOUT_S)
    parked = asyncio.create_task(call(client, "Wait", b"never"))
    await call(client, "Look", b"")
    keeper.kill()
    client.close()
    with pytest.raises(ConnectionError):
        await parked
    async with await Client.connect(keeper.path, timeout_s=TIMEOUT_S) as other:
        await call(other, "Look", b"")
        await asyncio.sleep(0.1)
        assert len([name for name in keeper.kept if name.startswith("c")]) == 1


def connected(keeper: Keeper) -> Raw:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(keeper.path))
    return Raw(sock)


async def answer(raw: Raw) -> tuple[int, Response]:
    async with asyncio.timeout(TIMEOUT_S):
        return await raw.response()
