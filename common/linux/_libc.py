"""System calls that Python's `os` module does not offer, as typed functions that raise `OSError`."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40

_FALLOC_FL_KEEP_SIZE = 0x1
_FALLOC_FL_PUNCH_HOLE = 0x2

# Numbers from 424 on are the same for all architectures (include/uapi/asm-generic/unistd.h).
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_SYS_EXECVEAT = {"x86_64": 322, "aarch64": 281}
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219}


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _bytes(path: str | None) -> bytes | None:
    if path is None:
        return None
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError("embedded null byte")
    return encoded


def _checked(result: int, path: str | None = None, other: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        if path is None:
            raise OSError(number, os.strerror(number))
        raise OSError(number, os.strerror(number), path, None, other)
    return result


def _syscall(number: int, *arguments: Any) -> int:
    # syscall(2) is variadic: an int without a type would be passed as 32 bits.
    wide = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    function = _libc().syscall
    function.restype = ctypes.c_long
    return int(function(ctypes.c_long(number), *wide))


def _number(table: dict[str, int], name: str) -> int:
    machine = os.uname().machine
    if machine not in table:
        raise NotImplementedError(f"the number of {name} is not known for {machine}")
    return table[machine]


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str | None) -> None:
    """mount(2)."""
    result = _libc().mount(
        _bytes(source), _bytes(target), _bytes(fstype), ctypes.c_ulong(flags), _bytes(data) if data else None
    )
    _checked(result, source or fstype or target, target)


def umount2(target: str, flags: int) -> None:
    """umount2(2)."""
    _checked(_libc().umount2(_bytes(target), flags), target)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(_libc().unshare(flags))


def reboot(command: int) -> None:
    """reboot(2), by the wrapper of the C library."""
    _checked(_libc().reboot(ctypes.c_int(command)))


def setns(fd: int, nstype: int) -> None:
    """setns(2)."""
    _checked(_libc().setns(fd, nstype))


def sethostname(name: str) -> None:
    """sethostname(2)."""
    encoded = os.fsencode(name)
    _checked(_libc().sethostname(encoded, ctypes.c_size_t(len(encoded))))


def prctl(option: int, *arguments: int) -> int:
    """prctl(2)."""
    padded = [*arguments, 0, 0, 0, 0][:4]
    return _checked(_libc().prctl(option, *(ctypes.c_ulong(a) for a in padded)))


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    number = _number(_SYS_PIVOT_ROOT, "pivot_root")
    _checked(_syscall(number, _bytes(new_root), _bytes(put_old)), new_root, put_old)


def drop_all_capabilities() -> None:
    """capset(2) with empty sets, version 3 of the header, for the calling thread."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    _checked(_syscall(_number(_SYS_CAPSET, "capset"), ctypes.byref(header), ctypes.byref(data)))


def keyctl(operation: int, *arguments: int) -> int:
    """keyctl(2)."""
    return _checked(_syscall(_number(_SYS_KEYCTL, "keyctl"), operation, *arguments))


def execveat(fd: int, argv: list[str], env: list[str]) -> None:
    """execveat(2) of the file behind `fd`; returns only by raising."""
    arguments = (ctypes.c_char_p * (len(argv) + 1))(*(os.fsencode(a) for a in argv), None)
    environment = (ctypes.c_char_p * (len(env) + 1))(*(os.fsencode(e) for e in env), None)
    _checked(_syscall(_number(_SYS_EXECVEAT, "execveat"), fd, b"", arguments, environment, AT_EMPTY_PATH))


def openat2(directory_fd: int, path: str, flags: int, mode: int, resolve: int) -> int:
    """openat2(2); the result is always close-on-exec."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    arguments = (directory_fd, _bytes(path), ctypes.byref(how), ctypes.sizeof(how))
    return _checked(_syscall(_SYS_OPENAT2, *arguments), path)


def open_tree(directory_fd: int, path: str, flags: int) -> int:
    """open_tree(2)."""
    return _checked(_syscall(_SYS_OPEN_TREE, directory_fd, _bytes(path), flags), path)


def move_mount(from_fd: int, target: str) -> None:
    """move_mount(2) of the detached mount behind `from_fd` onto `target`."""
    result = _syscall(_SYS_MOVE_MOUNT, from_fd, b"", AT_FDCWD, _bytes(target), MOVE_MOUNT_F_EMPTY_PATH)
    _checked(result, target)


def move_mount_onto(from_fd: int, target_fd: int, path: str) -> None:
    """move_mount(2) of the detached mount behind `from_fd` onto what is open as `target_fd`; `path` only names it."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _checked(_syscall(_SYS_MOVE_MOUNT, from_fd, b"", target_fd, b"", flags), path)


def mount_setattr(
    fd: int,
    *,
    attr_set: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
    recursive: bool = False,
    path: str,
) -> None:
    """mount_setattr(2) on the mount behind `fd`; `path` only names it in an error."""
    attr = _MountAttr(attr_set, 0, propagation, userns_fd)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _checked(_syscall(_SYS_MOUNT_SETATTR, fd, b"", flags, ctypes.byref(attr), ctypes.sizeof(attr)), path)


def punch_hole(fd: int, end: int) -> None:
    """fallocate(2): give back the memory of a file's first `end` bytes, which are zeros then; its size stays."""
    if end > 0:
        mode = ctypes.c_int(_FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE)
        _checked(_libc().fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(end)))


def inotify_init1(flags: int) -> int:
    """inotify_init1(2)."""
    return _checked(_libc().inotify_init1(flags))


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """inotify_add_watch(2)."""
    return _checked(_libc().inotify_add_watch(fd, _bytes(path), ctypes.c_uint32(mask)), path)


def inotify_rm_watch(fd: int, wd: int) -> None:
    """inotify_rm_watch(2)."""
    _checked(_libc().inotify_rm_watch(fd, wd))


def run_in_own_thread(function: Callable[[], T]) -> T:
    """Run `function` in a thread made for it alone and return its result or raise its error.

    Whatever the function changes about its own thread (unshare, setns, chdir after CLONE_FS) ends with it.
    """
    import threading  # late: programs without threads load this module too

    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, name="throwaway")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
