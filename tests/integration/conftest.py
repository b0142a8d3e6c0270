"""What the root tests share whose parts run in the process of the test."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.process.exits import ExitWatcher

_REAP_LIMIT_S = 2


@pytest.fixture
async def watcher() -> AsyncIterator[ExitWatcher]:
    """Reaps what this process inherits; a test ends when that is done."""
    before = _children()
    watcher = ExitWatcher()
    yield watcher
    # What is left then is found and told by the look at what every test leaves behind.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_REAP_LIMIT_S):
            while _children() - before:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.005)
    watcher.close()


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
