"""Lines of logs as engines write them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import NotFound
from sandboxctl.logs import Log, LogLine, parse_line

TIME = "2026-11-25T21:00:00.123456789Z"


@pytest.mark.parametrize(
    ("line", "parsed"),
    [
        (f"{TIME} stdout F a b  c\n", LogLine(TIME, "stdout", False, "a b  c")),
        (f"{TIME} stderr P half", LogLine(TIME, "stderr", True, "half")),
        (f"{TIME} stdout F \n", LogLine(TIME, "stdout", False, "")),
        ("no such line\n", LogLine("", "stdout", False, "no such line")),
    ],
)
def test_a_line_is_taken_apart(line: str, parsed: LogLine) -> None:
    assert parse_line(line.encode()) == parsed


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    assert parse_line(f"{TIME} stdout F ".encode() + b"\xff\n").text == "\N{REPLACEMENT CHARACTER}"


def texts(lines: Iterator[LogLine]) -> list[str]:
    return [line.text for line in lines]


def test_the_last_lines_are_shown(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "0.log"), annotated=False)
    Path(log.path).write_text("".join(f"{n}\n" for n in range(100)))
    assert texts(log.lines(None, lambda: False)) == [str(n) for n in range(100)]
    assert texts(log.lines(2, lambda: False)) == ["98", "99"]
    assert texts(log.lines(0, lambda: False)) == []


def test_a_line_in_the_making_is_shown_when_it_is_whole_or_at_the_end(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "0.log"), annotated=False)
    path = Path(log.path)
    path.write_text("one\ntw")
    contents = iter(["one\ntw", "one\ntwo\nthr"])

    def goes_on() -> bool:
        text = next(contents, "")
        if text:
            path.write_text(text)
        return bool(text)

    assert list(log.lines(None, goes_on)) == [
        LogLine("", "stdout", False, "one"),
        LogLine("", "stdout", False, "two"),
        LogLine("", "stdout", True, "thr"),
    ]


def test_a_rotated_log_is_read_to_its_end_and_then_the_new_one(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "0.log"), annotated=False)
    path = Path(log.path)
    path.write_text("old\n")

    def goes_on() -> bool:
        if (tmp_path / "0.log.1").exists():
            return False
        path.rename(tmp_path / "0.log.1")
        path.write_text("new\n")
        return True

    assert texts(log.lines(None, goes_on)) == ["old", "new"]


def test_a_log_that_is_gone_is_named(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "none.log"), annotated=True)
    with pytest.raises(NotFound, match=r"none\.log"):
        list(log.lines(None, lambda: False))
