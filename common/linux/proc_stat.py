"""When a process started: with it, a pid is an identity."""

from __future__ import annotations

import errno
import os


def start_time(pid: int) -> int:
    """Return when `pid` started, in clock ticks since boot (proc_pid_stat(5), field 22).

    A zombie has it still. Raises ProcessLookupError with the path when there is no such process.
    """
    path = f"/proc/{pid}/stat"
    try:
        with open(path, "rb") as file:
            stat = file.read()
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), path) from None
    # The command name is in parentheses and may itself hold spaces and parentheses.
    return int(stat[stat.rindex(b")") + 2 :].split()[19])
