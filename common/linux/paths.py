"""Open paths that someone untrusted may have prepared, without being led astray by symbolic links."""

from __future__ import annotations

import errno
import os

from common.errors import Unimplemented
from common.linux import _libc

_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_IN_ROOT = 0x10

# openat2 reports EAGAIN when a rename or mount anywhere on the machine races with a "..".
_ATTEMPTS = 16


def open_in_root(root_fd: int, path: str, flags: int, mode: int = 0) -> int:
    """Open `path` as if the directory `root_fd` were `/`: symbolic links and `..` cannot leave it.

    Returns a close-on-exec descriptor. Raises OSError with `path`, Unimplemented when the kernel has no
    openat2 (before Linux 5.6). Source: openat2(2), RESOLVE_IN_ROOT.
    """
    return _open(root_fd, path, flags, mode, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)


def open_without_symlinks(path: str, flags: int, mode: int = 0) -> int:
    """Open `path`, refusing with ELOOP if any component of it is a symbolic link.

    Returns a close-on-exec descriptor. Raises OSError with `path`, Unimplemented when the kernel has no
    openat2 (before Linux 5.6). Source: openat2(2), RESOLVE_NO_SYMLINKS.
    """
    return _open(_libc.AT_FDCWD, path, flags, mode, _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)


def _open(directory_fd: int, path: str, flags: int, mode: int, resolve: int) -> int:
    for attempt in range(_ATTEMPTS):
        try:
            return _libc.openat2(directory_fd, path, flags, mode, resolve)
        except OSError as error:
            if error.errno == errno.ENOSYS:
                raise Unimplemented(
                    f"cannot open {path!r} safely: openat2 needs Linux 5.6, this is {os.uname().release}"
                ) from error
            if error.errno not in (errno.EAGAIN, errno.EINTR) or attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")
