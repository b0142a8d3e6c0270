"""The table of stream states: every pair of state and trigger, for both sides."""

from __future__ import annotations

import pytest

from common.ttrpc import Connection, Frame, LocalProtocolError, RemoteProtocolError, Role, encode_frame
from common.ttrpc._state import TRANSITIONS, StreamState, Trigger
from proto.gen.ttrpc.request_pb2 import Request, Response

CLIENT_TRIGGERS = {Trigger.CLIENT_DATA, Trigger.CLIENT_CLOSE}
SERVER_TRIGGERS = {Trigger.SERVER_DATA, Trigger.SERVER_CLOSE, Trigger.RESPONSE}
AFTER_REQUEST = [trigger for trigger in Trigger if trigger in CLIENT_TRIGGERS | SERVER_TRIGGERS]
BEGUN = (StreamState.UNARY, StreamState.OPEN, StreamState.CLIENT_CLOSED)

# Written down a second time on purpose: what the table must say, derived from the rules of the protocol.
LEGAL = {
    (StreamState.IDLE, Trigger.REQUEST_UNARY, StreamState.UNARY),
    (StreamState.IDLE, Trigger.REQUEST_OPEN, StreamState.OPEN),
    (StreamState.IDLE, Trigger.REQUEST_CLOSED, StreamState.CLIENT_CLOSED),
    (StreamState.UNARY, Trigger.RESPONSE, StreamState.FINISHED),
    (StreamState.OPEN, Trigger.CLIENT_DATA, StreamState.OPEN),
    (StreamState.OPEN, Trigger.CLIENT_CLOSE, StreamState.CLIENT_CLOSED),
    (StreamState.OPEN, Trigger.SERVER_DATA, StreamState.OPEN),
    (StreamState.OPEN, Trigger.SERVER_CLOSE, StreamState.FINISHED),
    (StreamState.OPEN, Trigger.RESPONSE, StreamState.FINISHED),
    (StreamState.CLIENT_CLOSED, Trigger.SERVER_DATA, StreamState.CLIENT_CLOSED),
    (StreamState.CLIENT_CLOSED, Trigger.SERVER_CLOSE, StreamState.FINISHED),
    (StreamState.CLIENT_CLOSED, Trigger.RESPONSE, StreamState.FINISHED),
}


def pair_in(state: StreamState) -> tuple[Connection, Connection, int]:
    """A client and a server whose stream 1 is in this state on both sides."""
    client, server = Connection(Role.CLIENT), Connection(Role.SERVER)
    if state is StreamState.IDLE:
        return client, server, 1
    begin = state if state in BEGUN else StreamState.UNARY
    stream_id, data = client.send_request(Request(), begin)
    server.receive_data(data)
    server.next_event()
    if state is StreamState.FINISHED:
        client.receive_data(server.send_response(stream_id, Response()))
        client.next_event()
    assert client.stream_state(stream_id) is server.stream_state(stream_id) is state
    return client, server, stream_id


def send(sender: Connection, stream_id: int, trigger: Trigger) -> bytes:
    if trigger is Trigger.RESPONSE:
        return sender.send_response(stream_id, Response())
    return sender.send_data(stream_id, b"", close=trigger in (Trigger.CLIENT_CLOSE, Trigger.SERVER_CLOSE))


def frame_of(stream_id: int, trigger: Trigger) -> Frame:
    if trigger is Trigger.RESPONSE:
        return Frame(stream_id, 2, 0, b"")
    return Frame(stream_id, 3, trigger in (Trigger.CLIENT_CLOSE, Trigger.SERVER_CLOSE), b"")


@pytest.mark.parametrize("state", StreamState)
@pytest.mark.parametrize("trigger", Trigger)
def test_the_table_holds_exactly_the_legal_transitions(state: StreamState, trigger: Trigger) -> None:
    after = TRANSITIONS[state].get(trigger)
    expected = {legal[2] for legal in LEGAL if legal[:2] == (state, trigger)}
    assert ({after} if after else set()) == expected


@pytest.mark.parametrize("state", StreamState)
@pytest.mark.parametrize("trigger", AFTER_REQUEST)
def test_sending_moves_both_sides_alike_or_is_a_local_error(state: StreamState, trigger: Trigger) -> None:
    client, server, stream_id = pair_in(state)
    sender, receiver = (client, server) if trigger in CLIENT_TRIGGERS else (server, client)
    after = TRANSITIONS[state].get(trigger)
    if after is None:
        with pytest.raises(LocalProtocolError):
            send(sender, stream_id, trigger)
        assert sender.stream_state(stream_id) is state
        return
    receiver.receive_data(send(sender, stream_id, trigger))
    assert receiver.next_event() is not None
    assert sender.stream_state(stream_id) is receiver.stream_state(stream_id) is after


@pytest.mark.parametrize("state", BEGUN)
@pytest.mark.parametrize("trigger", AFTER_REQUEST)
def test_an_illegal_frame_of_the_peer_is_a_remote_error(state: StreamState, trigger: Trigger) -> None:
    client, server, stream_id = pair_in(state)
    receiver = server if trigger in CLIENT_TRIGGERS else client
    if trigger in TRANSITIONS[state]:
        assert receiver.receive_frame(frame_of(stream_id, trigger)) is not None
    else:
        with pytest.raises(RemoteProtocolError):
            receiver.receive_frame(frame_of(stream_id, trigger))


@pytest.mark.parametrize("trigger", AFTER_REQUEST)
def test_a_frame_that_comes_late_on_a_finished_stream_is_dropped(trigger: Trigger) -> None:
    client, server, stream_id = pair_in(StreamState.FINISHED)
    receiver = server if trigger in CLIENT_TRIGGERS else client
    assert receiver.receive_frame(frame_of(stream_id, trigger)) is None


@pytest.mark.parametrize("state", (StreamState.IDLE, StreamState.FINISHED))
def test_a_request_cannot_begin_in_a_state_that_is_no_beginning(state: StreamState) -> None:
    with pytest.raises(LocalProtocolError):
        Connection(Role.CLIENT).send_request(Request(), state)


def test_frames_of_the_other_role_are_remote_errors() -> None:
    with pytest.raises(RemoteProtocolError):
        Connection(Role.CLIENT).receive_frame(Frame(1, 1, 0, b""))
    with pytest.raises(RemoteProtocolError):
        Connection(Role.SERVER).receive_frame(Frame(1, 2, 0, b""))


def test_a_role_cannot_send_what_the_other_one_sends() -> None:
    with pytest.raises(LocalProtocolError):
        Connection(Role.SERVER).send_request(Request())
    with pytest.raises(LocalProtocolError):
        Connection(Role.CLIENT).send_response(1, Response())


def test_an_unknown_frame_type_is_ignored() -> None:
    connection = Connection(Role.SERVER)
    connection.receive_data(encode_frame(1, 77, 0, b"future"))
    assert connection.next_event() is None
