"""A fork whose child is a sibling: its parent is the caller's own parent (clone(2), CLONE_PARENT).

So a daemon's helper forks processes that are the daemon's children from the start: nothing is reparented, and the
daemon learns of their ends whatever happens to the helper.
"""

from __future__ import annotations

import ctypes
import os

from common.linux import _libc

_CLONE_PARENT = 0x00008000
_CLONE_CHILD_CLEARTID = 0x00200000
_CLONE_CHILD_SETTID = 0x01000000
_SYS_CLONE3 = 435
_PR_GET_TID_ADDRESS = 40

_FIELDS = (
    "flags",
    "pidfd",
    "child_tid",
    "parent_tid",
    "exit_signal",
    "stack",
    "stack_size",
    "tls",
    "set_tid",
    "set_tid_size",
    "cgroup",
)


class _CloneArgs(ctypes.Structure):
    """struct clone_args (clone(2)), up to what Linux 5.7 knows."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in _FIELDS)


# Not released around the call, unlike with CDLL: the child must find the interpreter's lock held by itself.
_python = ctypes.PyDLL(None, use_errno=True)
_python.syscall.restype = ctypes.c_long


def fork_sibling(*, new_pid_namespace: bool = False) -> int:
    """Like os.fork(), but the child's parent is ours; return its pid, or 0 in the child.

    :param new_pid_namespace: whether the child is the first process of a PID namespace of its own.
    :raise OSError: the kernel refuses. Never call it in a process with more than one thread.
    """
    flags = _CLONE_PARENT | (_libc.CLONE_NEWPID if new_pid_namespace else 0)
    tid_address = _tid_address()
    if tid_address:
        flags |= _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID
    # The signal of its end is the one that ours has: the kernel takes none beside CLONE_PARENT.
    arguments = _CloneArgs(flags=flags, child_tid=tid_address)
    size = ctypes.c_size_t(ctypes.sizeof(arguments))
    # What os.fork() does around fork(2) (CPython, os_fork_impl).
    _python.PyOS_BeforeFork()
    pid = int(_python.syscall(ctypes.c_long(_SYS_CLONE3), ctypes.byref(arguments), size))
    if pid == 0:
        _python.PyOS_AfterFork_Child()
        return 0
    error = ctypes.get_errno()
    _python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(error, os.strerror(error))
    return pid


def _tid_address() -> int:
    """Return where the C library keeps the thread's id, which it sets there in a child itself (PR_GET_TID_ADDRESS).

    0 on a kernel without checkpoint support: its child keeps the parent's id there, which only locks of threads read.
    """
    address = ctypes.c_uint64()
    result = ctypes.CDLL(None).prctl(_PR_GET_TID_ADDRESS, ctypes.byref(address), 0, 0, 0)
    return address.value if result == 0 else 0
