"""The first process of a PID namespace that a pod's containers share."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable

from common.completion import Completion
from common.errors import NotFound
from common.process.exits import ExitStatus, ExitWatcher


class PodInit:
    """A running init, watched until it dies or is destroyed."""

    __slots__ = ("_end", "_on_death", "_watch", "pid")

    def __init__(
        self, exits: ExitWatcher, pid: int, pidfd: int | None, on_death: Callable[[ExitStatus], None]
    ) -> None:
        """Take over `pidfd`, or open one; `on_death` is called if the init dies without destroy()."""
        self.pid = pid
        self._on_death: Callable[[ExitStatus], None] | None = on_death
        self._end: Completion[ExitStatus] = Completion()
        self._watch = exits.watch(pid, self._on_exit, pidfd)

    @property
    def pidfd(self) -> int:
        """The pidfd, owned by the watch; -1 once it has died."""
        return self._watch.pidfd

    async def destroy(self) -> None:
        """Kill it, and with it everything in its namespace, and wait until the kernel has done so."""
        self._on_death = None
        # Its end may be noticed but not told yet.
        with contextlib.suppress(NotFound):
            self._watch.signal(signal.SIGKILL)
        await self._end.wait()

    def _on_exit(self, status: ExitStatus) -> None:
        self._end.set(status)
        if self._on_death is not None:
            self._on_death(status)
