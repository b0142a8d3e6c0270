"""The first process of a PID namespace that a pod's containers share."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable

from common.errors import NotFound
from common.process.exits import ExitStatus, ExitWatcher


class PodInit:
    """A running init, watched until it dies or is destroyed."""

    __slots__ = ("_ended", "_on_death", "_watch", "pid")

    def __init__(
        self, exits: ExitWatcher, pid: int, pidfd: int | None, on_death: Callable[[ExitStatus], None]
    ) -> None:
        """Take over `pidfd`, or open one; `on_death` is called if the init dies without destroy()."""
        self.pid = pid
        self._on_death = on_death
        self._ended: asyncio.Future[None] | None = None
        self._watch = exits.watch(pid, self._on_exit, pidfd)

    async def destroy(self) -> None:
        """Kill it, and with it everything in its namespace, and wait until the kernel has done so."""
        self._ended = asyncio.get_running_loop().create_future()
        try:
            self._watch.signal(signal.SIGKILL)
        except NotFound:
            with contextlib.suppress(NotFound):
                self._watch.cancel()
            return
        await self._ended

    def _on_exit(self, status: ExitStatus) -> None:
        if self._ended is None:
            self._on_death(status)
        else:
            self._ended.set_result(None)
