"""The system calls of containers where nothing else is asked for: what programs need, less what steers the machine.

Everything that is not listed fails with EPERM, so that new system calls are refused until somebody has looked at
them. Not listed are modules, kexec, reboot, swap, mounts and namespaces, keyrings, clocks, accounting, quotas, bpf,
perf, io_uring (whose requests no filter sees), userfaultfd, raw I/O ports, and reading or tracing processes outside of
the container. Sources: syscalls(2), capabilities(7), seccomp(2); the form is OCI runtime-spec config-linux.md.
"""

from __future__ import annotations

from typing import Any, Final

from common.oci.platform import architecture

_ENOSYS, _EPERM = 38, 1
_AF_VSOCK = 40
# CLONE_NEW* but CLONE_NEWTIME, which is part of the signal's bits in clone(2).
_NEW_NAMESPACES = 0x7E020000

# fmt: off
_FILES: Final = (
    "access", "chdir", "chmod", "chown", "chown32", "close", "close_range", "copy_file_range", "creat", "dup", "dup2",
    "dup3", "faccessat", "faccessat2", "fadvise64", "fadvise64_64", "fallocate", "fchdir", "fchmod", "fchmodat",
    "fchmodat2", "fchown", "fchown32", "fchownat", "fcntl", "fcntl64", "fdatasync", "fgetxattr", "flistxattr", "flock",
    "fremovexattr", "fsetxattr", "fstat", "fstat64", "fstatat64", "fstatfs", "fstatfs64", "fsync", "ftruncate",
    "ftruncate64", "futimesat", "getcwd", "getdents", "getdents64", "getxattr", "inotify_add_watch", "inotify_init",
    "inotify_init1", "inotify_rm_watch", "ioctl", "lchown", "lchown32", "lgetxattr", "link", "linkat", "listxattr",
    "llistxattr", "_llseek", "lremovexattr", "lseek", "lsetxattr", "lstat", "lstat64", "mkdir", "mkdirat", "mknod",
    "mknodat", "name_to_handle_at", "newfstatat", "open", "openat", "openat2", "preadv", "preadv2", "pread64",
    "pwrite64", "pwritev", "pwritev2", "read", "readahead", "readlink", "readlinkat", "readv", "removexattr", "rename",
    "renameat", "renameat2", "rmdir", "sendfile", "sendfile64", "setxattr", "stat", "stat64", "statfs", "statfs64",
    "statx", "symlink", "symlinkat", "sync", "sync_file_range", "syncfs", "truncate", "truncate64", "umask", "unlink",
    "unlinkat", "utime", "utimensat", "utimensat_time64", "utimes", "write", "writev", "cachestat",
)
_PIPES_AND_EVENTS: Final = (
    "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2", "epoll_wait",
    "epoll_wait_old", "eventfd", "eventfd2", "io_cancel", "io_destroy", "io_getevents", "io_pgetevents",
    "io_pgetevents_time64", "io_setup", "io_submit", "pipe", "pipe2", "poll", "ppoll", "ppoll_time64", "pselect6",
    "pselect6_time64", "_newselect", "select", "signalfd", "signalfd4", "splice", "tee", "timerfd_create",
    "timerfd_gettime", "timerfd_gettime64", "timerfd_settime", "timerfd_settime64", "vmsplice",
)
_MEMORY: Final = (
    "brk", "get_mempolicy", "madvise", "map_shadow_stack", "mbind", "membarrier", "memfd_create", "memfd_secret",
    "mincore", "mlock", "mlock2", "mlockall", "mmap", "mmap2", "mprotect", "mremap", "mseal", "msync", "munlock",
    "munlockall", "munmap", "pkey_alloc", "pkey_free", "pkey_mprotect", "process_madvise", "process_mrelease",
    "remap_file_pages", "set_mempolicy", "set_mempolicy_home_node",
)
_PROCESSES: Final = (
    "alarm", "arch_prctl", "capget", "capset", "clock_getres", "clock_getres_time64", "clock_gettime",
    "clock_gettime64", "clock_nanosleep", "clock_nanosleep_time64", "execve", "execveat", "exit", "exit_group",
    "fork", "futex", "futex_requeue", "futex_time64", "futex_wait", "futex_waitv", "futex_wake", "getcpu", "getegid",
    "getegid32", "geteuid", "geteuid32", "getgid", "getgid32", "getgroups", "getgroups32", "getitimer", "getpgid",
    "getpgrp", "getpid", "getppid", "getpriority", "getrandom", "getresgid", "getresgid32", "getresuid",
    "getresuid32", "getrlimit", "get_robust_list", "getrusage", "getsid", "gettid", "get_thread_area",
    "gettimeofday", "getuid", "getuid32", "ioprio_get", "ioprio_set", "kcmp", "kill", "modify_ldt", "nanosleep",
    "pause", "pidfd_getfd", "pidfd_open", "pidfd_send_signal", "prctl", "prlimit64", "process_vm_readv",
    "process_vm_writev", "ptrace", "restart_syscall", "riscv_flush_icache", "rseq", "rt_sigaction", "rt_sigpending",
    "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait",
    "rt_sigtimedwait_time64", "rt_tgsigqueueinfo", "sched_getaffinity", "sched_getattr", "sched_getparam",
    "sched_get_priority_max", "sched_get_priority_min", "sched_getscheduler", "sched_rr_get_interval",
    "sched_rr_get_interval_time64", "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler",
    "sched_yield", "seccomp", "setfsgid", "setfsgid32", "setfsuid", "setfsuid32", "setgid", "setgid32", "setgroups",
    "setgroups32", "setitimer", "setpgid", "setpriority", "setregid", "setregid32", "setresgid", "setresgid32",
    "setresuid", "setresuid32", "setreuid", "setreuid32", "setrlimit", "set_robust_list", "setsid",
    "set_thread_area", "set_tid_address", "setuid", "setuid32", "sigaltstack", "sigprocmask", "sigreturn",
    "sysinfo", "tgkill", "time", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime",
    "timer_gettime64", "timer_settime", "timer_settime64", "times", "tkill", "ugetrlimit", "uname", "vfork", "wait4",
    "waitid", "waitpid", "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self",
)
_SOCKETS_AND_IPC: Final = (
    "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "ipc", "listen",
    "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedreceive_time64", "mq_timedsend",
    "mq_timedsend_time64", "mq_unlink", "msgctl", "msgget", "msgrcv", "msgsnd", "recv", "recvfrom", "recvmmsg",
    "recvmmsg_time64", "recvmsg", "semctl", "semget", "semop", "semtimedop", "semtimedop_time64", "send",
    "sendmmsg", "sendmsg", "sendto", "setsockopt", "shmat", "shmctl", "shmdt", "shmget", "shutdown", "socketcall",
    "socketpair",
)
# fmt: on
# What a capability that was given to the container is of no use without.
_BY_CAPABILITY: Final = {
    "CAP_SYS_CHROOT": ("chroot",),
    "CAP_SYS_TIME": ("adjtimex", "clock_adjtime", "clock_adjtime64", "clock_settime", "settimeofday"),
    "CAP_SYS_NICE": ("migrate_pages", "move_pages"),
    "CAP_SYSLOG": ("syslog",),
    "CAP_DAC_READ_SEARCH": ("open_by_handle_at",),
    "CAP_SYS_ADMIN": (
        *("clone", "clone3", "fsconfig", "fsmount", "fsopen", "fspick", "mount", "mount_setattr"),
        *("move_mount", "open_tree", "pivot_root", "setdomainname", "sethostname", "setns", "umount"),
        *("umount2", "unshare"),
    ),
}
_SUB_ARCHITECTURES: Final = {
    "amd64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "arm64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
}


def default_profile(capabilities: frozenset[str]) -> dict[str, Any]:
    """Return `linux.seccomp` for a container with these capabilities."""
    names = [*_FILES, *_PIPES_AND_EVENTS, *_MEMORY, *_PROCESSES, *_SOCKETS_AND_IPC]
    for capability in sorted(capabilities & _BY_CAPABILITY.keys()):
        names += _BY_CAPABILITY[capability]
    rules: list[dict[str, Any]] = [
        {"names": names, "action": "SCMP_ACT_ALLOW"},
        # Sockets of virtual machines know no network namespace.
        _rule("socket", 0, "SCMP_CMP_NE", _AF_VSOCK),
        # personality(2): Linux, with or without the addresses of 32 bits; what it is, which changes nothing.
        *(_rule("personality", 0, "SCMP_CMP_EQ", value) for value in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF)),
    ]
    if "CAP_SYS_ADMIN" not in capabilities:
        rules.append(_rule("clone", 0, "SCMP_CMP_MASKED_EQ", _NEW_NAMESPACES, 0))
        # Its flags lie in memory, where no filter sees them; C libraries then take clone.
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,
        "architectures": _SUB_ARCHITECTURES.get(architecture(), []),
        "syscalls": rules,
    }


def _rule(name: str, index: int, operator: str, value: int, value_two: int = 0) -> dict[str, Any]:
    condition = {"index": index, "op": operator, "value": value, "valueTwo": value_two}
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [condition]}
