"""PID 1 of a pod with a shared PID namespace: an ELF file of a few hundred bytes that only sleeps.

It reaps nothing by itself: it is started with SIGCHLD ignored, so the kernel discards the orphans that are
reparented to it. The kernel does not deliver it signals from inside the namespace; SIGKILL from outside
ends it, and with it everything in the namespace (pid_namespaces(7)). One page of memory.
"""

from __future__ import annotations

import os
import struct

from common.errors import Unimplemented

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

# Machine (elf(5), e_machine) and code.
_MACHINES = {"x86_64": (62, _X86_64_CODE), "aarch64": (183, _AARCH64_CODE)}

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_BASE = 0x400000
_ALIGNMENT = 0x10000  # the largest page of the two architectures


def pod_init_elf(machine: str | None = None) -> bytes:
    """Return the executable for `machine` (as in uname -m), by default this one.

    Raises Unimplemented naming an architecture that it was not written for.
    """
    machine = machine or os.uname().machine
    if machine not in _MACHINES:
        raise Unimplemented(f"a shared PID namespace is not supported on {machine}")
    number, code = _MACHINES[machine]
    start = _EHDR.size + 2 * _PHDR.size
    size = start + len(code)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = _EHDR.pack(
        ident, 2, number, 1, _BASE + start, _EHDR.size, 0, 0, _EHDR.size, _PHDR.size, 2, 0, 0, 0
    )
    load = _PHDR.pack(1, 5, 0, _BASE, _BASE, size, size, _ALIGNMENT)
    stack_without_execution = _PHDR.pack(0x6474E551, 6, 0, 0, 0, 0, 0, 16)
    return header + load + stack_without_execution + code
