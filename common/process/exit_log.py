"""How processes have ended that nobody but a supervisor could wait for: a ring in memory that outlives the daemon.

The supervisor writes an entry before it reaps, so whoever sees that a process is gone finds it here. A memfd, since
both ends may be replaced at any time; fixed places, so that it never grows.
"""

from __future__ import annotations

import os
import struct
from typing import Final, NamedTuple

from common.descriptors.names import EXIT_LOG_NAME

_ENTRIES: Final = 16384
# pid, raw wait status, start time in ticks, wall clock in ns, number of the entry (from 1)
_ENTRY = struct.Struct("=IiQQQ")


class LoggedExit(NamedTuple):
    """One entry: `raw_status` as of wait(2), `exited_at_ns` since the epoch."""

    pid: int
    raw_status: int
    start_time: int
    exited_at_ns: int


class ExitLog:
    """The ring behind a descriptor, which it owns."""

    __slots__ = ("_fd", "_written")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._written = 0

    @classmethod
    def create(cls) -> ExitLog:
        """Make an empty one."""
        return cls(os.memfd_create(EXIT_LOG_NAME, os.MFD_CLOEXEC))

    @property
    def fd(self) -> int:
        return self._fd

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)

    def resume(self) -> None:
        """Go on writing where another process has stopped."""
        self._written = max((number for *_, number in self._entries()), default=0)

    def append(self, entry: LoggedExit) -> None:
        """Write an entry in the place of the oldest."""
        place = self._written % _ENTRIES
        self._written += 1
        os.pwrite(self._fd, _ENTRY.pack(*entry, self._written), place * _ENTRY.size)

    def find(self, pid: int, start_time: int) -> LoggedExit | None:
        """Return how the process has ended that had this pid and started then (in ticks since boot)."""
        for found_pid, raw_status, started, exited_at_ns, _number in self._entries():
            if found_pid == pid and started == start_time:
                return LoggedExit(pid, raw_status, started, exited_at_ns)
        return None

    def _entries(self) -> list[tuple[int, int, int, int, int]]:
        data = os.pread(self._fd, _ENTRIES * _ENTRY.size, 0)
        return list(_ENTRY.iter_unpack(data[: len(data) // _ENTRY.size * _ENTRY.size]))
