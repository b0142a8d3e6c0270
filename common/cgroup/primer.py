"""Waiting for the kernel's grace period before a container does.

Moving a process into a cgroup takes a global lock for writing. The kernel keeps that lock cheap for readers
(each fork and exit), so the first writer after a pause waits until every CPU has passed a quiescent state:
8 to 16 ms, measured; those within some 10 ms after it do not wait at all. (kernel/cgroup/cgroup.c,
cgroup_threadgroup_rwsem; the mount option favordynmods makes writers cheap for good, at the readers' cost.)

So, when a container is about to be made, the daemon moves itself to where it is already. That changes
nothing, and the wait runs beside the engine's and the runtime's own work instead of after it. It goes on doing
so for a moment, since the engine has work of its own between a pod's start and its first container.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor

from common.cgroup.locate import UNIFIED, Hierarchies

_OPEN_S = 0.04
_INTERVAL_S = 0.005


class MigrationPrimer:
    """Pays the wait ahead of time. One per daemon; it has one thread, which waits inside the kernel."""

    __slots__ = ("_executor", "_path", "_running", "_until")

    def __init__(self, hierarchies: Hierarchies) -> None:
        own = hierarchies.locate(os.getpid())
        directory = hierarchies.directory(UNIFIED if hierarchies.unified else "memory", own.path)
        self._path = f"{directory}/cgroup.procs" if directory is not None else None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="cgroup-primer")
        self._running: asyncio.Future[None] | None = None
        self._until = 0.0

    def prime(self) -> None:
        """Begin the wait, unless one is under way, and keep it paid for some 40 ms. Returns at once."""
        self._until = time.monotonic() + _OPEN_S
        if self._path is not None and (self._running is None or self._running.done()):
            loop = asyncio.get_running_loop()
            self._running = loop.run_in_executor(self._executor, self._keep_paid, self._path)

    def close(self) -> None:
        """Let the thread end."""
        self._executor.shutdown(wait=False)

    def _keep_paid(self, path: str) -> None:
        _move_to_where_we_are(path)
        while time.monotonic() < self._until:
            time.sleep(_INTERVAL_S)
            _move_to_where_we_are(path)


def _move_to_where_we_are(path: str) -> None:
    # Only a saving of time is lost if it is refused.
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(os.getpid()).encode())
        finally:
            os.close(fd)
