"""Structured log lines: an event name, fields, and the ids of the pod and container it is about.

    log = get_logger()
    with bound(sandbox_id=sandbox_id):
        log.info("sandbox.started", took_ms=12.4)

A line is one JSON object: `ts` (RFC 3339, UTC), `level`, `event`, then the ids, then the fields. An
exception goes in as a field (`error=exception`): its text and class are logged, its traceback only at
level debug.

The calls look like structlog's on purpose, but only the console format, for people, loads it: JSON costs
0.1 MiB, structlog 1.6 MiB (6.3 MiB where rich is installed), and the guest's agent, which must start fast,
logs with this module too. Neither uses the standard library's logging.
"""

from __future__ import annotations

import contextlib
import contextvars
import enum
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any


class Level(enum.StrEnum):
    """From which severity on lines are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Format(enum.StrEnum):
    """How a line looks: JSON for a collector, console for people."""

    JSON = "json"
    CONSOLE = "console"


_SEVERITY = {level: severity for severity, level in enumerate(Level)}

Renderer = Callable[[dict[str, Any]], str]
Sink = Callable[[dict[str, Any]], None]
Observer = Callable[[Level, str, Mapping[str, Any]], None]
"""Told of an event's level, its name and its fields."""


class Logger:
    """Writes events; `bind` returns one whose fields appear in each of its lines."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def bind(self, **fields: Any) -> Logger:
        return Logger({**self._fields, **fields})

    def debug(self, event: str, /, **fields: Any) -> None:
        if _output.severity == 0:
            _output.write(Level.DEBUG, event, self._fields, fields)

    def info(self, event: str, /, **fields: Any) -> None:
        if _observer is not None:
            _observer(Level.INFO, event, fields)
        if _output.severity <= 1:
            _output.write(Level.INFO, event, self._fields, fields)

    def warning(self, event: str, /, **fields: Any) -> None:
        if _observer is not None:
            _observer(Level.WARNING, event, fields)
        if _output.severity <= 2:
            _output.write(Level.WARNING, event, self._fields, fields)

    def error(self, event: str, /, **fields: Any) -> None:
        if _observer is not None:
            _observer(Level.ERROR, event, fields)
        _output.write(Level.ERROR, event, self._fields, fields)


def get_logger(**fields: Any) -> Logger:
    """Return a logger that adds `fields` to each line; it follows later calls of `configure`."""
    return Logger(fields)


def configure(level: Level = Level.INFO, format: Format = Format.JSON, *, fd: int = 2) -> None:
    """Choose for the whole process what is logged, how it looks and to which descriptor it goes."""
    _output.severity = _SEVERITY[level]
    render = _json_line if format is Format.JSON else _console_renderer(colors=os.isatty(fd))
    _output.sink = lambda line: _write(fd, render(line))


def observe_events(observer: Observer | None) -> None:
    """Let one observer, which must not raise, be told of every event but those for debugging, written or not."""
    global _observer
    _observer = observer


@contextlib.contextmanager
def bound(**ids: Any) -> Iterator[None]:
    """Add ids to every line of this context and of the tasks it starts, whoever logs it."""
    outer = _ids.get()
    _ids.set({**outer, **ids})
    try:
        yield
    finally:
        # Not reset(token): a call begun inline and ended as a task leaves another context than it entered.
        _ids.set(outer)


@contextlib.contextmanager
def capture() -> Iterator[list[dict[str, Any]]]:
    """Collect lines, of every level, as dictionaries instead of writing them; for tests."""
    global _output
    lines: list[dict[str, Any]] = []
    before = _output
    _output = _Output(severity=0, sink=lines.append)
    try:
        yield lines
    finally:
        _output = before


class _Output:
    """Where lines go, and from which severity on."""

    __slots__ = ("severity", "sink")

    def __init__(self, severity: int, sink: Sink) -> None:
        self.severity = severity
        self.sink = sink

    def write(self, level: Level, event: str, *sources: Mapping[str, Any]) -> None:
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        line: dict[str, Any] = {
            "ts": f"{moment}.{nanoseconds // 1000:06d}Z",
            "level": level.value,
            "event": event,
        }
        for source in (_ids.get(), *sources):
            for name, value in source.items():
                if isinstance(value, BaseException):
                    line[name] = str(value) or type(value).__name__
                    line[f"{name}_type"] = type(value).__name__
                    if self.severity == 0:
                        line["traceback"] = _traceback(value)
                else:
                    line[name] = value
        self.sink(line)


def _json_line(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False, separators=(",", ":"), default=str) + "\n"


def _console_renderer(*, colors: bool) -> Renderer:
    # structlog loads rich where it finds it, for tracebacks that are not used here: 4.7 MiB.
    hidden = "rich" not in sys.modules
    if hidden:
        sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog
    finally:
        if hidden:
            del sys.modules["rich"]
    console = structlog.dev.ConsoleRenderer(
        colors=colors, timestamp_key="ts", exception_formatter=structlog.dev.plain_traceback
    )

    def render(line: dict[str, Any]) -> str:
        traceback = line.pop("traceback", "")
        return f"{console(None, '', line)}\n{traceback}"

    return render


def _traceback(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error))


def _write(fd: int, line: str) -> None:
    # A log that cannot be written (reader gone, disk full) must not stop pods from being served.
    with contextlib.suppress(OSError):
        os.write(fd, line.encode(errors="backslashreplace"))


_ids: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar("log_ids", default={})  # noqa: B039
_observer: Observer | None = None
_output = _Output(_SEVERITY[Level.INFO], lambda line: _write(2, _json_line(line)))
