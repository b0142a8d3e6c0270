"""Log lines: their shape, their ids, their levels, and what they cost to load."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import NotFound
from common.log import Format, Level, bound, capture, configure, get_logger, observe_events

ROOT = Path(__file__).parents[3]


class Lines:
    """The reading end of the descriptor that the log writes to."""

    def __init__(self) -> None:
        self._reader, self.fd = os.pipe()

    def text(self) -> str:
        os.set_blocking(self._reader, False)
        try:
            return os.read(self._reader, 1 << 16).decode()
        except BlockingIOError:
            return ""

    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]

    def close(self) -> None:
        os.close(self._reader)
        os.close(self.fd)


@pytest.fixture
def lines() -> Iterator[Lines]:
    pipe = Lines()
    yield pipe
    configure()
    pipe.close()


def test_a_line_is_one_json_object_with_time_level_event_ids_and_fields(lines: Lines) -> None:
    configure(fd=lines.fd)
    with bound(sandbox_id="s1"):
        get_logger(type="runc").info("sandbox.started", took_ms=1.5, name="a\nb é")
    (line,) = lines.json()
    assert list(line) == ["ts", "level", "event", "sandbox_id", "type", "took_ms", "name"]
    assert line["ts"].endswith("Z") and len(line["ts"]) == len("2026-01-01T00:00:00.000000Z")
    assert (line["level"], line["event"], line["sandbox_id"]) == ("info", "sandbox.started", "s1")
    assert line["name"] == "a\nb é"


@pytest.mark.parametrize(
    ("level", "written"),
    [
        (Level.DEBUG, ["debug", "info", "warning", "error"]),
        (Level.INFO, ["info", "warning", "error"]),
        (Level.WARNING, ["warning", "error"]),
        (Level.ERROR, ["error"]),
    ],
)
def test_lines_below_the_level_are_not_written(lines: Lines, level: Level, written: list[str]) -> None:
    configure(level, fd=lines.fd)
    logger = get_logger()
    logger.debug("x")
    logger.info("x")
    logger.warning("x")
    logger.error("x")
    assert [line["level"] for line in lines.json()] == written


def test_an_error_is_logged_as_text_and_class_without_a_traceback(lines: Lines) -> None:
    configure(fd=lines.fd)
    get_logger().error("task.failed", error=NotFound("no container x"))
    (line,) = lines.json()
    assert (line["error"], line["error_type"]) == ("no container x", "NotFound")
    assert "traceback" not in line


def test_an_error_without_text_shows_its_class(lines: Lines) -> None:
    configure(fd=lines.fd)
    get_logger().error("task.failed", error=TimeoutError())
    assert lines.json()[0]["error"] == "TimeoutError"


@pytest.mark.parametrize("format", list(Format))
def test_level_debug_adds_the_traceback(lines: Lines, format: Format) -> None:
    configure(Level.DEBUG, format, fd=lines.fd)
    try:
        raise NotFound("gone")
    except NotFound as error:
        get_logger().error("task.failed", error=error)
    text = lines.text()
    assert "Traceback (most recent call last)" in text
    assert __file__ in text


def test_the_console_format_shows_event_and_fields_on_one_line(lines: Lines) -> None:
    configure(format=Format.CONSOLE, fd=lines.fd)
    get_logger().info("sandbox.started", took_ms=2)
    text = lines.text()
    assert text.count("\n") == 1
    assert "sandbox.started" in text and "took_ms=2" in text
    assert "\x1b" not in text


def test_bind_keeps_fields_and_leaves_the_original_alone() -> None:
    plain = get_logger(a=1)
    richer = plain.bind(b=2)
    with capture() as events:
        plain.info("x")
        richer.info("x")
    assert ("b" in events[0], events[1]["a"], events[1]["b"]) == (False, 1, 2)


async def test_ids_follow_their_task_and_do_not_leak_to_others() -> None:
    seen: dict[str, Any] = {}

    async def work(name: str) -> None:
        with bound(container_id=name):
            await asyncio.sleep(0)
            with capture() as events:
                get_logger().info("x")
            seen[name] = events[0]["container_id"]

    await asyncio.gather(work("a"), work("b"))
    assert seen == {"a": "a", "b": "b"}
    with capture() as events:
        get_logger().info("x")
    assert "container_id" not in events[0]


async def test_ids_may_be_left_in_another_context_than_they_were_entered() -> None:
    async def work() -> str:
        with bound(container_id="c"):
            await asyncio.sleep(0)
        return "done"

    coroutine = work()
    coroutine.send(None)  # begun inline, as the ttrpc server does, and continued in a task

    async def finish() -> str:
        try:
            coroutine.send(None)
        except StopIteration as end:
            return str(end.value)
        return "still running"

    assert await asyncio.create_task(finish()) == "done"


def test_a_closed_reader_and_odd_values_do_not_raise() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    configure(fd=writer)
    try:
        get_logger().info("x", value=object(), text="\udc80", data=b"\xff")
    finally:
        configure()
        os.close(writer)


def test_whoever_observes_events_is_told_of_all_but_those_for_debugging() -> None:
    told: list[tuple[str, str, int]] = []
    observe_events(lambda level, event, fields: told.append((level.value, event, fields["n"])))
    try:
        with open(os.devnull, "wb") as sink:
            configure(Level.ERROR, fd=sink.fileno())
            log = get_logger()
            log.debug("d", n=1)
            log.info("i", n=2)
            log.warning("w", n=3)
            log.error("e", n=4)
    finally:
        observe_events(None)
        configure()
    assert told == [("info", "i", 2), ("warning", "w", 3), ("error", "e", 4)]


def test_neither_the_module_nor_a_json_line_loads_structlog_or_logging() -> None:
    code = (
        "import sys, common.log as log; log.configure(); log.get_logger().info('x');"
        "sys.exit(any(name in sys.modules for name in ('structlog', 'logging', 'yaml', 'asyncio')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0
    assert json.loads(done.stderr)["event"] == "x"


def test_the_console_format_loads_structlog_without_rich() -> None:
    code = (
        "import sys, common.log as log; log.configure(format=log.Format.CONSOLE);"
        "sys.exit('structlog' not in sys.modules or 'rich' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
