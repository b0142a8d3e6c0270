"""Whatever a peer sends, however it is cut: the same events or a RemoteProtocolError, nothing else."""

from __future__ import annotations

import asyncio
import socket

from google.protobuf.wrappers_pb2 import BytesValue
from hypothesis import given, settings
from hypothesis import strategies as st

from common.ttrpc import Client, Connection, Event, RemoteProtocolError, Role, Server, Service, encode_frame
from proto.gen.ttrpc.request_pb2 import Request
from tests.unit.common.ttrpc.peers import METHODS, NAME, Bench

requests = st.builds(
    lambda service, method, payload: Request(
        service=service, method=method, payload=payload
    ).SerializeToString(),
    st.sampled_from([NAME, "other"]),
    st.sampled_from([*METHODS, "other"]),
    st.binary(max_size=12),
)
frames = st.builds(
    encode_frame,
    st.integers(0, 12),
    st.integers(0, 4),
    st.integers(0, 7),
    st.one_of(requests, st.binary(max_size=40)),
)
noise = st.one_of(frames, st.binary(max_size=60))
streams = st.lists(noise, max_size=12).map(b"".join)


def run(role: Role, pieces: list[bytes]) -> tuple[list[Event], bool]:
    """All events of these bytes, and whether they ended in a protocol error."""
    connection = Connection(role)
    if role is Role.CLIENT:
        for _ in range(3):
            connection.send_request(Request())
    received: list[Event] = []
    try:
        for piece in pieces:
            connection.receive_data(piece)
            while (event := connection.next_event()) is not None:
                received.append(event)
    except RemoteProtocolError:
        return received, True
    return received, False


@given(st.sampled_from(Role), streams, st.lists(st.integers(1, 40), max_size=30))
@settings(deadline=None, max_examples=300)
def test_cutting_the_bytes_anywhere_changes_nothing(role: Role, data: bytes, sizes: list[int]) -> None:
    pieces, rest = [], data
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    pieces.append(rest)
    assert run(role, pieces) == run(role, [data])


@given(st.sampled_from(Role), st.binary(max_size=400))
@settings(deadline=None, max_examples=300)
def test_random_bytes_give_protocol_errors_only(role: Role, data: bytes) -> None:
    run(role, [data])


@given(st.lists(streams, max_size=4))
@settings(deadline=None, max_examples=80)
def test_a_live_server_survives_any_bytes_and_serves_the_next_client(pieces: list[bytes]) -> None:
    async def attack() -> None:
        errors: list[dict[str, object]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(context))
        server = Server({NAME: Service(METHODS, Bench())})
        attacker, victim = socket.socketpair()
        mine, theirs = socket.socketpair()
        with attacker:
            server.adopt(victim)
            server.adopt(theirs)
            async with Client(mine) as client:
                for piece in pieces:
                    try:
                        attacker.send(piece)
                    except (BrokenPipeError, ConnectionResetError):
                        break
                    await asyncio.sleep(0)
                message = BytesValue(value=b"still here")
                answer = await client.call(NAME, "Echo", message, BytesValue, timeout_s=20)
                assert answer == message
        server.close()
        await server.wait_closed()
        assert errors == []

    asyncio.run(attack())
