"""What is done aside is done in a thread, while the loop goes on."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from common.errors import DeadlineExceeded
from vmm.agent.aside import Aside

TIMEOUT_S = 10.0


class Work:
    """Something that takes as long as it is told, and counts who does it."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.may_end = threading.Event()

    def __call__(self) -> None:
        self.threads.append(threading.get_ident())
        assert self.may_end.wait(TIMEOUT_S)


async def test_it_is_done_while_the_loop_goes_on() -> None:
    aside, work = Aside(), Work()
    aside.start("it", work)
    waiting = asyncio.ensure_future(aside.wait("it", TIMEOUT_S))
    await asyncio.sleep(0)
    assert aside.is_busy("it")
    assert not aside.is_busy("something else")
    work.may_end.set()
    await waiting
    assert not aside.is_busy("it")
    assert len(work.threads) == 1
    assert work.threads != [threading.get_ident()]


async def test_a_failure_is_the_waiters() -> None:
    def fail() -> None:
        raise FileNotFoundError("it")

    aside = Aside()
    aside.start("it", fail)
    with pytest.raises(FileNotFoundError, match="it"):
        await aside.wait("it", TIMEOUT_S)
    assert not aside.is_busy("it")


async def test_what_takes_too_long_goes_on_alone_and_is_waited_for_again() -> None:
    before = set(os.listdir("/proc/self/fd"))
    aside, work = Aside(), Work()
    aside.start("it", work)
    with pytest.raises(DeadlineExceeded, match="it: not done within"):
        await aside.wait("it", 0.01)
    assert aside.is_busy("it")
    cancelled = asyncio.ensure_future(aside.wait("it", TIMEOUT_S))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert aside.is_busy("it")
    work.may_end.set()
    await aside.wait("it", TIMEOUT_S)
    await aside.wait("it", TIMEOUT_S)
    assert len(work.threads) == 1
    assert set(os.listdir("/proc/self/fd")) == before


async def test_with_a_busy_subject_nothing_else_is_done() -> None:
    aside, work = Aside(), Work()
    aside.start("it", work)
    with pytest.raises(AssertionError, match="something is being done with it"):
        aside.start("it", work)
    work.may_end.set()
    await aside.wait("it", TIMEOUT_S)
