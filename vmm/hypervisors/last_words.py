"""What is told of an end: the exit of a process, the end of a log, a panic on a console or of a thread."""

from __future__ import annotations

import os
import re

from common.log_files import LIMIT_BYTES
from common.process.exits import ExitStatus

_WORDS_BYTES = 2048
# The registers and the stack come after the reason.
_PANIC_BYTES = 16 * 1024
_PANIC = "Kernel panic - not syncing: "
_PANIC_CHARACTERS = 160
# Rust's, of a whole line: thread 'name' (number) panicked at file:line:column:
_THREAD_PANIC = re.compile(rb"^thread '[^\n]* panicked at ", re.MULTILINE)


def last_words(path: str) -> str:
    """Return the end of a log as one printable line, empty if there is none."""
    return "; ".join(_last_lines(path, _WORDS_BYTES))


def panic_on(path: str) -> str:
    """Return what a kernel says of its panic at the end of its console, empty if it has not panicked."""
    lines = reversed(_last_lines(path, _PANIC_BYTES))
    reasons = (line.partition(_PANIC)[2] for line in lines if _PANIC in line)
    return next(reasons, "")[:_PANIC_CHARACTERS]


def thread_has_panicked(path: str) -> bool:
    """Tell whether a log says that a thread of a program in Rust has panicked: the others may run on.

    All of it is looked at that `LogFiles` leaves, as much may have been said since; and whole lines alone, as programs
    log the names of files, which anybody in a guest chooses.
    """
    log, is_whole = _end_of(path, LIMIT_BYTES)
    return _THREAD_PANIC.search(log, 0 if is_whole else log.find(b"\n") + 1) is not None


def _last_lines(path: str, count_bytes: int) -> list[str]:
    """Return the last lines without what a terminal would obey: they may come from a guest."""
    text = _end_of(path, count_bytes)[0].decode(errors="replace")
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return [
        "".join(character if character.isprintable() else "?" for character in line) for line in lines if line
    ]


def _end_of(path: str, count_bytes: int) -> tuple[bytes, bool]:
    """Return the last bytes of a log, none if there is no log, and whether that is all of it."""
    try:
        # Not a link or a FIFO, which a process of the machine may have put there.
        with open(path, "rb", opener=_open_file) as file:
            offset = max(0, os.fstat(file.fileno()).st_size - count_bytes)
            file.seek(offset)
            return file.read(count_bytes), not offset
    except OSError:
        return b"", True


def _open_file(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def described(status: ExitStatus | None) -> str:
    """Return in words how a process has ended."""
    if status is None or not status.known:
        return "has ended"
    if status.code > 128:
        return f"was killed by signal {status.code - 128}"
    return f"ended with code {status.code}"
