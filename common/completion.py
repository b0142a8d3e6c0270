"""A value that comes once, and who waits for it: the end of a process, the end of a pod."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

ValueT = TypeVar("ValueT")


class Completion(Generic[ValueT]):
    """Small while nobody waits, and a bare future for each who does: one is parked per pod and container."""

    __slots__ = ("_waiters", "value")

    def __init__(self) -> None:
        self.value: ValueT | None = None
        self._waiters: list[asyncio.Future[ValueT]] | None = None

    @property
    def waiter_count(self) -> int:
        """How many wait now."""
        return len(self._waiting())

    def set(self, value: ValueT) -> None:
        """Keep the value and hand it to everybody who waits."""
        self.value = value
        for waiter in self._take_waiters():
            waiter.set_result(value)

    def interrupt(self, error: Exception) -> None:
        """Let everybody who waits now fail with `error`; the value may still come."""
        for waiter in self._take_waiters():
            waiter.set_exception(error)

    def wait(self) -> asyncio.Future[ValueT]:
        """Return what has the value as soon as there is one: to be awaited, and cancelled by whoever gives up."""
        waiter: asyncio.Future[ValueT] = asyncio.get_running_loop().create_future()
        if self.value is not None:
            waiter.set_result(self.value)
        else:
            self._waiters = [*self._waiting(), waiter]
        return waiter

    def _waiting(self) -> list[asyncio.Future[ValueT]]:
        return [waiter for waiter in self._waiters or () if not waiter.done()]

    def _take_waiters(self) -> list[asyncio.Future[ValueT]]:
        waiters, self._waiters = self._waiting(), None
        return waiters
