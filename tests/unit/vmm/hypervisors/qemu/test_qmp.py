"""QMP without I/O: every message is understood or refused, however the stream is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.hypervisors.qemu.qmp import (
    LONGEST_MESSAGE_BYTES,
    Decoder,
    Event,
    Greeting,
    ProtocolError,
    Reply,
    encode,
)

GREETING = (
    b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""},'
    b' "capabilities": []}}\r\n'
)
EVENT = (
    b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN",'
    b' "data": {"guest": true, "reason": "x"}}\r\n'
)

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def greeted() -> Decoder:
    decoder = Decoder()
    assert decoder.feed(GREETING) == [Greeting("7.2.22")]
    return decoder


def test_a_command_has_its_number_and_its_arguments() -> None:
    assert json.loads(encode(3, "device_del", {"id": "x"})) == {
        "execute": "device_del",
        "id": 3,
        "arguments": {"id": "x"},
    }
    assert encode(1, "stop", {}) == b'{"execute":"stop","id":1}\n'


def test_replies_and_events_are_told_apart() -> None:
    data = (
        b'{"return": {}, "id": 1}\r\n'
        + EVENT
        + b'{"error": {"class": "GenericError", "desc": "no"}, "id": 2}\r\n'
    )
    assert greeted().feed(data) == [
        Reply(1, {}, ""),
        Event("SHUTDOWN", {"guest": True, "reason": "x"}),
        Reply(2, None, "no"),
    ]


def test_an_event_may_come_without_data_and_an_error_without_a_number() -> None:
    assert greeted().feed(b'{"event": "STOP"}\n{"error": {"class": "GenericError", "desc": ""}}\n') == [
        Event("STOP", {}),
        Reply(0, None, "no reason given"),
    ]


@given(st.lists(st.integers(min_value=1, max_value=40), max_size=40))
def test_it_does_not_matter_how_the_stream_is_cut(sizes: list[int]) -> None:
    data = GREETING + EVENT * 3 + b'{"return": [1], "id": 9}\r\n'
    decoder, seen, position = Decoder(), [], 0
    for size in sizes:
        seen += decoder.feed(data[position : position + size])
        position += size
    seen += decoder.feed(data[position:])
    assert seen == Decoder().feed(data)
    assert len(seen) == 5


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"junk",
        b"[1]",
        b'"text"',
        b"{}",
        b"null",
        b'{"return": {}, "id": "one"}',
        b'{"event": 1}',
        b'{"event": "STOP", "data": []}',
        b'{"error": "text", "id": 1}',
        b'{"error": {"desc": 1}, "id": 1}',
        b'{"QMP": {}}',
        b'{"return": {}, "id": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_what_is_no_message_is_refused(line: bytes) -> None:
    decoder = greeted()
    if not line:
        assert decoder.feed(b"\r\n\n") == []
        return
    with pytest.raises(ProtocolError):
        decoder.feed(line + b"\n")


@pytest.mark.parametrize(
    "first",
    [
        EVENT,
        b'{"return": {}, "id": 1}\n',
        b'{"QMP": {"version": {"qemu": 7}}}\n',
        b'{"QMP": {"version": {"qemu": {"major": "x", "minor": 1, "micro": 1}}}}\n',
    ],
)
def test_the_greeting_comes_first(first: bytes) -> None:
    with pytest.raises(ProtocolError):
        Decoder().feed(first)


def test_there_is_one_greeting() -> None:
    with pytest.raises(ProtocolError, match="second"):
        greeted().feed(GREETING)


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_message_has_a_limit(end: bytes) -> None:
    decoder = greeted()
    with pytest.raises(ProtocolError, match="more than"):
        decoder.feed(b'"' + b"x" * LONGEST_MESSAGE_BYTES + end)


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_waited_for(data: bytes) -> None:
    decoder = greeted()
    try:
        for message in decoder.feed(data):
            assert isinstance(message, Reply | Event)
    except ProtocolError:
        pass


@given(json_values)
def test_every_json_value_is_understood_or_refused(value: Any) -> None:
    decoder = greeted()
    try:
        for message in decoder.feed(json.dumps(value).encode() + b"\n"):
            assert isinstance(message, Reply | Event)
    except ProtocolError:
        pass


@given(st.integers(min_value=0), st.text(), st.dictionaries(st.text(), json_values))
def test_a_command_is_one_line(number: int, command: str, arguments: dict[str, Any]) -> None:
    line = encode(number, command, arguments)
    assert line.count(b"\n") == 1
    assert json.loads(line)["id"] == number
