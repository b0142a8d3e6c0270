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
        return len(self._waiters or ())

    def set(self, value: ValueT) -> None:
        """Keep the value and hand it to everybody who waits."""
        self.value = value
        for waiter in self._take_waiters():
            waiter.set_result(value)

    def interrupt(self, error: Exception) -> None:
        """Let everybody who waits now fail with `error`; the value may still come."""
        for waiter in self._take_waiters():
            waiter.set_exception(error)

    async def wait(self) -> ValueT:
        """Return the value as soon as there is one."""
        if self.value is not None:
            return self.value
        waiter: asyncio.Future[ValueT] = asyncio.get_running_loop().create_future()
        if self._waiters is None:
            self._waiters = []
        self._waiters.append(waiter)
        try:
            return await waiter
        finally:
            self._forget(waiter)

    def _forget(self, waiter: asyncio.Future[ValueT]) -> None:
        if self._waiters is not None and waiter in self._waiters:
            self._waiters.remove(waiter)

    def _take_waiters(self) -> list[asyncio.Future[ValueT]]:
        waiters, self._waiters = self._waiters, None
        return [waiter for waiter in waiters or () if not waiter.done()]
