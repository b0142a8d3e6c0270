"""The holders of a daemon's descriptors (`common.linux.fd_holder`): its own, and those of its predecessors.

A FIFO that was open when a daemon died stays open until its successor has recovered, though nobody had been told yet
to keep it: an engine that once saw the end of an output does not read on.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from typing import ClassVar

from common.errors import SandboxdError
from common.linux.fd_holder import start_fd_holder
from common.linux.pidfd import is_same_process, open_same_process, start_time
from common.log import get_logger
from common.records import read_record, write_record

# The highest (setpriority(2)).
_PRIORITY = -20

log = get_logger()


@dataclass(frozen=True, slots=True)
class HoldersRecord:
    """Pid and start time (ticks since boot) of each that may be alive: several, where daemons die in a row."""

    VERSION: ClassVar[int] = 1

    processes: list[list[int]]


class FdHolders:
    """Those of the daemons of one state directory, which this process owns."""

    __slots__ = ("_own", "_path", "_pidfd")

    def __init__(self, path: str) -> None:
        """:param path: their record."""
        self._path = path
        self._pidfd = -1
        self._own: list[int] = []

    def start(self) -> None:
        """Have what this process opens from now on held over its death; where that cannot be, go on without."""
        # By which the holder learns of our death.
        self._pidfd = os.pidfd_open(os.getpid())
        try:
            pid = start_fd_holder(self._pidfd)
        except (SandboxdError, OSError) as error:
            os.close(self._pidfd)
            log.warning("descriptors.not_held", error=error)
            return
        self._own = [pid, start_time(pid)]
        # What has to end with us (locks, listeners) ends when it has run, and it has next to nothing to do.
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, pid, _PRIORITY)
        self._save([*self._read(), self._own])

    def end_predecessors(self) -> None:
        """End what earlier daemons have left: all that they were about to do is undone, or to be done again."""
        for process in self._read():
            if process != self._own:
                with contextlib.suppress(ProcessLookupError):
                    _kill(process)
        self._save([self._own] if self._own else [])

    def end(self) -> None:
        """End our own, and return when it is gone: nothing is held over an end in good order."""
        if self._own:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                _kill(self._own)
                os.waitid(os.P_PID, self._own[0], os.WEXITED)
            os.close(self._pidfd)
            self._own = []

    def _read(self) -> list[list[int]]:
        try:
            record, of_this_boot = read_record(self._path, HoldersRecord)
        except FileNotFoundError:
            return []
        except (SandboxdError, OSError) as error:
            # They end by themselves.
            log.warning("descriptors.holders_not_known", path=self._path, error=error)
            return []
        return [process for process in record.processes if of_this_boot and is_same_process(*process)]

    def _save(self, processes: list[list[int]]) -> None:
        try:
            write_record(self._path, HoldersRecord(processes))
        except OSError as error:
            log.warning("descriptors.holders_not_recorded", path=self._path, error=error)


def _kill(process: list[int]) -> None:
    pidfd = open_same_process(*process)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)
