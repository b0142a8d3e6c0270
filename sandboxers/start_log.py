"""The timelines of the last starts of pods and containers, one JSON line each, in two files of bounded size.

<state_dir>/.starts      those of now
            .starts.1    those before

Not in the pods' records: a start that has failed leaves no record, and is what is asked for most; and a pod that runs
need not carry how it was started.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from common.log import get_logger
from common.operations import Action, Operation
from common.records import from_data

FILE: Final = ".starts"
SIZE_BYTES: Final = 512 << 10
_STARTS: Final = frozenset(
    {Action.SANDBOX_CREATE, Action.SANDBOX_START, Action.CONTAINER_CREATE, Action.CONTAINER_START}
)

log = get_logger()


@dataclass(frozen=True, slots=True)
class _Line:
    """The fields of `Operation.as_data`."""

    action: str
    sandbox_id: str
    container_id: str
    exec_id: str
    pod: str
    began_at_ns: int
    age_us: int
    steps: list[list[Any]]
    error: str

    def __post_init__(self) -> None:
        for name, at_us in self.steps:
            if not isinstance(name, str) or type(at_us) is not int:
                raise ValueError("a step is a name with a time")


class StartLog:
    """Writes starts down. A line that cannot be written is missing: no pod fails for it."""

    def __init__(self, state_dir: str, size_bytes: int = SIZE_BYTES) -> None:
        """:param size_bytes: of each of the two files, at most, but for their last line."""
        self._path = f"{state_dir}/{FILE}"
        self._size_bytes = size_bytes
        self._failed = False
        self._fd = -1
        self._size = 0

    def note(self, ended: Operation) -> None:
        """Write an operation down if it belongs to a start."""
        if ended.action not in _STARTS:
            return
        line = json.dumps(ended.as_data(), separators=(",", ":")) + "\n"
        try:
            self._append(line.encode())
        except OSError as error:
            if not self._failed:
                log.error("start_log.not_written", path=self._path, error=error)
            self._failed = True
        else:
            self._failed = False

    def _append(self, line: bytes) -> None:
        if self._fd < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self._path, flags, 0o600)
            self._size = os.fstat(self._fd).st_size
        self._size += os.write(self._fd, line)
        if self._size > self._size_bytes:
            os.rename(self._path, f"{self._path}.1")
            self.close()

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_starts(state_dir: str) -> Iterator[dict[str, Any]]:
    """Yield what is on record of starts, oldest first, as `Operation.as_data` returns it; torn and odd lines are left
    out."""
    for name in (f"{FILE}.1", FILE):
        with (
            contextlib.suppress(FileNotFoundError),
            open(f"{state_dir}/{name}", encoding="utf-8", errors="replace") as file,
        ):
            for line in file:
                with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
                    start = json.loads(line)
                    from_data(_Line, start)
                    yield start
