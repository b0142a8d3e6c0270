"""The server on a real socket: calls, bad peers, lost peers, slow peers."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from common.ttrpc import (
    ConnectionLost,
    Frame,
    Method,
    PeerCredentials,
    Server,
    Service,
    StatusCode,
    StatusError,
    encode_frame,
)
from common.ttrpc import _socket as socket_module
from common.ttrpc._frames import HEADER
from tests.unit.common.ttrpc.peers import NAME, Place, request_frame, until


async def echo(place: Place, value: bytes = b"x") -> None:
    """Show that the server works, on a connection of its own."""
    client = await place.client()
    message = BytesValue(value=value)
    assert await client.call(NAME, "Echo", message, BytesValue, timeout_s=20) == message
    client.close()


# ── answers ────────────────────────────────────────────────────────────────────────────────────


async def test_a_unary_call_is_answered_with_exactly_one_response_even_if_it_is_empty(place: Place) -> None:
    place.listen()
    raw = place.raw()
    await raw.send(request_frame(1, "Echo") + request_frame(3, "Echo", b"x"))
    assert (await raw.response())[0] == 1
    stream_id, response = await raw.response()
    assert stream_id == 3
    assert not response.HasField("status")
    assert response.payload == BytesValue(value=b"x").SerializeToString()


@pytest.mark.parametrize(
    ("service", "method", "named"), [("no.Such", "Echo", "no.Such"), (NAME, "Nonsense", "Nonsense")]
)
async def test_what_is_not_offered_is_unimplemented(
    place: Place, service: str, method: str, named: str
) -> None:
    place.listen()
    raw = place.raw()
    await raw.send(request_frame(1, method, service=service))
    _, response = await raw.response()
    assert response.status.code == StatusCode.UNIMPLEMENTED
    assert named in response.status.message


async def test_errors_carry_code_and_text_and_no_payload(place: Place) -> None:
    place.listen(status_of=lambda error: (StatusCode.ABORTED, f"mapped {error}"))
    raw = place.raw()
    await raw.send(request_frame(1, "Fail", b"pod") + request_frame(3, "Crash"))
    _, response = await raw.response()
    assert (response.status.code, response.status.message) == (StatusCode.NOT_FOUND, "no pod")
    assert response.payload == b""
    _, response = await raw.response()
    assert (response.status.code, response.status.message) == (StatusCode.ABORTED, "mapped 'oops'")


@pytest.mark.parametrize(
    ("status", "expected"), [((0, "fine?"), StatusCode.UNKNOWN), (None, StatusCode.UNKNOWN)]
)
async def test_a_useless_status_of_never_turns_an_error_into_success(
    place: Place, status: Any, expected: int
) -> None:
    place.listen(status_of=lambda error: status)
    client = await place.client()
    with pytest.raises(StatusError) as raised:
        await client.call(NAME, "Crash", BytesValue(), BytesValue)
    assert raised.value.code == expected


async def test_an_error_text_that_is_not_utf8_still_arrives(place: Place) -> None:
    place.listen()
    client = await place.client()
    with pytest.raises(StatusError, match="dcff"):
        await client.call(NAME, "Fail", BytesValue(value=b"\xff"), BytesValue)


async def test_a_handler_that_returns_nothing_is_an_error(place: Place) -> None:
    place.listen()
    client = await place.client()
    with pytest.raises(StatusError, match="no message"):
        await client.call(NAME, "Nothing", BytesValue(), BytesValue)


async def test_a_payload_of_another_type_is_an_invalid_argument(place: Place) -> None:
    place.listen()
    raw = place.raw()
    frame = bytearray(request_frame(1, "Echo", b"abc"))
    frame[-4] = 0x7F  # the length of the value now points beyond the payload
    await raw.send(bytes(frame))
    _, response = await raw.response()
    assert response.status.code == StatusCode.INVALID_ARGUMENT


async def test_a_response_beyond_the_limit_is_answered_with_resource_exhausted(place: Place) -> None:
    place.listen()
    client = await place.client()
    with pytest.raises(StatusError) as raised:
        await client.call(NAME, "Inflate", BytesValue(value=b"5000000"), BytesValue)
    assert raised.value.code == StatusCode.RESOURCE_EXHAUSTED
    await client.call(NAME, "Echo", BytesValue(), BytesValue)


# ── what a handler is told ─────────────────────────────────────────────────────────────────────


async def test_the_context_holds_metadata_deadline_and_peer(place: Place) -> None:
    place.listen()
    raw = place.raw()
    metadata = (("key", "one"), ("key", "two"), ("other", ""))
    before = asyncio.get_running_loop().time()
    await raw.send(request_frame(1, "Echo", timeout_nano=3_000_000_000, metadata=metadata))
    await raw.send(request_frame(3, "Echo"))
    await raw.response()
    await raw.response()
    with_both, with_none = place.bench.contexts
    assert with_both.metadata == metadata
    assert with_both.deadline is not None
    assert before + 3 <= with_both.deadline <= asyncio.get_running_loop().time() + 3
    assert with_both.peer == PeerCredentials(os.getpid(), os.getuid(), os.getgid())
    assert (with_both.service, with_both.method, with_both.stream_id) == (NAME, "Echo", 1)
    assert with_none.metadata == ()
    assert with_none.deadline is None


@pytest.mark.parametrize("timeout_nano", (20_000_000, -1))
async def test_a_handler_that_waits_is_cancelled_at_the_deadline(place: Place, timeout_nano: int) -> None:
    place.listen()
    raw = place.raw()
    await raw.send(request_frame(1, "Park", timeout_nano=timeout_nano))
    _, response = await raw.response()
    assert response.status.code == StatusCode.DEADLINE_EXCEEDED
    assert place.bench.cancelled == 1


# ── concurrency and lifetime ───────────────────────────────────────────────────────────────────


async def test_a_thousand_parked_calls_do_not_delay_another_one(place: Place) -> None:
    place.listen()
    raw = place.raw()
    await raw.send(b"".join(request_frame(2 * i + 1, "Park") for i in range(1000)))
    await until(lambda: place.bench.parked == 1000)
    began = time.perf_counter()
    await raw.send(request_frame(3001, "Echo"))
    assert (await raw.response())[0] == 3001
    assert time.perf_counter() - began < 0.25
    raw.close()
    await until(lambda: place.bench.cancelled == 1000)
    assert place.server.connection_count == 0


async def test_a_handler_that_cleans_up_after_its_deadline_is_not_cancelled_again(place: Place) -> None:
    steps: list[str] = []

    async def clean_up_late(target: object, request: BytesValue, context: object) -> BytesValue:
        try:
            await asyncio.sleep(30)
        finally:
            steps.append("cancelled")
            await asyncio.sleep(0.1)
            steps.append("clean")
        return request

    place.server = Server({NAME: Service({"Late": Method(BytesValue, clean_up_late)}, None)})
    place.listen()
    raw = place.raw()
    await raw.send(request_frame(1, "Late", timeout_nano=10_000_000))
    await until(lambda: steps == ["cancelled"])
    raw.close()
    await until(lambda: steps == ["cancelled", "clean"])


async def test_losing_a_connection_cancels_only_its_own_handlers(place: Place) -> None:
    place.listen()
    first, second = place.raw(), place.raw()
    await first.send(request_frame(1, "Park"))
    await second.send(request_frame(1, "Park"))
    await until(lambda: place.bench.parked == 2)
    first.close()
    await until(lambda: place.bench.cancelled == 1)
    assert place.bench.parked == 1
    assert place.server.connection_count == 1


async def test_closing_the_server_ends_listeners_connections_and_handlers(place: Place) -> None:
    place.listen()
    raw = place.raw()
    await raw.send(request_frame(1, "Park"))
    await until(lambda: place.bench.parked == 1)
    place.server.close()
    place.server.close()
    await place.server.wait_closed()
    assert place.bench.cancelled == 1
    assert await raw.frame() is None
    with pytest.raises(ConnectionRefusedError):
        place.raw()


async def test_a_peer_that_is_not_authorized_is_closed(place: Place) -> None:
    asked: list[PeerCredentials] = []

    def refuse(peer: PeerCredentials) -> bool:
        asked.append(peer)
        return False

    place.listen(authorize=refuse)
    assert await place.raw().frame() is None
    assert asked == [(os.getpid(), os.getuid(), os.getgid())]
    assert place.server.connection_count == 0


# ── peers that misbehave ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream_id", (0, 2, 1))
async def test_an_even_or_used_stream_id_is_refused_on_that_stream(place: Place, stream_id: int) -> None:
    place.listen()
    raw = place.raw()
    await raw.send(request_frame(1, "Echo"))
    await raw.response()
    await raw.send(request_frame(stream_id, "Echo") + request_frame(3, "Echo"))
    refused, response = await raw.response()
    assert (refused, response.status.code) == (stream_id, StatusCode.INVALID_ARGUMENT)
    assert (await raw.response())[0] == 3
    assert len(place.bench.contexts) == 2


@pytest.mark.parametrize("size", (1, 9, 10, 20))
async def test_half_a_frame_and_then_the_end_closes_quietly(place: Place, size: int) -> None:
    place.listen()
    raw = place.raw()
    await raw.send(request_frame(1, "Echo", bytes(100))[:size])
    await until(lambda: place.server.connection_count == 1)
    await asyncio.sleep(0.01)
    raw.close()
    await until(lambda: place.server.connection_count == 0)
    assert place.bench.contexts == []
    await echo(place)


async def test_half_a_frame_does_not_spin(place: Place) -> None:
    place.listen()
    raw = place.raw()
    frame = request_frame(1, "Echo", bytes(100))
    await raw.send(frame[:50])
    await asyncio.sleep(0.02)
    cpu = time.process_time()
    await asyncio.sleep(0.2)
    assert time.process_time() - cpu < 0.05
    await raw.send(frame[50:])
    assert (await raw.response())[0] == 1


async def test_a_frame_that_comes_byte_by_byte_is_one_frame(place: Place) -> None:
    place.listen()
    raw = place.raw()
    for byte in request_frame(1, "Echo", b"slow") + request_frame(3, "Echo", b"slow"):
        await raw.send(bytes([byte]))
        await asyncio.sleep(0)
    assert [(await raw.response())[0], (await raw.response())[0]] == [1, 3]


async def test_the_rest_of_a_frame_may_come_after_the_time_for_peeking(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_module, "REST_TIMEOUT_S", 0.02)
    place.listen()
    raw = place.raw()
    frames = request_frame(1, "Echo", b"late") + request_frame(3, "Echo", b"next")
    await raw.send(frames[:30])
    await asyncio.sleep(0.1)
    await raw.send(frames[30:])
    assert [(await raw.response())[0], (await raw.response())[0]] == [1, 3]


async def test_a_peer_with_a_tiny_send_buffer_gets_a_large_frame_through(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an unread socket holds depends on the sender: the frame cannot be peeked whole however small."""
    monkeypatch.setattr(socket_module, "REST_TIMEOUT_S", 0.02)
    place.listen()
    raw = place.raw()
    raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    await raw.send(request_frame(1, "Echo", bytes(60_000)) + request_frame(3, "Echo"))
    assert [(await raw.response())[0], (await raw.response())[0]] == [1, 3]


async def test_an_oversized_frame_is_thrown_away_and_answered_on_its_stream(place: Place) -> None:
    place.listen()
    raw = place.raw()
    size = (4 << 20) + 1
    await raw.send(HEADER.pack(size, 1, 1, 0) + bytes(size) + request_frame(3, "Echo"))
    stream_id, response = await raw.response()
    assert (stream_id, response.status.code) == (1, StatusCode.RESOURCE_EXHAUSTED)
    assert (await raw.response())[0] == 3


async def test_oversized_data_ends_the_stream_and_its_handler(place: Place) -> None:
    place.listen()
    raw = place.raw()
    size = (4 << 20) + 1
    await raw.send(request_frame(1, "Chat", flags=2) + HEADER.pack(size, 1, 3, 0) + bytes(size))
    stream_id, response = await raw.response()
    assert (stream_id, response.status.code) == (1, StatusCode.RESOURCE_EXHAUSTED)
    await until(lambda: place.bench.streams_ended == 1)


async def test_data_on_a_unary_stream_closes_the_connection(place: Place) -> None:
    place.listen()
    raw = place.raw()
    await raw.send(request_frame(1, "Park") + encode_frame(1, 3, 0, b""))
    assert await raw.frame() is None
    await until(lambda: place.bench.cancelled == 1)


async def test_descriptors_sent_along_are_closed_and_the_frames_still_taken(place: Place) -> None:
    place.listen()
    raw = place.raw()
    before = len(os.listdir("/proc/self/fd"))
    frame = request_frame(1, "Echo")
    socket.send_fds(raw.sock, [frame[:15]], [0])
    socket.send_fds(raw.sock, [frame[15:]], [0])
    await raw.send(request_frame(3, "Echo"))
    assert [(await raw.response())[0], (await raw.response())[0]] == [1, 3]
    assert len(os.listdir("/proc/self/fd")) == before + 1  # the server's end of the connection


async def test_a_client_that_never_reads_is_closed_at_the_limit_and_disturbs_nobody(place: Place) -> None:
    place.listen(queue_limit=1 << 20)
    raw = place.raw()
    request = request_frame(1, "Echo", bytes(200_000))
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        for stream_id in range(1, 200, 2):
            await raw.send(request[:4] + stream_id.to_bytes(4, "big") + request[8:])
            await echo(place)
            await asyncio.sleep(0)
    await until(lambda: place.server.connection_count == 0)
    await echo(place)


async def test_a_slow_reader_gets_every_byte(place: Place) -> None:
    place.listen()
    raw = place.raw()
    raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await raw.send(b"".join(request_frame(2 * i + 1, "Inflate", b"100000") for i in range(20)))
    await asyncio.sleep(0.05)
    for i in range(20):
        stream_id, response = await raw.response()
        assert stream_id == 2 * i + 1
        assert len(BytesValue.FromString(response.payload).value) == 100_000
        await asyncio.sleep(0.001)


# ── streams ────────────────────────────────────────────────────────────────────────────────────


async def test_a_stream_ends_with_data_that_is_none_and_closed(place: Place) -> None:
    place.listen()
    raw = place.raw()
    await raw.send(request_frame(1, "Count", b"1", flags=1))
    assert await raw.frame() == Frame(1, 3, 0, BytesValue(value=b"0").SerializeToString())
    assert await raw.frame() == Frame(1, 3, 5, b"")


async def test_a_streaming_method_refuses_a_unary_request(place: Place) -> None:
    place.listen()
    raw = place.raw()
    await raw.send(request_frame(1, "Chat"))
    assert (await raw.response())[1].status.code == StatusCode.INVALID_ARGUMENT


async def test_an_empty_payload_of_an_open_request_is_no_message(place: Place) -> None:
    place.listen()
    raw = place.raw()
    await raw.send(request_frame(1, "Chat", flags=2) + encode_frame(1, 3, 5, b""))
    assert await raw.frame() == Frame(1, 3, 5, b"")


async def test_data_after_the_end_of_a_stream_is_ignored(place: Place) -> None:
    place.listen()
    raw = place.raw()
    await raw.send(request_frame(1, "Count", b"0", flags=2))
    assert await raw.frame() == Frame(1, 3, 5, b"")
    await raw.send(encode_frame(1, 3, 5, b"") + request_frame(3, "Echo"))
    assert (await raw.response())[0] == 3


async def test_a_handler_that_receives_nothing_is_ended_when_too_much_is_waiting(place: Place) -> None:
    place.listen()
    raw = place.raw()
    await raw.send(request_frame(1, "Deaf", flags=2))
    for _ in range(5):
        await raw.send(encode_frame(1, 3, 0, bytes(2 << 20)))
    stream_id, response = await raw.response()
    assert (stream_id, response.status.code) == (1, StatusCode.RESOURCE_EXHAUSTED)
    await raw.send(request_frame(3, "Echo"))
    assert (await raw.response())[0] == 3


async def test_losing_the_connection_of_a_client_names_the_cause(place: Place) -> None:
    place.listen()
    client = await place.client()
    call = asyncio.create_task(client.call(NAME, "Park", BytesValue(), BytesValue))
    await until(lambda: place.bench.parked == 1)
    place.server.close()
    with pytest.raises(ConnectionLost, match="the peer closed"):
        await call
