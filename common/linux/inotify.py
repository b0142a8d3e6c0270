"""One inotify descriptor for all watched files of the daemon, dispatched by the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import Callable

from common.linux import _libc

IN_MODIFY = 0x2
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000

_IN_MASK_CREATE = 0x10000000
_EVENT = struct.Struct("=iIII")
_BUFFER_BYTES = 64 * 1024

Callback = Callable[[int], None]


class Inotify:
    """Calls back with the event mask when a watched file changes.

    Events of one read are merged per watch. After a queue overflow every watch is called with
    `IN_Q_OVERFLOW`, since anything may have changed. A watch that the kernel drops (the file is gone)
    is called a last time with `IN_IGNORED` in the mask.
    """

    __slots__ = ("_callbacks", "_fd", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._callbacks: dict[int, Callback] = {}
        self._fd = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        loop.add_reader(self._fd, self._on_readable)

    def add_watch(self, path: str, mask: int, callback: Callback) -> int:
        """Watch `path` for the events of `mask` (inotify(7)) and return the watch descriptor.

        Raises FileExistsError when the file is watched already, other OSError with `path`.
        """
        wd = _libc.inotify_add_watch(self._fd, path, mask | _IN_MASK_CREATE)
        self._callbacks[wd] = callback
        return wd

    def remove(self, wd: int) -> None:
        """Stop watching; harmless when the watch is gone already."""
        if self._callbacks.pop(wd, None) is not None:
            with contextlib.suppress(OSError):
                _libc.inotify_rm_watch(self._fd, wd)

    def close(self) -> None:
        """Drop all watches and the descriptor; harmless when closed already."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._callbacks.clear()

    def _on_readable(self) -> None:
        try:
            data = os.read(self._fd, _BUFFER_BYTES)
        except BlockingIOError:
            return
        masks: dict[int, int] = {}
        offset = 0
        while offset < len(data):
            wd, mask, _cookie, name_bytes = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size + name_bytes
            masks[wd] = masks.get(wd, 0) | mask
        if masks.pop(-1, 0) & IN_Q_OVERFLOW:
            for wd in self._callbacks:
                masks[wd] = masks.get(wd, 0) | IN_Q_OVERFLOW
        for wd, mask in masks.items():
            callback = self._callbacks.pop(wd, None) if mask & IN_IGNORED else self._callbacks.get(wd)
            if callback is not None:
                callback(mask)
