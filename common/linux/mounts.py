"""Mounting: single calls, a container's root file system, and taking away all that lies below a path."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence

from common.errors import InvalidArgument
from common.linux import _libc
from common.linux.flags import (
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    MS_SLAVE,
    UMOUNT_NOFOLLOW,
)
from common.linux.mount_options import (
    MountSpec,
    ParsedOptions,
    compact_lowerdirs,
    parse_options,
    split_lowerdirs,
)
from common.linux.paths import open_in_root
from common.linux.proc_text import unescape

__all__ = [
    "MNT_DETACH",
    "UMOUNT_NOFOLLOW",
    "MountSpec",
    "attach_mount",
    "cloned_tree",
    "make_private",
    "mount",
    "mount_rootfs",
    "mount_tmpfs",
    "mounts_below",
    "parse_options",
    "pivot_to_working_directory",
    "umount",
    "unmount_all",
    "unmount_stack",
]

_MOUNT_ATTR_IDMAP = 0x100000
# MOUNT_ATTR_* equal MS_* for ro, nosuid, nodev and noexec (include/uapi/linux/mount.h).
_MOUNT_ATTR_SAME_AS_MS = 0xF

# What a bind mount inherits from its source and a remount must repeat to keep: ST_* (statvfs(3)) to MS_*.
_INHERITED_FLAGS = ((1, 1), (2, 2), (4, 4), (8, 8), (1024, 1024), (2048, 2048), (4096, 1 << 21))


def mount(
    source: str | None, target: str, fstype: str | None = None, flags: int = 0, data: str | None = None
) -> None:
    """mount(2). Raises OSError with the source in `filename` and the target in `filename2`."""
    _libc.mount(source, target, fstype, flags, data)


def umount(target: str, flags: int = MNT_DETACH | UMOUNT_NOFOLLOW) -> None:
    """umount2(2), lazy by default. Raises OSError with the path, EINVAL when nothing is mounted there."""
    _libc.umount2(target, flags)


def make_private(target: str) -> None:
    """Stop mount events from passing between the mount at `target` and its peers. Raises OSError."""
    _libc.mount(None, target, None, MS_PRIVATE, None)


def mount_tmpfs(
    target: str,
    size_bytes: int,
    mode: int,
    uid: int = 0,
    gid: int = 0,
    flags: int = MS_NOSUID | MS_NODEV | MS_NOEXEC,
) -> None:
    """Mount a tmpfs of at most `size_bytes` whose root has `mode` and the owner given. Raises OSError."""
    _libc.mount("tmpfs", target, "tmpfs", flags, f"size={size_bytes},mode={mode:o},uid={uid},gid={gid}")


def hold_mount(path: str, *, read_only: bool = False) -> int:
    """Return a descriptor that keeps the directory or file at `path`, wherever else its file system is unmounted.

    It is a mount of its own, attached nowhere: no mount table shows it. Raises OSError with the path.
    """
    fd = _libc.open_tree(_libc.AT_FDCWD, path, _libc.OPEN_TREE_CLONE | _libc.OPEN_TREE_CLOEXEC)
    if read_only:
        try:
            _libc.mount_setattr(fd, attr_set=MS_RDONLY, path=path)
        except BaseException:
            os.close(fd)
            raise
    return fd


def hold_mount_of(pid: int, path: str) -> int:
    """Like `hold_mount`, for a path as a process sees it in its mount namespace.

    Raises OSError with the path, also where nothing is mounted at exactly this path.
    """
    namespace_fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

    def hold() -> int:
        # A thread that shares its working directory with others may not change its mount namespace.
        _libc.unshare(_libc.CLONE_FS)
        _libc.setns(namespace_fd, _libc.CLONE_NEWNS)
        if not os.path.ismount(path):
            raise OSError(errno.EINVAL, "not a mount point", path)
        return hold_mount(path)

    try:
        return _libc.run_in_own_thread(hold)
    finally:
        os.close(namespace_fd)


def attach_mount(held: int, path: str) -> None:
    """Mount at `path` what `hold_mount` or `cloned_tree` has returned, once per descriptor. Raises OSError with the
    path.
    """
    _libc.move_mount(held, path)


@contextlib.contextmanager
def cloned_tree(source: str, *, read_only: bool = False, recursively: bool = False) -> Iterator[int]:
    """Give a descriptor of a clone of `source` with all mounts below it, attached nowhere until `attach_mount`.

    What is mounted below the source later appears in it too, but what is mounted or unmounted below the clone never
    reaches the source: without that, detaching a bind mount takes the source's own mounts along (mount_namespaces(7)).
    `read_only` makes the topmost mount read-only, `recursively` all; copies in other namespaces are so from the start.

    :raise OSError: with the path.
    """
    flags = _libc.OPEN_TREE_CLONE | _libc.OPEN_TREE_CLOEXEC | _libc.AT_RECURSIVE
    fd = _libc.open_tree(_libc.AT_FDCWD, source, flags)
    try:
        _libc.mount_setattr(fd, propagation=MS_SLAVE, recursive=True, path=source)
        if read_only:
            _libc.mount_setattr(fd, attr_set=MS_RDONLY, recursive=recursively, path=source)
        yield fd
    finally:
        os.close(fd)


def pivot_to_working_directory() -> None:
    """Make the mount that is the working directory the root, and let go of all that was mounted beside it.

    Raises OSError. Needs a mount namespace of its own.
    """
    # The old root ends up on top of the new one and goes at once (pivot_root(2), "pivot_root(".", ".")").
    _libc.pivot_root(".", ".")
    _libc.umount2(".", MNT_DETACH)
    os.chdir("/")


def mount_rootfs(mounts: Sequence[MountSpec], target: str, userns_fd: int | None = None) -> None:
    """Mount a snapshotter's mounts on the directory `target`, in order; all of them or none.

    Options `uidmap=`/`gidmap=` ask for an idmapped root and need `userns_fd`, a user namespace with that
    mapping. Raises InvalidArgument for an option or file system type that cannot be served and when `target`
    is no directory or a symbolic link, OSError with the paths for everything the kernel refuses.
    Source: contracts/containerd.md §5.
    """
    parsed = [parse_options(spec.options) for spec in mounts]
    for spec, options in zip(mounts, parsed, strict=True):
        _check(spec, options, userns_fd)
    _check_directory(target)
    done: list[str] = []
    try:
        for spec, options in zip(mounts, parsed, strict=True):
            place = _place(spec, target)
            _mount_one(spec, options, place, userns_fd, done)
    except BaseException:
        for place in reversed(done):
            with contextlib.suppress(OSError):
                umount(place)
        raise


def _check(spec: MountSpec, options: ParsedOptions, userns_fd: int | None) -> None:
    if not spec.type and not options.is_bind:
        raise InvalidArgument(f"mount of {spec.source!r} has no file system type")
    if spec.type.startswith(("fuse.", "fuse3.")):
        raise InvalidArgument(f"file system type {spec.type!r} needs a mount program and is not supported")
    if not options.is_idmapped:
        return
    if userns_fd is None:
        raise InvalidArgument(
            f"mount of {spec.source!r} has uidmap/gidmap options, but its pod has no user namespace"
        )
    if spec.type != "overlay" and not options.is_bind and spec.type not in ("bind", "rbind"):
        raise InvalidArgument(f"mounts of type {spec.type!r} cannot be mapped to a user namespace")


def _check_directory(target: str) -> None:
    try:
        os.close(os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW))
    except NotADirectoryError:
        raise InvalidArgument(f"mount target {target} is a symbolic link or no directory") from None


def _place(spec: MountSpec, target: str) -> str:
    """Resolve the path inside the root that a mount may name; what is mounted so far is not trusted."""
    if not spec.target:
        return target
    root = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fd = open_in_root(root, spec.target, os.O_PATH)
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
    finally:
        os.close(root)


def _mount_one(
    spec: MountSpec, options: ParsedOptions, target: str, userns_fd: int | None, done: list[str]
) -> None:
    if spec.type in ("bind", "rbind") or options.is_bind:
        _mount_bind(spec, options, target, userns_fd, done)
    elif options.is_idmapped:
        assert userns_fd is not None
        _mount_idmapped_overlay(spec, options, target, userns_fd, done)
    else:
        _mount_filesystem(spec.type, spec.source, target, options.flags, options.data)
        done.append(target)
    for propagation in options.propagation:
        _libc.mount(None, target, None, propagation, None)


def _mount_filesystem(fstype: str, source: str, target: str, flags: int, data: str) -> None:
    if not data or len(os.fsencode(data)) < os.sysconf("SC_PAGE_SIZE"):
        _mount_known_type(fstype, source, target, flags, data)
        return
    # The kernel takes at most a page of options: name the layers relative to the directory that they share.
    directory, shorter = compact_lowerdirs(data) if fstype == "overlay" else (None, data)
    if directory is None or len(os.fsencode(shorter)) >= os.sysconf("SC_PAGE_SIZE"):
        raise InvalidArgument(f"mount options of type {fstype!r} do not fit into a page: {data[:200]}…")

    def mount_in_directory() -> None:
        _libc.unshare(_libc.CLONE_FS)
        os.chdir(directory)
        _mount_known_type(fstype, source, target, flags, shorter)

    _libc.run_in_own_thread(mount_in_directory)


def _mount_known_type(fstype: str, source: str, target: str, flags: int, data: str) -> None:
    try:
        _libc.mount(source, target, fstype, flags, data)
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise InvalidArgument(f"file system type {fstype!r} is not known to this kernel") from error
        raise


def _mount_bind(
    spec: MountSpec, options: ParsedOptions, target: str, userns_fd: int | None, done: list[str]
) -> None:
    recursive = MS_REC if spec.type == "rbind" else options.flags & MS_REC
    if options.is_idmapped:
        assert userns_fd is not None
        attributes = options.flags & _MOUNT_ATTR_SAME_AS_MS
        with _idmapped_clone(spec.source, userns_fd, attributes, bool(recursive)) as fd:
            _libc.move_mount(fd, target)
        done.append(target)
        return
    _libc.mount(spec.source, target, None, MS_BIND | recursive, None)
    done.append(target)
    wanted = options.flags & ~(MS_BIND | MS_REC)
    if wanted:
        present = os.statvfs(target).f_flag
        inherited = sum(ms for st, ms in _INHERITED_FLAGS if present & st)
        _libc.mount(None, target, None, MS_BIND | MS_REMOUNT | wanted | inherited, None)


@contextlib.contextmanager
def _idmapped_clone(source: str, userns_fd: int, attributes: int, recursive: bool) -> Iterator[int]:
    flags = _libc.OPEN_TREE_CLONE | _libc.OPEN_TREE_CLOEXEC | (_libc.AT_RECURSIVE if recursive else 0)
    fd = _libc.open_tree(_libc.AT_FDCWD, source, flags)
    try:
        _libc.mount_setattr(
            fd, attr_set=attributes | _MOUNT_ATTR_IDMAP, userns_fd=userns_fd, recursive=recursive, path=source
        )
        yield fd
    finally:
        os.close(fd)


def _mount_idmapped_overlay(
    spec: MountSpec, options: ParsedOptions, target: str, userns_fd: int, done: list[str]
) -> None:
    """Mount an overlay whose lower layers are idmapped; the upper layer already has shifted owners.

    The idmapped clones need a place while the overlay is put together: a private tmpfs on the target itself.
    It goes in one call whatever happens, and a crash leaves nothing outside of the target.
    """
    layers, other_options = split_lowerdirs(options.data)
    if not layers:
        raise InvalidArgument("overlay mount has no lowerdir option")
    _libc.mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=700,size=1m")
    overlay_fd = -1
    try:
        try:
            make_private(target)
            clones = []
            for number, layer in enumerate(layers):
                clone = f"{target}/{number}"
                os.mkdir(clone, 0o700)
                with _idmapped_clone(layer, userns_fd, 0, False) as fd:
                    _libc.move_mount(fd, clone)
                clones.append(clone)
            merged = f"{target}/merged"
            os.mkdir(merged, 0o700)
            data = ",".join([*other_options, "lowerdir=" + ":".join(clones)])
            _mount_filesystem("overlay", spec.source, merged, options.flags, data)
            overlay_fd = _libc.open_tree(
                _libc.AT_FDCWD, merged, _libc.OPEN_TREE_CLONE | _libc.OPEN_TREE_CLOEXEC
            )
        finally:
            umount(target)
        _libc.move_mount(overlay_fd, target)
        done.append(target)
    finally:
        if overlay_fd >= 0:
            os.close(overlay_fd)


def mounts_below(path: str) -> list[str]:
    """Return the mount points at or below `path`, in the order they were mounted; stacked ones repeat.

    `path` must be absolute and free of symbolic links, as mountinfo shows it (proc_pid_mountinfo(5)).
    """
    prefix = _escaped(path.rstrip("/") or "/")
    with open("/proc/self/mountinfo", "rb") as file:
        table = file.read()
    found = []
    # A search for the path, then a look at its surroundings: splitting every line would cost milliseconds
    # on a node with thousands of mounts.
    needle = b" " + prefix
    position = table.find(needle)
    while position >= 0:
        start = table.rfind(b"\n", 0, position) + 1
        end = table.index(b" ", position + 1)
        mount_point = table[position + 1 : end]
        inside = prefix == b"/" or mount_point == prefix or mount_point.startswith(prefix + b"/")
        if inside and table.count(b" ", start, position) == 3:
            found.append(unescape(os.fsdecode(mount_point)))
        position = table.find(needle, position + 1)
    return found


def unmount_all(path: str) -> int:
    """Detach every mount at or below `path`, deepest first, and return how many there were.

    Mounts that vanish meanwhile do not matter. Raises OSError with the path of one that cannot go.
    """
    points = mounts_below(path)
    for point in sorted(reversed(points), key=lambda p: p.count("/"), reverse=True):
        _umount_if_mounted(point)
    return len(points)


def unmount_stack(target: str) -> int:
    """Detach everything mounted at `target`, with all that lies below, and return how many layers there were.

    Unlike `unmount_all` it reads no mount table, so its cost does not grow with the node. Harmless when
    nothing is mounted or `target` does not exist. Raises OSError with the path.
    """
    count = 0
    while _umount_if_mounted(target):
        count += 1
    return count


def _umount_if_mounted(target: str) -> bool:
    try:
        umount(target)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
        return False
    return True


def _escaped(path: str) -> bytes:
    raw = os.fsencode(path).replace(b"\\", b"\\134")
    return raw.replace(b" ", b"\\040").replace(b"\t", b"\\011").replace(b"\n", b"\\012")
