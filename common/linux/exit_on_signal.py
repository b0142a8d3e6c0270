"""A signal handler that ends the process with 128 + the signal's number, for the first process of a PID namespace.

The kernel ignores for such a process every signal that has no handler (pid_namespaces(7)), and a handler of Python's
would wait for the interpreter, which waits for what it has called. So the handler is machine code: exit_group(2).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import struct
from collections.abc import Iterable

from common.errors import Unimplemented

_X86_64_CODE = bytes.fromhex(
    "81c780000000"  # add edi, 128
    "b8e7000000"  # mov eax, 231 (exit_group)
    "0f05"  # syscall
)
_AARCH64_CODE = struct.pack(
    "<3I",
    0x11020000,  # add w0, w0, #128
    0xD2800BC8,  # mov x8, #94 (exit_group)
    0xD4000001,  # svc #0
)
_CODE = {"x86_64": _X86_64_CODE, "aarch64": _AARCH64_CODE}

_PROT_READ_EXEC = mmap.PROT_READ | mmap.PROT_EXEC

# Those whose default is to end a process, but for SIGKILL, which needs no handler, and for faults, which are a
# runtime's own business (signal(7)).
FATAL_SIGNALS = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGALRM, signal.SIGTERM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGXCPU),
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)


def exit_on_signals(signums: Iterable[int] = FATAL_SIGNALS) -> None:
    """Let each of these signals end this process at once, whatever it is doing.

    :raise Unimplemented: the code was not written for this machine.
    """
    machine = os.uname().machine
    if machine not in _CODE:
        raise Unimplemented(f"ending the first process of a PID namespace is not supported on {machine}")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal.restype = ctypes.c_void_p
    # Never unmapped: it must be there for as long as the process is.
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    page = libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, private, -1, 0)
    if page == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap of a signal handler")
    ctypes.memmove(page, _CODE[machine], len(_CODE[machine]))
    if libc.mprotect(page, mmap.PAGESIZE, _PROT_READ_EXEC) != 0:
        raise OSError(ctypes.get_errno(), "mprotect of a signal handler")
    for signum in signums:
        libc.signal(signum, page)
