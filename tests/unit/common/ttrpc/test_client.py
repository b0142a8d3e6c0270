"""The client, against our own server and against peers that misbehave."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from common.ttrpc import (
    Client,
    ConnectionLost,
    Frame,
    LocalProtocolError,
    StatusCode,
    StatusError,
    encode_frame,
)
from proto.gen.ttrpc.request_pb2 import Request
from tests.unit.common.ttrpc.peers import NAME, Place, Raw, until


def message(value: bytes = b"") -> BytesValue:
    return BytesValue(value=value)


@pytest.mark.parametrize("size", (0, 1, 4096, 32_768, 65_526, 65_527, 300_000, 3 << 20))
async def test_payloads_of_any_size_pass_both_ways(place: Place, size: int) -> None:
    place.listen()
    client = await place.client()
    value = os.urandom(size)
    assert (await client.call(NAME, "Echo", message(value), BytesValue)).value == value


async def test_calls_run_concurrently_and_answers_find_their_callers(place: Place) -> None:
    place.listen()
    client = await place.client()
    parked = asyncio.create_task(client.call(NAME, "Park", message(), BytesValue))
    naps = [b"0.0%d" % (9 - i) for i in range(9)]
    answers = await asyncio.gather(*(client.call(NAME, "Nap", message(nap), BytesValue) for nap in naps))
    assert [answer.value for answer in answers] == naps
    assert not parked.done()
    client.close()
    with pytest.raises(ConnectionLost, match="the client was closed"):
        await parked


async def test_a_timeout_is_told_to_the_server_and_kept_here(place: Place) -> None:
    mine, theirs = socket.socketpair()
    raw = Raw(theirs)
    async with Client(mine) as client:
        with pytest.raises(StatusError) as raised:
            await client.call(NAME, "Park", message(), BytesValue, timeout_s=0.05)
        assert raised.value.code == StatusCode.DEADLINE_EXCEEDED
        frame = await raw.frame()
        assert isinstance(frame, Frame)
        request = Request.FromString(frame.data)
        assert request.timeout_nano == 50_000_000
        # The late answer harms nobody.
        await raw.send(encode_frame(1, 2, 0, b""))
        call = asyncio.create_task(client.call(NAME, "Echo", message(), BytesValue))
        await raw.frame()
        await raw.send(encode_frame(3, 2, 0, b"") * 2)
        assert await call == message()
    raw.close()


async def test_metadata_arrives_with_lower_case_keys(place: Place) -> None:
    place.listen()
    client = await place.client()
    pairs = [("Key", "One"), ("key", "Two")]
    await client.call(NAME, "Echo", message(), BytesValue, metadata=pairs)
    assert place.bench.contexts[0].metadata == (("key", "One"), ("key", "Two"))


async def test_a_cancelled_call_leaves_nothing_behind(place: Place) -> None:
    place.listen()
    client = await place.client()
    call = asyncio.create_task(client.call(NAME, "Park", message(), BytesValue))
    await until(lambda: place.bench.parked == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert client._calls == {}
    await client.call(NAME, "Echo", message(), BytesValue)


async def test_a_closed_client_refuses_calls_and_close_is_idempotent(place: Place) -> None:
    place.listen()
    client = await place.client()
    client.close()
    client.close()
    assert client.closed
    with pytest.raises(ConnectionLost):
        await client.call(NAME, "Echo", message(), BytesValue)
    with pytest.raises(ConnectionLost):
        client.open_stream(NAME, "Chat", BytesValue)


async def test_a_request_beyond_the_limit_is_a_local_error_and_the_client_goes_on(place: Place) -> None:
    place.listen()
    client = await place.client()
    with pytest.raises(LocalProtocolError):
        await client.call(NAME, "Echo", message(bytes(5 << 20)), BytesValue)
    await client.call(NAME, "Echo", message(), BytesValue)


@pytest.mark.parametrize(
    "garbage",
    [encode_frame(1, 1, 0, b""), encode_frame(99, 2, 0, b""), encode_frame(1, 3, 0, b"")],
    ids=("a request", "an answer nobody asked for", "data on a unary stream"),
)
async def test_a_server_that_breaks_the_protocol_fails_the_calls(garbage: bytes) -> None:
    mine, theirs = socket.socketpair()
    raw = Raw(theirs)
    client = Client(mine)
    call = asyncio.create_task(client.call(NAME, "Echo", message(), BytesValue))
    await raw.frame()
    await raw.send(garbage)
    with pytest.raises(ConnectionLost):
        await call
    assert client.closed
    raw.close()


async def test_an_undecodable_answer_fails_only_its_call() -> None:
    mine, theirs = socket.socketpair()
    raw = Raw(theirs)
    async with Client(mine) as client:
        call = asyncio.create_task(client.call(NAME, "Echo", message(), BytesValue))
        await raw.frame()
        await raw.send(encode_frame(1, 2, 0, b"\xff\xff"))
        with pytest.raises(StatusError) as raised:
            await call
        assert raised.value.code == StatusCode.INTERNAL
        assert not client.closed
    raw.close()


async def test_connecting_to_nobody_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await Client.connect(tmp_path / "none", timeout_s=1)


async def test_a_full_backlog_is_waited_for_and_then_times_out(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen(0)
    with listener:
        first = await Client.connect(tmp_path / "s", timeout_s=1)
        with pytest.raises(TimeoutError):
            await Client.connect(tmp_path / "s", timeout_s=0.05)
        waiting = asyncio.create_task(Client.connect(tmp_path / "s", timeout_s=20))
        await asyncio.sleep(0.02)
        listener.accept()[0].close()
        (await waiting).close()
        first.close()


async def test_a_bidirectional_stream_answers_message_by_message(place: Place) -> None:
    place.listen()
    client = await place.client()
    async with client.open_stream(NAME, "Chat", BytesValue) as stream:
        for value in (b"a", b"", bytes(100_000)):
            await stream.send(message(value))
            assert await stream.receive() == message(value)
        stream.close_send()
        assert await stream.receive() is None
        assert await stream.receive() is None
        with pytest.raises(LocalProtocolError):
            await stream.send(message())
    assert client._streams == {}


async def test_a_client_stream_gets_its_one_answer(place: Place) -> None:
    place.listen()
    client = await place.client()
    async with client.open_stream(NAME, "Join", BytesValue) as stream:
        for value in (b"one ", b"two"):
            await stream.send(message(value))
        stream.close_send()
        assert [answer.value async for answer in stream] == [b"one two"]


async def test_a_server_stream_waits_for_a_slow_reader_and_loses_nothing(place: Place) -> None:
    place.listen()
    client = await place.client()
    stream = client.open_stream(NAME, "Count", BytesValue, message(b"20000"), client_streams=False)
    await asyncio.sleep(0.02)
    numbers = [int(answer.value) async for answer in stream]
    assert numbers == list(range(20_000))


async def test_a_failing_stream_raises_after_what_arrived_before(place: Place) -> None:
    place.listen()
    client = await place.client()
    stream = client.open_stream(NAME, "Count", BytesValue, message(b"no number"), client_streams=False)
    with pytest.raises(StatusError, match="ValueError"):
        await stream.receive()


async def test_losing_the_connection_ends_streams(place: Place) -> None:
    place.listen()
    client = await place.client()
    stream = client.open_stream(NAME, "Chat", BytesValue)
    await stream.send(message(b"x"))
    await stream.receive()
    place.server.close()
    with pytest.raises(ConnectionLost):
        await stream.receive()
    with pytest.raises(ConnectionLost):
        await stream.send(message())


async def test_an_abandoned_stream_drops_what_still_arrives(place: Place) -> None:
    place.listen()
    client = await place.client()
    async with client.open_stream(
        NAME, "Count", BytesValue, message(b"1000"), client_streams=False
    ) as stream:
        await stream.receive()
    await client.call(NAME, "Echo", message(), BytesValue)
    assert client._streams == {}


async def test_a_stream_that_nobody_receives_from_fails_alone(place: Place) -> None:
    mine, theirs = socket.socketpair()
    raw = Raw(theirs)
    async with Client(mine) as client:
        stream = client.open_stream(NAME, "Chat", BytesValue)
        for _ in range(5):
            await raw.send(encode_frame(1, 3, 0, message(bytes(2 << 20)).SerializeToString()))
        await until(lambda: client._streams == {})
        received = 0
        with pytest.raises(StatusError, match="RESOURCE_EXHAUSTED"):
            while await stream.receive():
                received += 1
        assert received == 3
        assert not client.closed
    raw.close()
