"""A signal handler that ends the process with 128 + the signal's number, for the first process of a PID namespace.

The kernel ignores for such a process every signal that has no handler (pid_namespaces(7)), and a handler of Python's
would wait for the interpreter, which waits for what it has called. So the handler is machine code: exit_group(2).
"""

from __future__ import annotations

import ctypes
import signal
import struct
from collections.abc import Iterable

from common.linux import machine_code

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
    # Never unloaded: it must be there for as long as the process is.
    handler = machine_code.load(_CODE, "ending the first process of a PID namespace")
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal.restype = ctypes.c_void_p
    for signum in signums:
        libc.signal(signum, handler)
