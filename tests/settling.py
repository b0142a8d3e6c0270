"""What a test leaves behind and what goes by itself: no failure on a busy machine, but told if it takes its time."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable

from tests.node import SLOWER

LIMIT_S = 20.0 * SLOWER
PROMPT_S = 2.0 * SLOWER

late: list[str] = []
"""What went, but not promptly: told at the end of the run, as it may hang on a timer of ours."""


class _Watch:
    """Looks again and again at what is left."""

    def __init__(self, look: Callable[[], Iterable[str]], limit_s: float, prompt_s: float) -> None:
        self._look = look
        self._limit_s = limit_s
        self._prompt_s = prompt_s
        self._began = time.monotonic()
        self._slow: list[str] = []
        self.left: list[str] = []

    def is_over(self) -> bool:
        """Whether nothing is left any more, or the time is up."""
        self.left = sorted(self._look())
        took_s = time.monotonic() - self._began
        if not self.left:
            if self._slow:
                test = os.environ.get("PYTEST_CURRENT_TEST", "no test")
                late.append(f"{test}: after {took_s:.1f} s: {', '.join(self._slow)}")
            return True
        if took_s > self._prompt_s and not self._slow:
            self._slow = self.left
        return took_s > self._limit_s


def settle(
    look: Callable[[], Iterable[str]],
    limit_s: float = LIMIT_S,
    prompt_s: float = PROMPT_S,
    interval_s: float = 0.02,
) -> list[str]:
    """Wait until nothing is left, and return what is nonetheless when the time is up.

    :param look: tells what is left, as text.
    """
    watch = _Watch(look, limit_s, prompt_s)
    while not watch.is_over():
        time.sleep(interval_s)
    return watch.left


async def async_settle(
    look: Callable[[], Iterable[str]], limit_s: float = LIMIT_S, prompt_s: float = PROMPT_S
) -> list[str]:
    """Wait as `settle` does while the event loop goes on."""
    watch = _Watch(look, limit_s, prompt_s)
    while not watch.is_over():  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.01)
    return watch.left
