"""Doing aside, in a thread of its own, what may wait for the host: the agent answers meanwhile."""

from __future__ import annotations

import _thread  # threading is 20 ms of a guest's start, emulated
import asyncio
import os
from collections.abc import Callable
from typing import TypeVar

from common.errors import DeadlineExceeded
from common.readiness import wait_readable

T = TypeVar("T")


async def run_aside(function: Callable[[], T], what: str, timeout_s: float) -> T:
    """Return what a function returns, or raise what it raises.

    :param what: what it does, for the error.
    :raise DeadlineExceeded: it is not done in time. It goes on, and nobody hears of its end.
    """
    results: list[T] = []
    failures: list[BaseException] = []
    over, end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def body() -> None:
        try:
            results.append(function())
        except BaseException as failure:
            failures.append(failure)
        finally:
            os.close(end)

    try:
        _thread.start_new_thread(body, ())
    except BaseException:
        os.close(over)
        os.close(end)
        raise
    try:
        async with asyncio.timeout(timeout_s):
            await wait_readable(over)
    except TimeoutError:
        raise DeadlineExceeded(f"{what}: not done within {timeout_s:g} s") from None
    finally:
        os.close(over)
    if failures:
        raise failures[0]
    return results[0]
