"""Addresses to serve metrics on."""

from __future__ import annotations

import pytest

from sandboxers.metrics.address import check_address, parse_address


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("unix:///run/m.sock", "/run/m.sock"),
        ("tcp://127.0.0.1:9640", ("127.0.0.1", 9640)),
        ("tcp://[::1]:1", ("::1", 1)),
        ("tcp://0.0.0.0:65535", ("0.0.0.0", 65535)),
    ],
)
def test_what_is_understood(address: str, parsed: object) -> None:
    assert parse_address(address) == parsed
    assert check_address(address) == ""


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("/run/m.sock", "neither unix"),
        ("unix://m.sock", "absolute path"),
        ("unix:///run/../m.sock", "without '..'"),
        (f"unix:///{'s' * 106}", "at most 106 bytes"),
        ("http://127.0.0.1:80", "neither"),
        ("tcp://localhost:80", "is no address"),
        ("tcp://127.0.0.1", "is no port"),
        ("tcp://127.0.0.1:0", "is no port"),
        ("tcp://127.0.0.1:65536", "is no port"),
        ("tcp://127.0.0.1:²", "is no port"),
    ],
)
def test_what_is_not(address: str, says: str) -> None:
    assert says in check_address(address)


def test_nothing_is_served_where_nothing_is_configured() -> None:
    assert check_address("") == ""
