"""FIFOs as an engine makes them, and a look at open descriptors."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.common.task.pod_lives import pod

__all__ = ["fifo", "open_descriptors", "pod", "until"]


@pytest.fixture
def fifo(tmp_path: Path) -> Callable[[str], str]:
    def make(name: str) -> str:
        path = str(tmp_path / name)
        os.mkfifo(path, 0o700)
        return path

    return make


async def until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    """Let the loop run until the condition holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - any condition, not only what sets an event
            await asyncio.sleep(0.001)


def open_descriptors() -> set[str]:
    """What this process has open, as "number -> target"."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{fd} -> {os.readlink(f'/proc/self/fd/{fd}')}")
        except FileNotFoundError:
            continue
    return found
