"""Numbers of users and groups."""

from __future__ import annotations

import pytest

from sandboxctl.ids import parse_id


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("1000", 1000), ("2147483647", 2147483647)])
def test_what_is_a_number(text: str, number: int) -> None:
    assert parse_id(text) == number


@pytest.mark.parametrize(
    "text", ["", "-1", "²", "٣", "x", "1 ", "2147483648", "0" * 10 + "99999999999", "0" * 5000]
)
def test_what_is_none(text: str) -> None:
    assert parse_id(text) is None
