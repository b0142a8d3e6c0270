"""Sysctls of a pod: which ones belong to a namespace, and how they are written."""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Collection, Mapping

from common.errors import InvalidArgument

_LONGEST_KEY = 256
_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_./-")


class Kind(enum.StrEnum):
    """Namespaces, by their names in /proc/<pid>/ns."""

    NET = "net"
    IPC = "ipc"
    UTS = "uts"
    PID = "pid"
    USER = "user"
    MNT = "mnt"


def sysctl_path(key: str) -> str:
    """Return the path below /proc/sys of a sysctl.

    Both spellings are taken, `net.ipv4.ip_forward` and `net/ipv4/conf/eth0.1/forwarding`: the first separator
    decides, the other one swaps with it (sysctl.d(5)). Raises InvalidArgument naming the key.
    """
    separator = next((character for character in key if character in "./"), "")
    if not separator or len(key) > _LONGEST_KEY or not _CHARACTERS.issuperset(key):
        raise InvalidArgument(f"sysctl {key!r} is malformed")
    path = key if separator == "/" else key.translate(str.maketrans("./", "/."))
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise InvalidArgument(f"sysctl {key!r} is malformed")
    return path


def namespace_of(key: str) -> Kind:
    """Return the kind of namespace that a sysctl belongs to.

    Raises InvalidArgument naming the key when it is malformed or acts on the whole machine.
    """
    path = sysctl_path(key)
    if path.startswith("net/"):
        return Kind.NET
    if path.startswith(("kernel/shm", "kernel/msg", "fs/mqueue/")) or path == "kernel/sem":
        return Kind.IPC
    if path in ("kernel/hostname", "kernel/domainname"):
        return Kind.UTS
    raise InvalidArgument(f"sysctl {key!r} is not namespaced: it would change the whole machine")


def check_sysctls(sysctls: Mapping[str, str], kinds: Collection[Kind]) -> None:
    """Raise InvalidArgument naming the first sysctl that is not of a namespace the pod has for itself."""
    for key in sysctls:
        kind = namespace_of(key)
        if kind not in kinds:
            raise InvalidArgument(f"sysctl {key!r} is refused: the pod has the host's {kind} namespace")


def write_sysctls(sysctls: Mapping[str, str]) -> None:
    """Write sysctls in the namespaces of the calling thread. Raises InvalidArgument naming key and value."""
    for key, value in sysctls.items():
        path = f"/proc/sys/{sysctl_path(key)}"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except FileNotFoundError:
            raise InvalidArgument(f"sysctl {key!r} does not exist on this kernel") from None
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ERANGE):
                raise InvalidArgument(f"sysctl {key!r} does not take the value {value!r}") from error
            raise OSError(error.errno, f"{error.strerror} (value {value!r})", path) from error
