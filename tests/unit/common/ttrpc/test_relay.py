"""A relay between a client and a far end that is not trusted, and that goes on when the relay is killed."""

from __future__ import annotations

import asyncio
import collections
import itertools
import random
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from common.descriptors.store import NoStore
from common.failpoints import Failpoint
from common.journal import ConnectionJournal
from common.ttrpc import Client, ConnectionLost, Server, Service, StatusCode, StatusError
from common.ttrpc import encode_frame as frame_of
from common.ttrpc.relay import RelayServer
from proto.gen.ttrpc.request_pb2 import Response
from tests.unit.common.ttrpc import mortal, mortal_relay
from tests.unit.common.ttrpc.keeper import Keeper
from tests.unit.common.ttrpc.mortal import NAME
from tests.unit.common.ttrpc.peers import Raw, request_frame, until

TIMEOUT_S = 20
RANDOM_KILLS_S = 5.0
FAILPOINTS = (
    Failpoint.REQUEST_ADMITTED,
    Failpoint.REQUEST_CONSUMED,
    Failpoint.OUTCOME_RECORDED,
    Failpoint.REQUEST_ANSWERED,
)


def listening(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(16)
    return sock


class Pair:
    """A relay in this process; its far end is a `mortal` server, or sockets that the test talks on."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "s"
        self.lost: list[str] = []
        self.far: Server | None = None
        self.relay = RelayServer(
            {NAME: Service(mortal_relay.METHODS, mortal_relay.Relay())},
            links=ConnectionJournal(f"{directory}/journal", NoStore()),
            connect=lambda: mortal_relay.connect_to(f"{directory}/far"),
            on_lost=self.lost.append,
        )
        self.relay.listen(listening(self.path))

    def serve_far(self) -> None:
        self.far = Server(
            {NAME: Service(mortal.METHODS, mortal.Mortal(str(self.directory)))}, drops_repeats=True
        )
        self.far.listen(listening(self.directory / "far"))

    async def close(self) -> None:
        self.relay.close()
        await self.relay.wait_closed()
        if self.far is not None:
            self.far.close()
            await self.far.wait_closed()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    pair = Pair(tmp_path)
    yield pair
    await pair.close()


async def call(client: Client, method: str, value: bytes) -> bytes:
    answer = await client.call(NAME, method, BytesValue(value=value), BytesValue, TIMEOUT_S)
    return answer.value


async def test_calls_come_back_from_where_they_were_handed_on_to(pair: Pair) -> None:
    pair.serve_far()
    async with await Client.connect(pair.path, timeout_s=20) as client:
        parked = asyncio.create_task(call(client, "Wait", b"end"))
        tags = [b"%016d" % number for number in range(6)]
        calls = [call(client, ("Add", "AddBlindly")[n % 2], tag) for n, tag in enumerate(tags)]
        assert await asyncio.gather(*calls) == tags
        assert await call(client, "Look", b"here") == b"here"
        with pytest.raises(StatusError) as raised:
            await call(client, "Nonsense", b"")
        assert raised.value.code == StatusCode.UNIMPLEMENTED
        await call(client, "Release", b"end")
        assert await parked == b"end"
    assert (pair.directory / "done").read_bytes().splitlines() == tags
    assert pair.far is not None
    far = pair.far
    await until(lambda: far.connection_count == 0)
    assert pair.lost == []


@pytest.fixture
def told() -> Iterator[list[tuple[str, int]]]:
    """The calls that were answered: their methods and codes."""
    told: list[tuple[str, int]] = []
    Server.observe(lambda _, method, code, __: told.append((method, code)))
    yield told
    Server.observe(None)


async def test_calls_that_are_handed_on_are_observed_with_their_outcome(
    pair: Pair, told: list[tuple[str, int]]
) -> None:
    async with await Client.connect(pair.path, timeout_s=20) as client:
        with pytest.raises(StatusError):
            await call(client, "LookLater", b"nobody is there")
        pair.serve_far()
        assert await call(client, "LookLater", b"here") == b"here"
    # The far end is a server of this process as well.
    assert told == [("LookLater", StatusCode.UNKNOWN), ("LookLater", 0), ("LookLater", 0)]


async def test_a_far_end_that_cannot_be_reached_is_tried_again(pair: Pair) -> None:
    async with await Client.connect(pair.path, timeout_s=20) as client:
        for method in ("LookLater", "Add"):
            with pytest.raises(StatusError, match="No such file"):
                await call(client, method, b"a")
        assert await call(client, "Look", b"b") == b"b"
        pair.serve_far()
        assert await call(client, "LookLater", b"c") == b"c"
    assert pair.lost == []


async def test_a_far_end_that_answers_nothing_is_not_asked_without_end(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.ttrpc.relay.PENDING_LIMIT", 5)
    pair.serve_far()
    async with await Client.connect(pair.path, timeout_s=20) as client:
        parked = [asyncio.create_task(call(client, "Wait", b"end")) for _ in range(7)]
        await until(lambda: sum(each.done() for each in parked) == 2)
        async with await Client.connect(pair.path, timeout_s=20) as other:
            await call(other, "Release", b"end")
        answers = await asyncio.gather(*parked, return_exceptions=True)
    codes = [each.code for each in answers if isinstance(each, StatusError)]
    assert codes == [StatusCode.RESOURCE_EXHAUSTED] * 2


BAD_ANSWERS = {
    "of a wrong stream": frame_of(7, 2, 0, b""),
    "on an even stream": frame_of(2, 2, 0, b""),
    "that is a request": request_frame(1, "Look"),
    "that is data": frame_of(1, 3, 0, b"x"),
    "of an unknown type": frame_of(1, 9, 0, b"x"),
    "that cannot be decoded": frame_of(1, 2, 0, b"\xff\xff"),
    "with a payload of another kind": frame_of(1, 2, 0, Response(payload=b"\xff").SerializeToString()),
    "beyond all limits": (0xFFFFFFF0).to_bytes(4, "big") + b"\0\0\0\1\2\0",
    "that is merely large": (70_000).to_bytes(4, "big") + b"\0\0\0\1\2\0",
}


@pytest.mark.parametrize("what", BAD_ANSWERS)
async def test_an_answer_that_is_none_ends_the_link_and_says_why(pair: Pair, what: str) -> None:
    far = listening(pair.directory / "far")
    far.setblocking(False)
    try:
        async with await Client.connect(pair.path, timeout_s=20) as client:
            asked = asyncio.create_task(call(client, "LookLater", b"a"))
            sock, _ = await asyncio.get_running_loop().sock_accept(far)
            raw = Raw(sock)
            await raw.frame()
            await raw.send(BAD_ANSWERS[what])
            assert await raw.frame() is None
            raw.close()
            assert len(pair.lost) == 1
            assert not asked.done()
            pair.relay.bereave("the guest lies")
            assert await asked == b"without the far end: a"
            assert await call(client, "LookLater", b"b") == b"without the far end: b"
            with pytest.raises(StatusError, match="the guest lies"):
                await call(client, "Add", b"c")
            assert await call(client, "Look", b"d") == b"d"
    finally:
        far.close()


async def test_a_second_answer_is_dropped(pair: Pair) -> None:
    far = listening(pair.directory / "far")
    far.setblocking(False)
    try:
        async with await Client.connect(pair.path, timeout_s=20) as client:
            asked = asyncio.create_task(call(client, "LookLater", b"a"))
            raw = Raw((await asyncio.get_running_loop().sock_accept(far))[0])
            await raw.frame()
            answer = Response(payload=BytesValue(value=b"1").SerializeToString()).SerializeToString()
            await raw.send(2 * frame_of(1, 2, 0, answer))
            assert await asked == b"1"
            asked = asyncio.create_task(call(client, "LookLater", b"b"))
            await raw.frame()
            await raw.send(frame_of(3, 2, 0, answer))
            assert await asked == b"1"
            raw.close()
    finally:
        far.close()


async def test_the_end_of_a_link_is_told_once(pair: Pair) -> None:
    far = listening(pair.directory / "far")
    far.setblocking(False)
    clients = [await Client.connect(pair.path, timeout_s=20) for _ in range(2)]
    try:
        waits = [asyncio.create_task(call(client, "Wait", b"x")) for client in clients]
        for _ in clients:
            sock, _ = await asyncio.get_running_loop().sock_accept(far)
            await Raw(sock).frame()
            sock.close()
        await until(lambda: pair.lost == ["it closed a connection"])
        pair.relay.bereave("ended")
        assert await asyncio.gather(*waits) == [b"without the far end: x"] * 2
    finally:
        far.close()
        for client in clients:
            client.close()


@pytest.fixture
async def keeper(tmp_path: Path) -> AsyncIterator[Keeper]:
    far = Server({NAME: Service(mortal.METHODS, mortal.Mortal(str(tmp_path)))}, drops_repeats=True)
    far.listen(listening(tmp_path / "far"))
    async with Keeper(tmp_path, "tests.unit.common.ttrpc.mortal_relay") as keeper:
        yield keeper
    far.close()
    await far.wait_closed()


@pytest.mark.parametrize(
    "failpoint",
    [
        *(
            f"{f}=kill@{n}"
            for f in FAILPOINTS
            for n in (1, 3, 6)
            if (f, n) != (Failpoint.OUTCOME_RECORDED, 6)
        ),
        "connection.kept=kill",
        "link.kept=kill",
    ],
)
async def test_each_call_is_done_once_and_answered_wherever_the_relay_dies(
    keeper: Keeper, failpoint: str
) -> None:
    await keeper.start(failpoint)
    async with await Client.connect(keeper.path, timeout_s=TIMEOUT_S) as client:
        parked = asyncio.create_task(call(client, "Wait", b"end"))
        tags = [b"%016d" % number for number in range(8)]
        for number, tag in enumerate(tags[:4]):
            assert await call(client, ("Add", "AddBlindly")[number % 2], tag) == tag
        rest = [call(client, ("Add", "AddBlindly")[n % 2], tag) for n, tag in enumerate(tags[4:])]
        assert await asyncio.gather(*rest) == tags[4:]
        big = b"%016d" % 8 + bytes(100_000)
        assert await call(client, "Add", big) == big
        assert await call(client, "Release", b"end") == b"end"
        assert await parked == b"end"
        assert await call(client, "Look", b"still here") == b"still here"
    assert keeper.done() == [*tags, b"%016d" % 8]
    assert keeper.deaths == 1


@pytest.mark.timeout(60)
async def test_calls_survive_kills_of_the_relay_at_random_moments(keeper: Keeper) -> None:
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
            method = rng.choice(("Add", "AddBlindly", "Look", "LookLater", "Wait"))
            value = tag + bytes(rng.choice((0, 0, 5000, 40_000)))
            if method.startswith("Add"):
                added.append(tag)
            if method == "Wait":
                parked = asyncio.create_task(call(client, "Wait", tag))
                await call(client, "Release", tag)
                assert await parked == tag
            else:
                assert await call(client, method, value) == value
            calls += 1
        return calls

    clients = [await Client.connect(keeper.path, timeout_s=TIMEOUT_S) for _ in range(3)]
    try:
        workers = [asyncio.create_task(work(client)) for client in clients for _ in range(3)]
        while loop.time() < end and not any(worker.done() for worker in workers):
            await asyncio.sleep(rng.uniform(0.0, 0.6))
            keeper.kill()
        calls = sum(await asyncio.gather(*workers))
    except ConnectionLost as error:
        pytest.fail(str(error))
    finally:
        for client in clients:
            client.close()
    print(f"{calls} calls, {keeper.deaths} deaths")
    assert keeper.deaths > 3
    assert collections.Counter(keeper.done()) == collections.Counter(added)
