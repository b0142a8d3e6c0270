"""What both ends must agree on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidArgument
from vmm import protocol


def test_a_stream_is_what_its_opening_line_says() -> None:
    assert protocol.parse_opening(protocol.open_stream_line("c1-out").rstrip(b"\n")) == "c1-out"
    assert protocol.stream_of(protocol.stream_uri("c1-out")) == "c1-out"


@given(st.integers(1, 65535))
def test_a_port_is_what_its_opening_line_says(port: int) -> None:
    assert protocol.parse_opening(protocol.open_port_line(port).rstrip(b"\n")) == port


@pytest.mark.parametrize(
    "line",
    [b"", b"STREAM", b"STREAM ", b"STREAM a/b", b"PORT 0", b"PORT 65536", b"PORT 1.5", b"PORT -1", b"port 1"],
)
def test_other_lines_open_nothing(line: bytes) -> None:
    with pytest.raises(InvalidArgument):
        protocol.parse_opening(line)


@given(st.binary(max_size=200))
def test_whatever_comes_opens_something_legal_or_nothing(line: bytes) -> None:
    try:
        wanted = protocol.parse_opening(line)
    except InvalidArgument:
        return
    if isinstance(wanted, int):
        assert 0 < wanted < 65536
    else:
        assert protocol.stream_uri(wanted)


def test_longest_names_fit_into_an_opening() -> None:
    assert len(protocol.open_stream_line("a" * 76)) <= protocol.OPENING_LIMIT_BYTES


@pytest.mark.parametrize("tag", ["..", "a/b", "", "-x"])
def test_shares_stay_in_their_directory(tag: str) -> None:
    with pytest.raises(InvalidArgument):
        protocol.share_path(tag)
