"""What a descriptor is that was kept by somebody who knows only its name."""

from __future__ import annotations

import fcntl
import os


def link_of(fd: int) -> str:
    """Return what stands behind a descriptor, as /proc/self/fd tells it: a path, or such as "ipc:[4026531839]"."""
    return os.readlink(f"/proc/self/fd/{fd}")


def is_readable(fd: int) -> bool:
    """Tell whether a descriptor was opened for reading (fcntl(2), F_GETFL)."""
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY
