"""The codec: what two connections tell each other, whatever way the bytes are cut."""

from __future__ import annotations

import pytest

from common.ttrpc import (
    MAX_DATA_SIZE,
    Connection,
    DataReceived,
    Event,
    Frame,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    RequestReceived,
    ResponseReceived,
    Role,
    StatusCode,
    StreamRefused,
    StreamState,
    encode_frame,
)
from common.ttrpc._frames import HEADER
from proto.gen.ttrpc.request_pb2 import Request, Response


def events(connection: Connection, data: bytes, step: int = 0) -> list[Event]:
    received = []
    for start in range(0, len(data), step or len(data) or 1):
        connection.receive_data(data[start : start + (step or len(data))])
        while (event := connection.next_event()) is not None:
            received.append(event)
    return received


REQUEST = Request(service="s", method="m", payload=b"p", timeout_nano=5)
# Bytes as they travel, and the events they make at a server; streams 1 (unary), 3 (open), 5 (client closed).
CONVERSATION: list[tuple[bytes, Event]] = [
    (
        encode_frame(1, 1, 0, REQUEST.SerializeToString()),
        RequestReceived(1, REQUEST, StreamState.UNARY),
    ),
    (
        encode_frame(3, 1, 2, REQUEST.SerializeToString()),
        RequestReceived(3, REQUEST, StreamState.OPEN),
    ),
    (encode_frame(3, 3, 0, b"data"), DataReceived(3, b"data", False)),
    (encode_frame(3, 3, 0, b""), DataReceived(3, b"", False)),
    (encode_frame(3, 3, 5, b""), DataReceived(3, None, True)),
    (
        encode_frame(5, 1, 1, REQUEST.SerializeToString()),
        RequestReceived(5, REQUEST, StreamState.CLIENT_CLOSED),
    ),
    (
        encode_frame(4, 1, 0, b""),
        StreamRefused(4, StatusCode.INVALID_ARGUMENT, "stream id 4 is even: those of clients are odd"),
    ),
]


@pytest.mark.parametrize("step", (0, 1, 7, 11))
def test_a_conversation_makes_the_same_events_however_it_is_cut(step: int) -> None:
    data = b"".join(data for data, _ in CONVERSATION)
    assert events(Connection(Role.SERVER), data, step) == [event for _, event in CONVERSATION]


def test_the_client_writes_the_bytes_that_the_protocol_prescribes() -> None:
    client = Connection(Role.CLIENT)
    assert client.send_request(REQUEST) == (1, CONVERSATION[0][0])
    assert client.send_request(REQUEST, StreamState.OPEN) == (3, CONVERSATION[1][0])
    assert client.send_data(3, b"data") == CONVERSATION[2][0]
    assert client.send_data(3, b"") == CONVERSATION[3][0]
    assert client.send_data(3, None, close=True) == CONVERSATION[4][0]
    assert client.send_request(REQUEST, StreamState.CLIENT_CLOSED) == (5, CONVERSATION[5][0])


def test_a_response_comes_back_to_the_stream_that_asked() -> None:
    client, server = Connection(Role.CLIENT), Connection(Role.SERVER)
    (first, one), (second, two) = client.send_request(REQUEST), client.send_request(REQUEST)
    assert len(events(server, one + two)) == 2
    answers = server.send_response(second, Response(payload=b"2")) + server.send_response(
        first, Response(payload=b"1")
    )
    assert events(client, answers) == [
        ResponseReceived(second, Response(payload=b"2")),
        ResponseReceived(first, Response(payload=b"1")),
    ]


def test_an_id_that_does_not_grow_is_refused_and_harms_no_other_stream() -> None:
    server = Connection(Role.SERVER)
    data = REQUEST.SerializeToString()
    received = events(server, b"".join(encode_frame(i, 1, 0, data) for i in (5, 5, 3, 7)))
    assert [type(event) for event in received] == [
        RequestReceived,
        StreamRefused,
        StreamRefused,
        RequestReceived,
    ]
    assert server.last_stream_id == 7


def test_an_oversized_request_is_refused_without_keeping_its_data() -> None:
    server = Connection(Role.SERVER)
    size = MAX_DATA_SIZE + 1
    received = events(server, HEADER.pack(size, 1, 1, 0))
    piece = bytes(1 << 16)
    for start in range(0, size, len(piece)):
        received += events(server, piece[: size - start])
        assert server._buffer is not None
        assert len(server._buffer._bytes) == 0
    received += events(server, encode_frame(3, 1, 0, REQUEST.SerializeToString()))
    assert received[0].stream_id == 1
    assert isinstance(received[0], StreamRefused)
    assert received[0].code == StatusCode.RESOURCE_EXHAUSTED
    assert received[1:] == [RequestReceived(3, REQUEST, StreamState.UNARY)]


def test_a_frame_of_exactly_the_limit_passes() -> None:
    server = Connection(Role.SERVER)
    events(server, encode_frame(1, 1, 2, REQUEST.SerializeToString()))
    assert events(server, encode_frame(1, 3, 0, bytes(MAX_DATA_SIZE))) == [
        DataReceived(1, bytes(MAX_DATA_SIZE), False)
    ]


def test_an_oversized_frame_cannot_be_sent_and_changes_nothing() -> None:
    client = Connection(Role.CLIENT)
    with pytest.raises(LocalProtocolError):
        client.send_request(Request(payload=bytes(MAX_DATA_SIZE)))
    assert client.send_request(REQUEST)[0] == 1


def test_an_oversized_answer_fails_only_its_stream() -> None:
    client = Connection(Role.CLIENT)
    client.send_request(REQUEST)
    (event,) = events(client, HEADER.pack(MAX_DATA_SIZE + 1, 1, 2, 0))
    assert isinstance(event, StreamRefused)
    assert client.stream_state(1) is StreamState.FINISHED


def test_a_request_that_cannot_be_decoded_is_refused() -> None:
    (event,) = events(Connection(Role.SERVER), encode_frame(1, 1, 0, b"\xff\xff"))
    assert isinstance(event, StreamRefused)
    assert event.code == StatusCode.INVALID_ARGUMENT


def test_data_on_a_stream_never_opened_is_refused_at_a_server_and_an_error_at_a_client() -> None:
    (event,) = events(Connection(Role.SERVER), encode_frame(9, 3, 0, b""))
    assert isinstance(event, StreamRefused)
    with pytest.raises(RemoteProtocolError):
        events(Connection(Role.CLIENT), encode_frame(9, 3, 0, b""))


def test_data_flagged_as_none_must_be_none() -> None:
    server = Connection(Role.SERVER)
    events(server, encode_frame(1, 1, 2, b""))
    with pytest.raises(RemoteProtocolError):
        events(server, encode_frame(1, 3, 4, b"x"))


def test_an_abandoned_stream_takes_no_notice_of_its_answer() -> None:
    client, server = Connection(Role.CLIENT), Connection(Role.SERVER)
    stream_id, data = client.send_request(REQUEST)
    events(server, data)
    client.abandon(stream_id)
    assert events(client, server.send_response(stream_id, Response())) == []


def test_stream_ids_end_with_an_error() -> None:
    client = Connection(Role.CLIENT)
    client._last_stream_id = (1 << 32) - 1
    with pytest.raises(LocalProtocolError, match="used up"):
        client.send_request(REQUEST)


def test_the_base_of_the_protocol_errors_cannot_be_raised() -> None:
    with pytest.raises(TypeError):
        ProtocolError("whose fault?")


def test_a_whole_frame_can_be_given_directly() -> None:
    server = Connection(Role.SERVER)
    assert server.receive_frame(Frame(1, 1, 0, REQUEST.SerializeToString())) == CONVERSATION[0][1]
