"""A bound that is an assertion tells a defect from a busy machine."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.durations import async_expect_within, expect_within


@pytest.fixture
def delays_s() -> Iterator[float]:
    return iter([0.3, 0.0])


def test_who_is_late_once_is_delayed(delays_s: Iterator[float]) -> None:
    expect_within(0.2, lambda: time.sleep(next(delays_s)))


def test_who_is_always_late_waits_for_something() -> None:
    with pytest.raises(AssertionError, match=r"not once within 0\.01 s, but [0-9.]+, [0-9.]+ s"):
        expect_within(0.01, lambda: time.sleep(0.02), tries=2)


def test_what_fails_is_not_tried_again() -> None:
    with pytest.raises(ZeroDivisionError):
        expect_within(0.0, lambda: 1 // 0)


async def test_coroutines_are_held_to_the_same(delays_s: Iterator[float]) -> None:
    await async_expect_within(0.2, lambda: asyncio.sleep(next(delays_s)))
    with pytest.raises(AssertionError, match="not once"):
        await async_expect_within(0.01, lambda: asyncio.sleep(0.02), tries=2)
