"""What is printed for people: no wrapping, no trailing blanks, nothing that steers the terminal."""

from __future__ import annotations

import time

import pytest

from sandboxctl.output import age, print_table, printable, size


def test_columns_are_as_wide_as_their_widest_cell(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("ID", "STATE", "NAME"), [("abcdef", "up", ""), ("a", "stopped", "x y")])
    assert capsys.readouterr().out == "ID      STATE    NAME\nabcdef  up\na       stopped  x y\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(1, "1s"), (119, "119s"), (121, "2m"), (7100, "118m"), (7201, "2h"), (200000, "2d")]
)
def test_ages_are_told_in_one_unit(seconds: int, text: str) -> None:
    assert age(time.time_ns() - seconds * 10**9) == text


def test_an_unknown_instant_has_no_age() -> None:
    assert age(0) == "-"


def test_control_characters_of_others_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[31mb\tc\x9b") == "a?[31mb\tc?"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0B"), (999, "999B"), (1024, "1.0KiB"), (150 * 1024, "150KiB"), (5 << 40, "5.0TiB")],
)
def test_sizes_have_few_figures(count: int, text: str) -> None:
    assert size(count) == text
