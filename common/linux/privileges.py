"""Giving up what a process may do, for good (capabilities(7), setuid(2), prctl(2), keyrings(7))."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Sequence

from common.linux import _libc

_KEYCTL_JOIN_SESSION_KEYRING = 1
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_SECUREBITS = 28
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
# SECBIT_KEEP_CAPS_LOCKED, SECBIT_NO_SETUID_FIXUP and its lock, SECBIT_NOROOT and its lock (capabilities(7)).
_SECUREBITS = 0x2F


def drop_privileges(uid: int, gid: int, groups: Sequence[int] = ()) -> None:
    """Become this user without any capability, also in what is executed later. Raises OSError."""
    capability = 0
    while _is_known_capability(capability):
        _libc.prctl(_PR_CAPBSET_DROP, capability)
        capability += 1
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _libc.prctl(_PR_SET_SECUREBITS, _SECUREBITS)
    _set_groups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    _libc.drop_all_capabilities()
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1)


def leave_session_keyring() -> None:
    """Have a session keyring of our own, empty, in place of that of whoever started the daemon. Raises OSError."""
    try:
        _libc.keyctl(_KEYCTL_JOIN_SESSION_KEYRING, 0)
    except OSError as error:
        # A kernel without keyrings, or a daemon in a container whose filter has none: then there is none to leave.
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise


def forbid_inspection() -> None:
    """Let nobody of our uid without capabilities trace us, read our memory, or look through our /proc entries."""
    _libc.prctl(_PR_SET_DUMPABLE, 0)


def set_name(name: str) -> None:
    """Show this process under a name, of which the kernel keeps 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode(errors="replace")[:15] + b"\0")
    _libc.prctl(_PR_SET_NAME, ctypes.addressof(buffer))


def _set_groups(groups: Sequence[int]) -> None:
    if groups:
        os.setgroups(groups)
        return
    # Denied for good in some user namespaces; the groups are then those of the daemon, all unmapped.
    with contextlib.suppress(PermissionError):
        os.setgroups([])


def _is_known_capability(number: int) -> bool:
    try:
        _libc.prctl(_PR_CAPBSET_READ, number)
    except OSError:
        return False
    return True
