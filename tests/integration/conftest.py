"""What the root tests share whose parts run in the process of the test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from common.process.exits import ExitWatcher
from tests.children import children, reaped


@pytest.fixture
async def watcher() -> AsyncIterator[ExitWatcher]:
    """Reaps what this process inherits; a test ends when that is done."""
    before = children()
    watcher = ExitWatcher()
    yield watcher
    await reaped(before)
    watcher.close()
