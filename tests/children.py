"""The children of processes, above all of that of the tests, for tests in which somebody else reaps."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tests.settling import async_settle

PROC = Path("/proc")


def children_of(pid: int, proc: Path = PROC) -> list[int]:
    """The pids of the children of a process's main thread, zombies too (proc_pid_children(5)).

    :param proc: a procfs; both the process and its children are named as it does.
    :raises FileNotFoundError, ProcessLookupError: there is no such process any more.
    """
    return [int(child) for child in (proc / f"{pid}/task/{pid}/children").read_text().split()]


def children() -> set[int]:
    """The pids of our own."""
    return set(children_of(os.getpid()))


def command_lines() -> dict[int, bytes]:
    """The command lines of our own by their pids; that of a zombie is empty, and who is reaped meanwhile has none."""
    lines = {}
    for pid in children():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            lines[pid] = (PROC / f"{pid}/cmdline").read_bytes()
    return lines


def children_named(text: bytes) -> list[int]:
    """The pids of our own whose command line has a text."""
    return [pid for pid, line in command_lines().items() if text in line]


async def reaped(before: set[int]) -> None:
    """Wait until there are no others than before.

    Not for ever: what is left then is found and told by the look at what every test leaves behind.
    """
    await async_settle(lambda: (f"child {pid}" for pid in children() - before))
