"""What a pidfd tells about a process: its exit status even for non-parents, its identity, its start."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from common.linux.features import Feature, allowed
from common.linux.proc_stat import start_time as start_time

# struct pidfd_info, first published size (include/uapi/linux/pidfd.h): mask, cgroupid, pid, tgid, ppid,
# eight ids, exit_code.
_INFO = struct.Struct("=QQIII8Ii")
_PIDFD_GET_INFO = 0xC040FF0B  # _IOWR(0xFF, 11, 64 bytes)
_INFO_PID = 1
_INFO_EXIT = 8

# The kernel does not know the request (ENOTTY, EINVAL), or the process is reaped and it kept nothing (ESRCH).
_NO_ANSWER = frozenset({errno.ENOTTY, errno.EINVAL, errno.ESRCH, errno.EOPNOTSUPP})


def exit_info(pidfd: int) -> int | None:
    """Return the raw wait status of a process that someone (anyone) has reaped, else None.

    None also means that the kernel keeps no such record (before Linux 6.15). Decode it with
    `os.waitstatus_to_exitcode`. Source: pidfd_open(2), PIDFD_GET_INFO.
    """
    info = _get_info(pidfd, _INFO_EXIT)
    return info[13] if info is not None and info[0] & _INFO_EXIT else None


def parent_pid(pidfd: int) -> int | None:
    """Return the parent's pid of a process that is alive or a zombie; None once reaped or when unknown."""
    info = _get_info(pidfd, _INFO_PID)
    return info[4] if info is not None and info[0] & _INFO_PID else None


def _get_info(pidfd: int, mask: int) -> tuple[int, ...] | None:
    if not allowed(Feature.PIDFD_INFO):
        return None
    request = _INFO.pack(mask, *([0] * 13))
    try:
        return _INFO.unpack(fcntl.ioctl(pidfd, _PIDFD_GET_INFO, request))
    except OSError as error:
        if error.errno in _NO_ANSWER:
            return None
        raise


def pidfs_inode(pidfd: int) -> int:
    """Return the inode number of a pidfd: unique per process and boot since Linux 6.9 (pidfs)."""
    return os.fstat(pidfd).st_ino


def is_same_process(pid: int, started: int) -> bool:
    """Tell whether `pid` is still the process that has this start time, in clock ticks since boot."""
    try:
        return start_time(pid) == started
    except ProcessLookupError:
        return False


def open_same_process(pid: int, started: int) -> int:
    """Return a pidfd of the process that has this pid and start time, in clock ticks since boot.

    Raises ProcessLookupError when there is no such process any more, whoever has the pid now.
    """
    pidfd = os.pidfd_open(pid)
    # Looked at now that the pid cannot become somebody else's.
    if not is_same_process(pid, started):
        os.close(pidfd)
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), f"/proc/{pid}")
    return pidfd
