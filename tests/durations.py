"""Bounds that are assertions: what waits for a limit is late however often it is tried; what load delays is not."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator

TRIES = 4


def expect_within(limit_s: float, step: Callable[[], object], tries: int = TRIES) -> None:
    """Fail unless a step takes less than a limit, which is below the smallest that it must not wait for.

    It is tried again only if it was too slow: a step that fails has failed.
    """
    for _ in _timed(limit_s, tries):
        step()


async def async_expect_within(
    limit_s: float, step: Callable[[], Awaitable[object]], tries: int = TRIES
) -> None:
    """Fail unless a coroutine takes less than a limit; otherwise as `expect_within`."""
    for _ in _timed(limit_s, tries):
        await step()


def _timed(limit_s: float, tries: int) -> Iterator[None]:
    """Go round until a round has taken less than the limit; raises AssertionError when none of `tries` has."""
    took_s = []
    for _ in range(tries):
        began = time.monotonic()
        yield
        took_s.append(time.monotonic() - began)
        if took_s[-1] < limit_s:
            return
    raise AssertionError(
        f"not once within {limit_s:g} s, but {', '.join(f'{took:.2f}' for took in took_s)} s"
    )
