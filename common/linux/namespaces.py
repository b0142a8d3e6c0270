"""Namespaces that live without a process: made by a throwaway thread, held as open descriptors."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Collection, Iterator, Mapping

from common.errors import InvalidArgument, NotFound
from common.linux import _libc
from common.linux.sysctls import Kind, check_sysctls, namespace_of, write_sysctls

__all__ = [
    "Kind",
    "check_netns",
    "children_in_pid_namespace",
    "close_all",
    "create",
    "join",
    "join_process",
    "namespace_id",
    "open_all",
    "owner_userns",
    "path_of",
]

_CLONE_FLAGS = {Kind.IPC: _libc.CLONE_NEWIPC, Kind.UTS: _libc.CLONE_NEWUTS}
_OCI_CLONE_FLAGS = {
    "network": _libc.CLONE_NEWNET,
    "ipc": _libc.CLONE_NEWIPC,
    "uts": _libc.CLONE_NEWUTS,
    "cgroup": _libc.CLONE_NEWCGROUP,
}
_HOSTNAME_BYTES = 64  # __NEW_UTS_LEN
_NS_GET_USERNS = 0xB701  # _IO(0xb7, 1), ioctl_ns(2)
_NS_GET_NSTYPE = 0xB703  # _IO(0xb7, 3)


def path_of(namespace_fd: int) -> str:
    """Return a path by which other programs of root can join a namespace that this process holds open."""
    return f"/proc/{os.getpid()}/fd/{namespace_fd}"


def create(
    kinds: Collection[Kind], hostname: str | None, sysctls: Mapping[str, str], netns_path: str | None
) -> dict[Kind, int]:
    """Create IPC and UTS namespaces and return a descriptor of each, which the caller owns. Takes about 0.3 ms.

    They live as long as a descriptor, or a process inside. `hostname` needs UTS among the kinds. `sysctls` are
    written inside; those of net.* in the namespace of `netns_path`, and they are refused without one. Raises
    InvalidArgument naming what is malformed or not allowed, OSError for what the kernel refuses.
    """
    if unknown := set(kinds) - _CLONE_FLAGS.keys():
        raise InvalidArgument(f"cannot create {', '.join(sorted(unknown))} namespaces without a process")
    check_settings(kinds, hostname, sysctls, has_netns=bool(netns_path))
    flags = 0
    for kind in kinds:
        flags |= _CLONE_FLAGS[kind]

    def create() -> dict[Kind, int]:
        _libc.unshare(flags)
        if netns_path and any(namespace_of(key) is Kind.NET for key in sysctls):
            enter(netns_path, _libc.CLONE_NEWNET)
        if hostname is not None:
            _libc.sethostname(hostname)
        write_sysctls(sysctls)
        return open_all({kind: f"/proc/thread-self/ns/{kind}" for kind in kinds})

    return _libc.run_in_own_thread(create) if kinds or sysctls else {}


def check_settings(
    kinds: Collection[Kind], hostname: str | None, sysctls: Mapping[str, str], *, has_netns: bool
) -> None:
    """Raise InvalidArgument for a host name or sysctl that the namespaces of a pod cannot take."""
    if hostname is not None and Kind.UTS not in kinds:
        raise InvalidArgument("a host name needs a UTS namespace of its own")
    if hostname is not None and len(os.fsencode(hostname)) > _HOSTNAME_BYTES:
        raise InvalidArgument(f"host name {hostname!r} is longer than {_HOSTNAME_BYTES} bytes")
    check_sysctls(sysctls, {*kinds, Kind.NET} if has_netns else kinds)


def open_all(paths: Mapping[Kind, str]) -> dict[Kind, int]:
    """Open namespace files; all or none. Raises OSError with the path."""
    opened: dict[Kind, int] = {}
    try:
        for kind, path in paths.items():
            opened[kind] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except BaseException:
        close_all(opened)
        raise
    return opened


def close_all(namespaces: dict[Kind, int]) -> None:
    """Close the descriptors and forget them."""
    while namespaces:
        os.close(namespaces.popitem()[1])


def enter(path: str, nstype: int) -> None:
    """Move the calling thread into the namespace of an nsfs file. Raises OSError with the path."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _libc.setns(fd, nstype)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(fd)


def join(paths: Mapping[str, str]) -> None:
    """Move this process into namespaces, by their types in an OCI specification; "" makes a new one.

    Raises InvalidArgument for a type that cannot be joined, OSError with the path.
    """
    if unknown := paths.keys() - _OCI_CLONE_FLAGS.keys():
        raise InvalidArgument(f"cannot join {', '.join(sorted(unknown))} namespaces")
    new = 0
    for kind, path in paths.items():
        if path:
            enter(path, _OCI_CLONE_FLAGS[kind])
        else:
            new |= _OCI_CLONE_FLAGS[kind]
    if new:
        _libc.unshare(new)


def join_process(pidfd: int) -> None:
    """Move this process into all namespaces of another but the PID and user namespace, so to its root directory.

    Raises OSError. Source: setns(2).
    """
    flags = _libc.CLONE_NEWNS
    for flag in _OCI_CLONE_FLAGS.values():
        flags |= flag
    _libc.setns(pidfd, flags)


@contextlib.contextmanager
def children_in_pid_namespace(pidfd_or_ns: int) -> Iterator[None]:
    """Let the processes that are started inside of this block be in the PID namespace of a process.

    Raises OSError. Source: pid_namespaces(7).
    """
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _libc.setns(pidfd_or_ns, _libc.CLONE_NEWPID)
        try:
            yield
        finally:
            _libc.setns(own, _libc.CLONE_NEWPID)
    finally:
        os.close(own)


def owner_userns(ns_fd: int) -> int:
    """Return a descriptor of the user namespace that owns a namespace (ioctl_ns(2), NS_GET_USERNS).

    Raises OSError, EPERM when the owner is outside of the caller's user namespace.
    """
    return fcntl.ioctl(ns_fd, _NS_GET_USERNS)


def check_netns(path: str) -> None:
    """Raise NotFound or InvalidArgument naming `path` unless it is the file of a network namespace."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"there is no network namespace {path}") from None
    try:
        is_netns = fcntl.ioctl(fd, _NS_GET_NSTYPE) == _libc.CLONE_NEWNET
    except OSError:
        is_netns = False
    finally:
        os.close(fd)
    if not is_netns:
        raise InvalidArgument(f"{path} is not a network namespace")


def namespace_id(path_or_fd: str | int) -> tuple[int, int]:
    """Return (device, inode), which is equal for two files exactly when they are the same namespace."""
    status = os.stat(path_or_fd)
    return status.st_dev, status.st_ino
