"""Doing aside, in a thread of its own, what may wait for the host: the agent answers meanwhile."""

from __future__ import annotations

import _thread  # threading is 20 ms of a guest's start, emulated
import asyncio
import os
from collections.abc import Callable

from common.errors import DeadlineExceeded
from common.log import get_logger
from common.readiness import wait_readable

log = get_logger()


class Aside:
    """What is being done aside: one thing at a time with each subject."""

    __slots__ = ("_running",)

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[None]] = {}

    def is_busy(self, subject: str) -> bool:
        """Tell whether something is being done with a subject, even if nobody waits for it any more."""
        return subject in self._running

    def start(self, subject: str, work: Callable[[], None]) -> None:
        """Let a thread do something with a subject that is not busy."""
        assert subject not in self._running, f"something is being done with {subject}"
        task = asyncio.get_running_loop().create_task(_run_in_thread(work))
        self._running[subject] = task
        task.add_done_callback(lambda done: self._end(subject, done))

    async def wait(self, subject: str, timeout_s: float) -> None:
        """Wait until a subject is not busy, and raise what was raised meanwhile.

        :raise DeadlineExceeded: it still is. The work goes on, as it does when the waiting is cancelled.
        """
        task = self._running.get(subject)
        if task is None:
            return
        await asyncio.wait((task,), timeout=timeout_s)
        if not task.done():
            raise DeadlineExceeded(f"{subject}: not done within {timeout_s:g} s")
        task.result()

    def _end(self, subject: str, task: asyncio.Task[None]) -> None:
        del self._running[subject]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("aside.failed", subject=subject, error=error)


async def _run_in_thread(work: Callable[[], None]) -> None:
    failures: list[BaseException] = []
    over, end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def body() -> None:
        try:
            work()
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
        await wait_readable(over)
    finally:
        os.close(over)
    if failures:
        raise failures[0]
