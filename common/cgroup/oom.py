"""Telling that the kernel killed a process of a cgroup for want of memory.

v1: an eventfd per cgroup, all in one epoll. v2: one inotify on the memory.events files. Both only wake us:
what counts is the kernel's counter of killed processes, which the pod's neighbours do not change.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from collections.abc import Callable

from common.cgroup.files import keyed_numbers, read_text
from common.cgroup.locate import Cgroup
from common.linux.inotify import IN_IGNORED, IN_MODIFY, Inotify

Callback = Callable[[int], None]
"""Takes how many processes were killed since the last call."""

_COUNTER = {"oom_kill": "oom_kill"}
# v1 wakes us before the kill is counted. The death of a container's first process is checked again anyway.
_RECHECK_DELAYS_S = (0.01, 0.1, 1.0)


def oom_kill_count(cgroup: Cgroup) -> int:
    """Return how many processes of the cgroup the kernel killed for want of memory; 0 where it is gone."""
    path = _counter_path(cgroup)
    return keyed_numbers(read_text(path), _COUNTER).get("oom_kill", 0) if path else 0


class OomWatch:
    """A watched cgroup. `check` reads the counter at once: at an exit, before the cgroup is removed."""

    __slots__ = ("_callback", "_descriptor", "_path", "_seen", "_watcher")

    def __init__(self, watcher: OomWatcher, path: str | None, callback: Callback, seen: int | None) -> None:
        self._watcher: OomWatcher | None = watcher
        self._path = path
        self._callback = callback
        self._descriptor = -1
        self._seen = self._count() if seen is None else seen

    def check(self) -> bool:
        """Call back if processes were killed since the last look, and return whether that was so."""
        if self._watcher is None:
            return False
        count = self._count()
        killed, self._seen = count - self._seen, max(count, self._seen)
        if killed > 0:
            self._callback(killed)
        return killed > 0

    def cancel(self) -> None:
        """Stop watching; harmless when done already."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher._forget(self)

    def _on_change(self, mask: int) -> None:
        if mask & IN_IGNORED:
            self.cancel()
        else:
            self.check()

    def _count(self) -> int:
        return keyed_numbers(read_text(self._path), _COUNTER).get("oom_kill", 0) if self._path else 0


class OomWatcher:
    """Watches cgroups for out-of-memory kills. One per daemon, made inside its running loop."""

    __slots__ = ("_epoll", "_inotify", "_loop", "_watches")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll: select.epoll | None = None
        self._inotify: Inotify | None = None
        self._watches: dict[int, OomWatch] = {}

    @property
    def watch_count(self) -> int:
        """The number of watched cgroups."""
        return len(self._watches)

    def watch(self, cgroup: Cgroup, callback: Callback, seen: int | None = None) -> OomWatch:
        """Call back, from the event loop, whenever processes of the cgroup were killed for want of memory.

        `seen` is how many of them are known already; by default all that the kernel has counted until now.
        A cgroup without a memory controller, or that is gone, is never called back for. Raises OSError where
        the kernel has no more watches or descriptors.
        """
        watch = OomWatch(self, _counter_path(cgroup), callback, seen)
        if watch._path is not None:
            with contextlib.suppress(FileNotFoundError):
                if cgroup.unified:
                    self._watch_v2(watch)
                else:
                    self._watch_v1(watch)
        return watch

    def close(self) -> None:
        """Forget all watches and close their descriptors; harmless when closed already."""
        for watch in list(self._watches.values()):
            watch.cancel()
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    def _watch_v2(self, watch: OomWatch) -> None:
        if self._inotify is None:
            self._inotify = Inotify(self._loop)
        assert watch._path is not None
        watch._descriptor = self._inotify.add_watch(watch._path, IN_MODIFY, watch._on_change)
        self._watches[watch._descriptor] = watch

    def _watch_v1(self, watch: OomWatch) -> None:
        if self._epoll is None:
            self._epoll = select.epoll()
            self._loop.add_reader(self._epoll.fileno(), self._on_v1_event)
        assert watch._path is not None
        control = os.open(watch._path, os.O_RDONLY | os.O_CLOEXEC)
        event = -1
        try:
            event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            registrar = f"{os.path.dirname(watch._path)}/cgroup.event_control"
            with open(registrar, "w", encoding="ascii") as file:
                file.write(f"{event} {control}")
            self._epoll.register(event, select.EPOLLIN)
        except BaseException:
            if event >= 0:
                os.close(event)
            raise
        finally:
            os.close(control)
        watch._descriptor = event
        self._watches[event] = watch

    def _on_v1_event(self) -> None:
        if self._epoll is None:
            return
        for descriptor, _ in self._epoll.poll(0):
            watch = self._watches.get(descriptor)
            if watch is None:
                continue
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(descriptor)
            assert watch._path is not None
            if not os.path.exists(watch._path):
                # The kernel wakes us for the removal of the cgroup as well.
                watch.cancel()
            elif not watch.check():
                self._recheck(watch, 0)

    def _recheck(self, watch: OomWatch, attempt: int) -> None:
        def again() -> None:
            if not watch.check():
                self._recheck(watch, attempt + 1)

        if attempt < len(_RECHECK_DELAYS_S) and watch._watcher is not None:
            self._loop.call_later(_RECHECK_DELAYS_S[attempt], again)

    def _forget(self, watch: OomWatch) -> None:
        descriptor, watch._descriptor = watch._descriptor, -1
        if self._watches.pop(descriptor, None) is None:
            return
        if self._epoll is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(descriptor)
            os.close(descriptor)
        elif self._inotify is not None:
            self._inotify.remove(descriptor)


def _counter_path(cgroup: Cgroup) -> str | None:
    directory = cgroup.directory("memory")
    if directory is None:
        return None
    return f"{directory}/{'memory.events' if cgroup.unified else 'memory.oom_control'}"
