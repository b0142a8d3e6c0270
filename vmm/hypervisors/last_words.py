"""What is told of an end: the exit of a process, the end of a log, a panic on a console."""

from __future__ import annotations

import os

from common.process.exits import ExitStatus

_BYTES = 2048
_PANIC = "Kernel panic - not syncing: "
_PANIC_CHARACTERS = 160


def last_words(path: str) -> str:
    """Return the end of a log as one printable line, empty if there is none: what it holds may come from a guest."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _BYTES))
            text = file.read(_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    joined = "; ".join(line for line in lines if line)
    return "".join(character if character.isprintable() else "?" for character in joined)


def panic_of(words: str) -> str:
    """Return what a kernel says of its panic in the end of its console, empty if it has not panicked."""
    _, found, rest = words.partition(_PANIC)
    return rest.partition(";")[0][:_PANIC_CHARACTERS] if found else ""


def described(status: ExitStatus | None) -> str:
    """Return in words how a process has ended."""
    if status is None or not status.known:
        return "has ended"
    if status.code > 128:
        return f"was killed by signal {status.code - 128}"
    return f"ended with code {status.code}"
