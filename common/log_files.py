"""Log files that others append to and that must not grow without end: what a guest or its helpers have to say.

Nobody of those who write knows a limit, and the files lie in memory (tmpfs). They are cut while they are written: the
writer has opened the file for appending, so it goes on at the new end. One inotify descriptor serves all files; a file
that is written all the time is looked at once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

from common.linux.inotify import IN_MODIFY, Inotify

LIMIT_BYTES = 256 * 1024
"""How long a file may become before its older half is dropped; what is written within a second comes on top."""

_REST_S = 1.0


class LogFiles:
    """The watched files, by path."""

    __slots__ = ("_inotify", "_loop", "_resting", "_watches")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._inotify = Inotify(self._loop)
        self._watches: dict[str, int] = {}
        self._resting: dict[str, asyncio.TimerHandle] = {}

    def watch(self, path: str, look: Callable[[], None] | None = None) -> None:
        """Keep a file short from now on; harmless when it is watched already, or does not exist.

        :param look: called now, and a second after each growth, for whoever is to see what is written.
        """
        if path in self._watches or path in self._resting:
            return
        with contextlib.suppress(FileNotFoundError):
            self._watches[path] = self._inotify.add_watch(
                path, IN_MODIFY, lambda _mask: self._on_growth(path, look)
            )
            shorten(path)
            if look is not None:
                look()

    def forget(self, path: str) -> None:
        """Watch a file no more; harmless when it is not watched."""
        if path in self._watches:
            self._inotify.remove(self._watches.pop(path))
        if path in self._resting:
            self._resting.pop(path).cancel()

    def close(self) -> None:
        """Forget all."""
        for timer in self._resting.values():
            timer.cancel()
        self._resting.clear()
        self._watches.clear()
        self._inotify.close()

    def _on_growth(self, path: str, look: Callable[[], None] | None) -> None:
        self.forget(path)
        self._resting[path] = self._loop.call_later(_REST_S, self._resume, path, look)

    def _resume(self, path: str, look: Callable[[], None] | None) -> None:
        del self._resting[path]
        self.watch(path, look)


def shorten(path: str, limit_bytes: int = LIMIT_BYTES) -> None:
    """Drop all but the lines in the last half of `limit_bytes` of a file that is longer than those.

    Not a part of a line, which might look like a whole one. What is written in this very moment may be lost.
    Raises FileNotFoundError.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size = os.fstat(fd).st_size
        if size > limit_bytes:
            end = os.pread(fd, limit_bytes // 2, size - limit_bytes // 2)
            os.ftruncate(fd, 0)
            os.pwrite(fd, end[end.find(b"\n") + 1 :], 0)
    finally:
        os.close(fd)
