"""How processes have ended, in memory that outlives whoever has waited for them.

The supervisor and the daemon both write an entry before they reap a process, so whoever sees that it is gone finds
it here, even where the one who knew has died the next moment. A memfd, since both may be replaced at any time; two
rings of fixed places, one for each, so that it never grows and nobody waits for a lock.
"""

from __future__ import annotations

import os
import struct

from common.descriptors.names import EXIT_LOG_NAME

SUPERVISOR = 0
DAEMON = 1

_PLACES = 16384
_HEADER_BYTES = 4096
# The key is pid and start time in ticks; then the raw wait status and the wall clock in ns.
_KEY = struct.Struct("=QQ")
_REST = struct.Struct("=qQ")
_COUNT = struct.Struct("=Q")
_ENTRY_BYTES = _KEY.size + _REST.size


class LoggedExit:
    """One entry: `raw_status` as of wait(2), `start_time` in ticks since boot, `exited_at_ns` since the epoch."""

    # Not a NamedTuple: what that loads is a fifth of the supervisor's memory.
    __slots__ = ("exited_at_ns", "pid", "raw_status", "start_time")

    def __init__(self, pid: int, start_time: int, raw_status: int, exited_at_ns: int) -> None:
        self.pid = pid
        self.start_time = start_time
        self.raw_status = raw_status
        self.exited_at_ns = exited_at_ns


class ExitLog:
    """The log behind a descriptor, which it owns; each writer (SUPERVISOR, DAEMON) has a ring of its own."""

    __slots__ = ("_writer", "fd")

    def __init__(self, fd: int, writer: int = DAEMON) -> None:
        self.fd = fd
        self._writer = writer

    @classmethod
    def create(cls, writer: int = SUPERVISOR) -> ExitLog:
        """Make an empty one."""
        return cls(os.memfd_create(EXIT_LOG_NAME, os.MFD_CLOEXEC), writer)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)

    def append(self, entry: LoggedExit) -> None:
        """Write an entry in the place of this writer's oldest. Raises OSError when there is no memory."""
        written = self._written(self._writer)
        place = _start_of(self._writer) + written % _PLACES * _ENTRY_BYTES
        # The key comes last, and what it was goes first: who finds a key finds what belongs to it.
        os.pwrite(self.fd, _COUNT.pack(written + 1), self._writer * _COUNT.size)
        os.pwrite(self.fd, bytes(_KEY.size) + _REST.pack(entry.raw_status, entry.exited_at_ns), place)
        os.pwrite(self.fd, _KEY.pack(entry.pid, entry.start_time), place)

    def find(self, pid: int, start_time: int) -> LoggedExit | None:
        """Return how the process has ended that had this pid and started then (in ticks since boot)."""
        key = _KEY.pack(pid, start_time)
        for writer in (SUPERVISOR, DAEMON):
            size = min(self._written(writer), _PLACES) * _ENTRY_BYTES
            ring = os.pread(self.fd, size, _start_of(writer))
            place = ring.find(key)
            while place % _ENTRY_BYTES and place >= 0:
                place = ring.find(key, place + 1)
            if place >= 0:
                return LoggedExit(pid, start_time, *_REST.unpack_from(ring, place + _KEY.size))
        return None

    def find_first(self, pid: int, started_after: int) -> LoggedExit | None:
        """Return how the first process of this pid has ended that started then or later (in ticks since boot)."""
        found = None
        for writer in (SUPERVISOR, DAEMON):
            size = min(self._written(writer), _PLACES) * _ENTRY_BYTES
            ring = os.pread(self.fd, size, _start_of(writer))
            for place in range(0, len(ring), _ENTRY_BYTES):
                entry_pid, start_time = _KEY.unpack_from(ring, place)
                if entry_pid != pid or start_time < started_after:
                    continue
                if found is None or start_time < found.start_time:
                    found = LoggedExit(pid, start_time, *_REST.unpack_from(ring, place + _KEY.size))
        return found

    def _written(self, writer: int) -> int:
        data = os.pread(self.fd, _COUNT.size, writer * _COUNT.size)
        return _COUNT.unpack(data)[0] if len(data) == _COUNT.size else 0


def raw_status_of(ended: os.waitid_result) -> int:
    """Return the wait status, as of wait(2), of what waitid(2) has told."""
    if ended.si_code == os.CLD_EXITED:
        return (ended.si_status & 0xFF) << 8
    return ended.si_status | (0x80 if ended.si_code == os.CLD_DUMPED else 0)


def _start_of(writer: int) -> int:
    return _HEADER_BYTES + writer * _PLACES * _ENTRY_BYTES
