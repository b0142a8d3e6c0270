"""The first process of a shared PID namespace: told when it dies, silent when it is destroyed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from common.process.exits import ExitStatus, ExitWatcher
from common.process.spawn import CLEAN_ENVIRONMENT
from sandboxers.host.pod_init import PodInit


@pytest.fixture
async def exits() -> Any:
    watcher = ExitWatcher()
    yield watcher
    watcher.close()


@pytest.fixture
def pid() -> Iterator[int]:
    pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], CLEAN_ENVIRONMENT)
    yield pid


async def test_its_death_is_told(exits: ExitWatcher, pid: int) -> None:
    deaths: list[ExitStatus] = []
    PodInit(exits, pid, None, deaths.append)
    os.kill(pid, signal.SIGTERM)
    async with asyncio.timeout(20):
        while not deaths:  # noqa: ASYNC110 - a list, not an event
            await asyncio.sleep(0.01)
    assert deaths[0].code == 143


async def test_a_destroy_that_was_given_up_can_be_repeated_and_tells_nobody(
    exits: ExitWatcher, pid: int
) -> None:
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
    deaths: list[ExitStatus] = []
    init = PodInit(exits, pid, None, deaths.append)
    destroy = asyncio.ensure_future(init.destroy())
    await asyncio.sleep(0)
    destroy.cancel()
    await asyncio.sleep(0.1)
    for _ in range(2):
        await init.destroy()
    assert (deaths, faults) == ([], [])
