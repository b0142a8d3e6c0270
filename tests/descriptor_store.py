"""A descriptor store in memory, with real copies of descriptors: what a service manager keeps for a daemon."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Callable, Iterator, Sequence

from common.descriptors.names import name_of

_SYS_KCMP = {"x86_64": 312, "aarch64": 272}[platform.machine()]
_KCMP_FILE = 0


class KeptInMemory:
    """Outlives the daemons of a test (`DescriptorStore`); whatever is kept can be taken once per `restart()`.

    As systemd does, it drops what it keeps already, under whatever name.
    """

    keeps = True

    def __init__(self) -> None:
        self.kept: dict[str, list[int]] = {}
        self._taken: set[str] = set()
        self._callbacks: list[Callable[[], None]] | None = None
        self._serial = 0

    def new_name(self, kind: str) -> str:
        self._serial += 1
        return name_of(kind, self._serial)

    def put(self, name: str, fds: Sequence[int]) -> None:
        for fd in fds:
            if not any(same_description(fd, other) for group in self.kept.values() for other in group):
                self.kept.setdefault(name, []).append(os.dup(fd))
        self._taken.add(name)

    def remove(self, name: str) -> None:
        for fd in self.kept.pop(name, []):
            os.close(fd)

    def when_sent(self, callback: Callable[[], None]) -> None:
        if self._callbacks is None:
            callback()
        else:
            self._callbacks.append(callback)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Let nobody be told, while open, that something is kept."""
        self._callbacks = []
        yield
        callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks:
            callback()

    def take(self, name: str) -> list[int]:
        if name in self._taken:
            return []
        self._taken.add(name)
        return [os.dup(fd) for fd in self.kept.get(name, [])]

    def untaken(self) -> list[str]:
        return [name for name in self.kept if name not in self._taken]

    def restart(self) -> None:
        """Begin the life of another daemon, to which everything is handed over."""
        self._taken.clear()

    def close(self) -> None:
        """Close whatever is still kept."""
        for name in list(self.kept):
            self.remove(name)


def same_description(first: int, second: int) -> bool:
    """Tell whether one open file description is behind both (kcmp(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    pid = os.getpid()
    order = libc.syscall(_SYS_KCMP, pid, pid, _KCMP_FILE, ctypes.c_ulong(first), ctypes.c_ulong(second))
    if order < 0:
        raise OSError(ctypes.get_errno(), "kcmp")
    return bool(order == 0)
