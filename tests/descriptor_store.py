"""A descriptor store in memory, with real copies of descriptors: what a service manager keeps for a daemon."""

from __future__ import annotations

import os
from collections.abc import Sequence

from common.descriptors.names import name_of, serial_of


class KeptInMemory:
    """Outlives the daemons of a test (`DescriptorStore`); whatever is kept can be taken once per `restart()`."""

    keeps = True

    def __init__(self) -> None:
        self.kept: dict[str, list[int]] = {}
        self._taken: set[str] = set()
        self._serial = 0

    def new_name(self, kind: str) -> str:
        self._serial += 1
        return name_of(kind, self._serial)

    def reserve(self, name: str) -> None:
        self._serial = max(self._serial, serial_of(name))

    def put(self, name: str, fds: Sequence[int]) -> None:
        self.kept.setdefault(name, []).extend(os.dup(fd) for fd in fds)
        self._taken.add(name)

    def remove(self, name: str) -> None:
        for fd in self.kept.pop(name, []):
            os.close(fd)

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
