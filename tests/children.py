"""The children of the process of the tests, for tests in which somebody else reaps."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

LIMIT_S = 20.0


def children() -> set[int]:
    """The pids of those that the main thread has, zombies too (proc_pid_children(5))."""
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def command_lines() -> dict[int, bytes]:
    """Their command lines by their pids; that of a zombie is empty."""
    return {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children()}


def children_named(text: bytes) -> list[int]:
    """The pids of those whose command line has a text."""
    return [pid for pid, line in command_lines().items() if text in line]


async def reaped(before: set[int]) -> None:
    """Wait until there are no others than before.

    Not for ever: what is left then is found and told by the look at what every test leaves behind.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LIMIT_S):
            while children() - before:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.005)
