"""Namespaces that live without a process: made by a throwaway thread, kept as bind mounts of nsfs files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Collection, Mapping

from common.errors import InvalidArgument, NotFound
from common.linux import _libc
from common.linux.flags import MNT_DETACH, MS_BIND, UMOUNT_NOFOLLOW
from common.linux.sysctls import Kind, check_sysctls, namespace_of, write_sysctls

__all__ = ["Kind", "check_netns", "create_pinned", "namespace_id", "owner_userns", "pin", "unpin"]

_CLONE_FLAGS = {Kind.IPC: _libc.CLONE_NEWIPC, Kind.UTS: _libc.CLONE_NEWUTS}
_HOSTNAME_BYTES = 64  # __NEW_UTS_LEN
_NS_GET_USERNS = 0xB701  # _IO(0xb7, 1), ioctl_ns(2)
_NS_GET_NSTYPE = 0xB703  # _IO(0xb7, 3)


def pin(ns_source_path: str, target_file: str) -> None:
    """Keep the namespace of a /proc/…/ns/… file alive as a bind mount on `target_file`, which is made (0600).

    Raises FileExistsError when the target exists, other OSError with the paths; leaves nothing then.
    """
    os.close(os.open(target_file, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        _libc.mount(ns_source_path, target_file, None, MS_BIND, None)
    except BaseException:
        os.unlink(target_file)
        raise


def unpin(target_file: str) -> None:
    """Undo `pin`; harmless when it is undone already. Raises OSError with the path."""
    try:
        _libc.umount2(target_file, MNT_DETACH | UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
    with contextlib.suppress(FileNotFoundError):
        os.unlink(target_file)


def create_pinned(
    kinds: Collection[Kind],
    targets: Mapping[Kind, str],
    hostname: str | None,
    sysctls: Mapping[str, str],
    netns_path: str | None,
) -> None:
    """Create IPC and UTS namespaces and pin each at its target file; all or nothing. Takes about 0.6 ms.

    `hostname` needs UTS among the kinds. `sysctls` are written inside; those of net.* in the namespace of
    `netns_path`, and they are refused without one. Raises InvalidArgument naming what is malformed or not
    allowed, OSError for what the kernel refuses.
    """
    if unknown := set(kinds) - _CLONE_FLAGS.keys():
        raise InvalidArgument(f"cannot create {', '.join(sorted(unknown))} namespaces without a process")
    check_settings(kinds, hostname, sysctls, has_netns=bool(netns_path))
    flags = 0
    for kind in kinds:
        flags |= _CLONE_FLAGS[kind]

    def create() -> None:
        _libc.unshare(flags)
        if netns_path and any(namespace_of(key) is Kind.NET for key in sysctls):
            enter(netns_path, _libc.CLONE_NEWNET)
        if hostname is not None:
            _libc.sethostname(hostname)
        write_sysctls(sysctls)
        pin_all({kind: f"/proc/thread-self/ns/{kind}" for kind in kinds}, targets)

    if kinds or sysctls:
        _libc.run_in_own_thread(create)


def check_settings(
    kinds: Collection[Kind], hostname: str | None, sysctls: Mapping[str, str], *, has_netns: bool
) -> None:
    """Raise InvalidArgument for a host name or sysctl that the namespaces of a pod cannot take."""
    if hostname is not None and Kind.UTS not in kinds:
        raise InvalidArgument("a host name needs a UTS namespace of its own")
    if hostname is not None and len(os.fsencode(hostname)) > _HOSTNAME_BYTES:
        raise InvalidArgument(f"host name {hostname!r} is longer than {_HOSTNAME_BYTES} bytes")
    check_sysctls(sysctls, {*kinds, Kind.NET} if has_netns else kinds)


def pin_all(sources: Mapping[Kind, str], targets: Mapping[Kind, str]) -> None:
    """Pin each source at the target of its kind; all or none."""
    with contextlib.ExitStack() as undo:
        for kind, source in sources.items():
            pin(source, targets[kind])
            undo.callback(unpin, targets[kind])
        undo.pop_all()


def enter(path: str, nstype: int) -> None:
    """Move the calling thread into the namespace of an nsfs file. Raises OSError with the path."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _libc.setns(fd, nstype)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(fd)


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
