"""What is done aside is done in a thread, while the loop goes on."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from common.errors import DeadlineExceeded
from vmm.agent.aside import run_aside


async def test_the_result_comes_while_the_loop_goes_on() -> None:
    asked = threading.Event()

    def wait() -> int:
        assert asked.wait(5)
        return threading.get_ident()

    waiting = asyncio.ensure_future(run_aside(wait, "waiting", 5))
    await asyncio.sleep(0)
    asked.set()
    assert await waiting != threading.get_ident()


async def test_a_failure_is_the_callers() -> None:
    def fail() -> None:
        raise FileNotFoundError("it")

    with pytest.raises(FileNotFoundError, match="it"):
        await run_aside(fail, "failing", 5)


async def test_what_takes_too_long_goes_on_alone_and_leaves_nothing_open() -> None:
    before = set(os.listdir("/proc/self/fd"))
    may_end, ended = threading.Event(), threading.Event()

    def wait() -> None:
        may_end.wait(5)
        ended.set()

    with pytest.raises(DeadlineExceeded, match="waiting: not done within"):
        await run_aside(wait, "waiting", 0.01)
    may_end.set()
    assert ended.wait(5)
    for _ in range(500):
        if set(os.listdir("/proc/self/fd")) == before:
            break
        await asyncio.sleep(0.01)
    assert set(os.listdir("/proc/self/fd")) == before
