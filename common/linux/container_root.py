"""The root file system of a process in a mount namespace of its own: mounts on top, then everything else gone.

Destinations lie in a tree that an image has filled: they are resolved inside it and mounted through descriptors, so
that no link leads astray (openat2(2), move_mount(2)). Mounts are finished before they are attached. Device nodes work
nowhere but in a temporary /dev, which has the harmless ones.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from common.errors import InvalidArgument
from common.linux import _libc
from common.linux.flags import (
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_NOSYMFOLLOW,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_SLAVE,
)
from common.linux.mount_options import parse_options
from common.linux.mounts import mount_tmpfs, pivot_to_working_directory
from common.linux.paths import open_in_root

# Equal to MS_* (include/uapi/linux/mount.h), but for MOUNT_ATTR_NOSYMFOLLOW.
_PLAIN_ATTRIBUTES = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
_MOUNT_ATTR_NOSYMFOLLOW = 0x200000
_RECURSIVE_OPTIONS = {"rro": MS_RDONLY, "rnosuid": MS_NOSUID, "rnodev": MS_NODEV, "rnoexec": MS_NOEXEC}

# As the kernel has it (path_resolution(7)).
_MAX_LINKS = 40

# What programs expect in /dev and what gives nothing away: name, major and minor number (devices.txt).
_DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9))


_SCRATCH = "/tmp"


@dataclass(frozen=True, slots=True)
class InnerMount:
    """A mount of a specification: `type` "bind" or "tmpfs", options as mount(8) has them."""

    destination: str
    type: str
    source: str
    options: tuple[str, ...] = ()

    @property
    def is_bind(self) -> bool:
        return self.type == "bind" or "bind" in self.options or "rbind" in self.options


class ContainerRoot:
    """A root that is being put together in a new mount namespace. Use: make, mount, enter."""

    __slots__ = ("fd",)

    def __init__(self, rootfs: str) -> None:
        """Take this directory, in a mount namespace that nothing leaves. Raises OSError."""
        _leave_mounts()
        _libc.mount(rootfs, rootfs, None, MS_BIND | MS_REC, None)
        _libc.mount(None, rootfs, None, MS_PRIVATE, None)
        self.fd = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        # An image may hold nodes of any device of the host; there is no device cgroup here.
        _libc.mount_setattr(self.fd, attr_set=MS_NODEV, recursive=True, path=rootfs)

    def mount(self, mounts: Iterable[InnerMount]) -> None:
        """Attach mounts, in order, making their mount points.

        :raise InvalidArgument: one cannot be made, naming its destination.
        """
        for inner in mounts:
            try:
                if inner.is_bind:
                    self._bind(inner)
                else:
                    self._mount_tmpfs(inner)
            except OSError as error:
                raise InvalidArgument(
                    f"cannot mount {inner.source} on {inner.destination}: {error}"
                ) from error

    def make_directory(self, path: str) -> None:
        """Make a directory inside, with the parents that are missing. Raises OSError."""
        os.close(make_mount_point(self.fd, path, is_directory=True))

    def enter(self, *, readonly: bool) -> None:
        """Make it the root of this process; nothing else is reachable by a path any more. Raises OSError."""
        if readonly:
            _libc.mount_setattr(self.fd, attr_set=MS_RDONLY, path="/")
        os.fchdir(self.fd)
        os.close(self.fd)
        pivot_to_working_directory()

    def _bind(self, inner: InnerMount) -> None:
        flags = parse_options([option for option in inner.options if option not in _RECURSIVE_OPTIONS])
        clone = _libc.OPEN_TREE_CLONE | _libc.OPEN_TREE_CLOEXEC
        recursive = _libc.AT_RECURSIVE if flags.flags & MS_REC else 0
        tree = _libc.open_tree(_libc.AT_FDCWD, inner.source, clone | recursive)
        try:
            for attributes, all_below in (
                (_attributes(flags.flags), False),
                (_recursive_attributes(inner.options) | MS_NODEV, True),
            ):
                if attributes:
                    _libc.mount_setattr(tree, attr_set=attributes, recursive=all_below, path=inner.source)
            for propagation in flags.propagation or (MS_PRIVATE | MS_REC,):
                below = bool(propagation & MS_REC)
                _libc.mount_setattr(
                    tree, propagation=propagation & ~MS_REC, recursive=below, path=inner.source
                )
            self._attach(tree, inner.destination, stat.S_ISDIR(os.fstat(tree).st_mode))
        finally:
            os.close(tree)

    def _attach(self, tree: int, destination: str, is_directory: bool) -> None:
        target = make_mount_point(self.fd, destination, is_directory)
        try:
            _libc.move_mount_onto(tree, target, destination)
        finally:
            os.close(target)

    def _mount_tmpfs(self, inner: InnerMount) -> None:
        options = parse_options(inner.options)
        has_devices = os.path.normpath(inner.destination) == "/dev"
        flags = options.flags & ~MS_NODEV if has_devices else options.flags | MS_NODEV
        target = make_mount_point(self.fd, inner.destination, True)
        try:
            _libc.mount("tmpfs", f"/proc/self/fd/{target}", "tmpfs", flags, options.data)
        finally:
            os.close(target)
        if has_devices:
            self._make_devices()

    def _make_devices(self) -> None:
        directory = open_in_root(self.fd, "dev", os.O_PATH | os.O_DIRECTORY)
        try:
            for name, major, minor in _DEVICES:
                os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=directory)
                os.chmod(f"/proc/self/fd/{directory}/{name}", 0o666)
        finally:
            os.close(directory)


def enter_empty_root(size_bytes: int) -> None:
    """Leave all files to others but a new `/tmp`, for what this process writes; it ends with it. Raises OSError."""
    _leave_mounts()
    mount_tmpfs(_SCRATCH, size_bytes, 0o755)
    os.chdir(_SCRATCH)
    os.mkdir(_SCRATCH[1:])
    os.chmod(_SCRATCH[1:], 0o1777)
    pivot_to_working_directory()


def _leave_mounts() -> None:
    _libc.unshare(_libc.CLONE_NEWNS)
    # Not private: what is unmounted outside is to go here too, else it would be held.
    _libc.mount(None, "/", None, MS_SLAVE | MS_REC, None)


def make_mount_point(root_fd: int, destination: str, is_directory: bool) -> int:
    """Return an O_PATH descriptor of a path inside a root; what is missing of it is made, also behind links.

    :raise OSError: it leads upwards, or cannot be made.
    """
    parts = _parts(destination)
    if ".." in parts:
        raise OSError(errno.EINVAL, "leads upwards", destination)
    with contextlib.suppress(FileNotFoundError):
        return open_in_root(root_fd, "/".join(parts) or "/", os.O_PATH)
    parts = _resolve(root_fd, parts)
    for depth in range(1, len(parts)):
        os.close(_open_or_make(root_fd, parts[:depth], is_directory=True))
    return _open_or_make(root_fd, parts, is_directory)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _resolve(root_fd: int, parts: Sequence[str]) -> list[str]:
    """Return where a path leads inside a root, of which the end may be missing: the kernel makes nothing behind a link.

    It only says what to make: whatever is opened is resolved by the kernel again.
    """
    waiting, resolved, links = list(reversed(parts)), list[str](), 0
    while waiting:
        part = waiting.pop()
        if part == "..":
            del resolved[-1:]
            continue
        target = _link_target(root_fd, [*resolved, part])
        if target is None:
            resolved.append(part)
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), "/".join(parts))
        if target.startswith("/"):
            resolved.clear()
        waiting.extend(reversed(_parts(target)))
    return resolved


def _link_target(root_fd: int, parts: Sequence[str]) -> str | None:
    try:
        fd = open_in_root(root_fd, "/".join(parts), os.O_PATH | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        return os.readlink("", dir_fd=fd) if stat.S_ISLNK(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)


def _open_or_make(root_fd: int, parts: Sequence[str], is_directory: bool) -> int:
    path = "/".join(parts)
    try:
        return open_in_root(root_fd, path, os.O_PATH)
    except FileNotFoundError:
        pass
    parent = open_in_root(root_fd, "/".join(parts[:-1]) or "/", os.O_PATH | os.O_DIRECTORY)
    try:
        # Somebody else who uses the same root may have been quicker.
        with contextlib.suppress(FileExistsError):
            if is_directory:
                os.mkdir(parts[-1], 0o755, dir_fd=parent)
            else:
                os.mknod(parts[-1], stat.S_IFREG | 0o644, dir_fd=parent)
    finally:
        os.close(parent)
    return open_in_root(root_fd, path, os.O_PATH)


def _attributes(flags: int) -> int:
    return (flags & _PLAIN_ATTRIBUTES) | (_MOUNT_ATTR_NOSYMFOLLOW if flags & MS_NOSYMFOLLOW else 0)


def _recursive_attributes(options: Sequence[str]) -> int:
    attributes = 0
    for option in options:
        attributes |= _RECURSIVE_OPTIONS.get(option, 0)
    return attributes
