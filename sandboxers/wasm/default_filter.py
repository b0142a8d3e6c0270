"""The system calls of a module process whose specification has no seccomp profile: those that an engine needs for WASI.

In the form of a specification's `linux.seccomp`, so that it is compiled as those are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_CLONE_THREAD = 0x00010000
_ENOSYS = 38

# ioctl_tty(2), ioctl(2): whether it is a terminal, its size, how much can be read, and not to block.
_IOCTLS = {"TCGETS": 0x5401, "TIOCGWINSZ": 0x5413, "FIONREAD": 0x541B, "FIONBIO": 0x5421}

_STREAMS_AND_FILES = (
    *("close", "close_range", "dup", "dup2", "dup3", "fadvise64", "fallocate", "fchmod", "fchmodat", "fcntl"),
    *("fdatasync", "flock", "fstat", "fstatfs", "fsync", "ftruncate", "futimesat", "getcwd", "getdents64"),
    *(
        "access",
        "faccessat",
        "faccessat2",
        "link",
        "linkat",
        "lseek",
        "lstat",
        "mkdir",
        "mkdirat",
        "newfstatat",
    ),
    *(
        "open",
        "openat",
        "openat2",
        "pipe2",
        "pread64",
        "preadv",
        "preadv2",
        "pwrite64",
        "pwritev",
        "pwritev2",
    ),
    *(
        "read",
        "readlink",
        "readlinkat",
        "readv",
        "rename",
        "renameat",
        "renameat2",
        "rmdir",
        "stat",
        "statfs",
    ),
    *("statx", "symlink", "symlinkat", "truncate", "unlink", "unlinkat", "utimensat", "write", "writev"),
)
_MEMORY = ("brk", "madvise", "membarrier", "mmap", "mprotect", "mremap", "munmap")
_THREADS_AND_SIGNALS = (
    *("exit", "exit_group", "futex", "futex_waitv", "getpid", "gettid", "prctl", "restart_syscall"),
    *("rseq", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigtimedwait", "sched_getaffinity"),
    *("sched_yield", "set_robust_list", "set_tid_address", "sigaltstack", "tgkill"),
    *("getrlimit", "prlimit64", "getuid", "geteuid", "getgid", "getegid", "uname", "sysinfo"),
)
_WAITING_AND_TIME = (
    *("clock_getres", "clock_gettime", "clock_nanosleep", "nanosleep", "gettimeofday", "time", "getrandom"),
    *("epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait", "eventfd2", "poll", "ppoll"),
    *("pselect6", "select", "timerfd_create", "timerfd_settime"),
)
# Components have sockets (wasi:sockets), in the pod's network: of these families.
_FAMILIES = {"AF_INET": 2, "AF_INET6": 10}
_SOCKETS = (
    *("accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen", "recvfrom"),
    *("recvmsg", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown"),
)


def _allow(names: tuple[str, ...], args: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"names": list(names), "action": "SCMP_ACT_ALLOW", "args": args or []}


DEFAULT_PROFILE: Final[Mapping[str, Any]] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "syscalls": [
        _allow((*_STREAMS_AND_FILES, *_MEMORY, *_THREADS_AND_SIGNALS, *_WAITING_AND_TIME, *_SOCKETS)),
        *(
            _allow(("socket",), [{"index": 0, "value": family, "valueTwo": 0, "op": "SCMP_CMP_EQ"}])
            for family in _FAMILIES.values()
        ),
        # Threads, but no processes.
        _allow(
            ("clone",),
            [{"index": 0, "value": _CLONE_THREAD, "valueTwo": _CLONE_THREAD, "op": "SCMP_CMP_MASKED_EQ"}],
        ),
        # Its flags are behind a pointer: the C library does without it.
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},
        *(
            _allow(("ioctl",), [{"index": 1, "value": number, "valueTwo": 0, "op": "SCMP_CMP_EQ"}])
            for number in _IOCTLS.values()
        ),
    ],
}
