"""PID 1 of a pod with a shared PID namespace: an ELF file of a few hundred bytes that only sleeps.

It reaps nothing by itself: it is started with SIGCHLD ignored, so the kernel discards the orphans that are
reparented to it. The kernel does not deliver it signals from inside the namespace; SIGKILL from outside
ends it, and with it everything in the namespace (pid_namespaces(7)). One page of memory.
"""

from __future__ import annotations

import os
import struct

from common.errors import Unimplemented
from common.linux import elf

# for (;;) pause();
_X86_64_CODE = bytes.fromhex(
    "b822000000"  # mov eax, 34 (pause)
    "0f05"  # syscall
    "ebf7"  # jmp to the start
)

# for (;;) ppoll(NULL, 0, NULL, NULL, 0);
_AARCH64_CODE = struct.pack(
    "<8I",
    0xD2800000,  # mov x0, #0
    0xD2800001,  # mov x1, #0
    0xD2800002,  # mov x2, #0
    0xD2800003,  # mov x3, #0
    0xD2800004,  # mov x4, #0
    0xD2800928,  # mov x8, #73 (ppoll)
    0xD4000001,  # svc #0
    0x17FFFFF9,  # b to the start
)

_MACHINES = {"x86_64": (elf.X86_64, _X86_64_CODE), "aarch64": (elf.AARCH64, _AARCH64_CODE)}


def pod_init_elf(machine: str | None = None) -> bytes:
    """Return the executable for `machine` (as in uname -m), by default this one.

    Raises Unimplemented naming an architecture that it was not written for.
    """
    machine = machine or os.uname().machine
    if machine not in _MACHINES:
        raise Unimplemented(f"a shared PID namespace is not supported on {machine}")
    return elf.executable(*_MACHINES[machine])
