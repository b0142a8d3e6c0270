"""A child that holds what this process has opened and not yet given to its keeper, should this process die.

It shares the table of descriptors, not the memory (clone(2), CLONE_FILES without CLONE_VM): what is opened here is open
there at the same instant, so no death can come in between. Afterwards it closes all but FIFOs, lest locks, listeners
and connections outlive us, and ends after a while; whoever succeeds us ends it sooner.

It is machine code in a page of its own and gives all other memory back: no interpreter is forked, and it costs two
pages. It is made by a child in between that ends at once: only who shares our memory for a moment (CLONE_VM) loses the
restartable sequences of the C library (rseq(2)), which the kernel would go on to write to where no memory is.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import signal
import struct

from common.linux import machine_code

NAME = "sandboxd-fds"
"""Its command name; it has no command line."""

HOLDING_S = 20
"""How long it holds FIFOs after our death."""

# Offsets in the page of data: pid 0, name 8, what to unmap: the size below 24, address 32 and size 40 above; the
# struct pollfd 48 (revents 54), the struct timespec 56, the struct statfs 72.
_DATA = struct.Struct("<i4x16s3QihhqQ120x")

# for each fd, until 4096 in a row are not open: if it is no pipe, or has no name, close it
_X86_64_CODE = bytes.fromhex(
    # start(data):
    "4989f9"  # mov r9, rdi
    "bf11450000"  # mov edi, CLONE_VM | CLONE_VFORK | CLONE_FILES | SIGCHLD
    "31f6"  # xor esi, esi (the same stack: nobody uses it before we go on)
    "31d2"  # xor edx, edx
    "4531d2"  # xor r10d, r10d
    "4531c0"  # xor r8d, r8d
    "b838000000"  # mov eax, 56 (clone)
    "0f05"  # syscall
    "85c0"  # test eax, eax
    "7401"  # jz between
    "c3"  # ret (the pid of the child in between, or -errno)
    # between:
    "bf11840000"  # mov edi, CLONE_PARENT | CLONE_FILES | SIGCHLD
    "b838000000"  # mov eax, 56 (clone)
    "0f05"  # syscall
    "85c0"  # test eax, eax
    "740c"  # jz holder
    "418901"  # mov [r9], eax (the holder's pid, or -errno)
    # exit:
    "31ff"  # xor edi, edi
    "b8e7000000"  # mov eax, 231 (exit_group)
    "0f05"  # syscall
    # holder:
    "bf0f000000"  # mov edi, PR_SET_NAME
    "498d7108"  # lea rsi, [r9 + 8]
    "b89d000000"  # mov eax, 157 (prctl)
    "0f05"  # syscall
    "31ff"  # xor edi, edi
    "498b7118"  # mov rsi, [r9 + 24]
    "b80b000000"  # mov eax, 11 (munmap)
    "0f05"  # syscall
    "498b7920"  # mov rdi, [r9 + 32]
    "498b7128"  # mov rsi, [r9 + 40]
    "b80b000000"  # mov eax, 11 (munmap)
    "0f05"  # syscall
    # wait:
    "498d7930"  # lea rdi, [r9 + 48]
    "be01000000"  # mov esi, 1
    "31d2"  # xor edx, edx (without a limit; r10 is 0: no mask)
    "b80f010000"  # mov eax, 271 (ppoll)
    "0f05"  # syscall
    "83f801"  # cmp eax, 1
    "75e9"  # jne wait
    "41f6413601"  # test byte [r9 + 54], POLLIN
    "74ad"  # jz exit (there is no such descriptor: who knows whether the daemon is dead)
    "31db"  # xor ebx, ebx (fd)
    "31ed"  # xor ebp, ebp (how many in a row are not open)
    # next:
    "89df"  # mov edi, ebx
    "be08040000"  # mov esi, F_GETPIPE_SZ
    "b848000000"  # mov eax, 72 (fcntl)
    "0f05"  # syscall
    "85c0"  # test eax, eax
    "781b"  # js close
    "89df"  # mov edi, ebx
    "498d7148"  # lea rsi, [r9 + 72]
    "b88a000000"  # mov eax, 138 (fstatfs)
    "0f05"  # syscall
    "4181794845504950"  # cmp dword [r9 + 72], PIPEFS_MAGIC
    "7404"  # je close
    "31ed"  # xor ebp, ebp
    "eb12"  # jmp advance
    # close:
    "89df"  # mov edi, ebx
    "b803000000"  # mov eax, 3 (close)
    "0f05"  # syscall
    "ffc5"  # inc ebp
    "83f8f7"  # cmp eax, -EBADF
    "7402"  # je advance
    "31ed"  # xor ebp, ebp
    # advance:
    "ffc3"  # inc ebx
    "81fd00100000"  # cmp ebp, 4096
    "72b7"  # jb next
    "498d7938"  # lea rdi, [r9 + 56]
    "31f6"  # xor esi, esi
    "b823000000"  # mov eax, 35 (nanosleep)
    "0f05"  # syscall
    "e94effffff"  # jmp exit
)

_AARCH64_CODE = struct.pack(
    "<71I",
    # start(data):
    0xAA0003E9,  # mov x9, x0
    0xD288A220,  # mov x0, #(CLONE_VM | CLONE_VFORK | CLONE_FILES | SIGCHLD)
    0xD2800001,  # mov x1, #0 (the same stack: nobody uses it before we go on)
    0xD2800002,  # mov x2, #0
    0xD2800003,  # mov x3, #0
    0xD2800004,  # mov x4, #0
    0xD2801B88,  # mov x8, #220 (clone)
    0xD4000001,  # svc #0
    0xB4000040,  # cbz x0, between
    0xD65F03C0,  # ret (the pid of the child in between, or -errno)
    # between:
    0xD2908220,  # mov x0, #(CLONE_PARENT | CLONE_FILES | SIGCHLD)
    0xD2801B88,  # mov x8, #220 (clone)
    0xD4000001,  # svc #0
    0xB40000A0,  # cbz x0, holder
    0xB9000120,  # str w0, [x9] (the holder's pid, or -errno)
    # exit:
    0xD2800000,  # mov x0, #0
    0xD2800BC8,  # mov x8, #94 (exit_group)
    0xD4000001,  # svc #0
    # holder:
    0xD28001E0,  # mov x0, #PR_SET_NAME
    0x91002121,  # add x1, x9, #8
    0xD28014E8,  # mov x8, #167 (prctl)
    0xD4000001,  # svc #0
    0xD2800000,  # mov x0, #0
    0xF9400D21,  # ldr x1, [x9, #24]
    0xD2801AE8,  # mov x8, #215 (munmap)
    0xD4000001,  # svc #0
    0xA9420520,  # ldp x0, x1, [x9, #32]
    0xD2801AE8,  # mov x8, #215 (munmap)
    0xD4000001,  # svc #0
    # wait:
    0x9100C120,  # add x0, x9, #48
    0xD2800021,  # mov x1, #1
    0xD2800002,  # mov x2, #0 (without a limit; x3 is 0: no mask)
    0xD2800928,  # mov x8, #73 (ppoll)
    0xD4000001,  # svc #0
    0xF100041F,  # cmp x0, #1
    0x54FFFF41,  # b.ne wait
    0x79406D20,  # ldrh w0, [x9, #54]
    0x3607FD40,  # tbz w0, #0, exit (not POLLIN: there is no such descriptor, who knows whether the daemon is dead)
    0x52800013,  # mov w19, #0 (fd)
    0x52800014,  # mov w20, #0 (how many in a row are not open)
    # next:
    0x2A1303E0,  # mov w0, w19
    0xD2808101,  # mov x1, #F_GETPIPE_SZ
    0xD2800328,  # mov x8, #25 (fcntl)
    0xD4000001,  # svc #0
    0xB7F80180,  # tbnz x0, #63, close
    0x2A1303E0,  # mov w0, w19
    0x91012121,  # add x1, x9, #72
    0xD2800588,  # mov x8, #44 (fstatfs)
    0xD4000001,  # svc #0
    0xB9404920,  # ldr w0, [x9, #72]
    0x528A08A1,  # mov w1, #(PIPEFS_MAGIC & 0xffff)
    0x72AA0921,  # movk w1, #(PIPEFS_MAGIC >> 16), lsl #16
    0x6B01001F,  # cmp w0, w1
    0x54000060,  # b.eq close
    0x52800014,  # mov w20, #0
    0x14000008,  # b advance
    # close:
    0x2A1303E0,  # mov w0, w19
    0xD2800728,  # mov x8, #57 (close)
    0xD4000001,  # svc #0
    0x11000694,  # add w20, w20, #1
    0xB100241F,  # cmn x0, #EBADF
    0x54000040,  # b.eq advance
    0x52800014,  # mov w20, #0
    # advance:
    0x11000673,  # add w19, w19, #1
    0x7140069F,  # cmp w20, #4096
    0x54FFFCE3,  # b.lo next
    0x9100E120,  # add x0, x9, #56
    0xD2800001,  # mov x1, #0
    0xD2800CA8,  # mov x8, #101 (nanosleep)
    0xD4000001,  # svc #0
    0x17FFFFC9,  # b exit
)

_CODE = {"x86_64": _X86_64_CODE, "aarch64": _AARCH64_CODE}
_PURPOSE = "holding descriptors over a death"


def start_fd_holder(pidfd: int) -> int:
    """Start the child and return its pid.

    :param pidfd: a descriptor of this process, which stays open for its whole life.
    :raise Unimplemented: the code was not written for this machine.
    :raise OSError: the kernel refuses.
    """
    page = machine_code.load(_CODE, _PURPOSE, data_pages=1)
    try:
        data = page + mmap.PAGESIZE
        above = data + mmap.PAGESIZE
        fields = (0, NAME.encode(), page, above, _top() - above, pidfd, select.POLLIN, 0, HOLDING_S, 0)
        ctypes.memmove(data, _DATA.pack(*fields), _DATA.size)
        start = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p)(page)
        # For ever in the child: handlers of signals are memory that it gives back, and an end of ours in good order
        # is told it by us.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            between = start(data)
            pid = ctypes.c_int.from_address(data).value
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if between > 0:
            os.waitpid(between, 0)
        if (error := -min(between, pid)) > 0:
            raise OSError(error, f"clone for {_PURPOSE}: {os.strerror(error)}")
        return pid
    finally:
        machine_code.unload(page, data_pages=1)


def _top() -> int:
    """Return where the highest mapping ends, but for those of the kernel in every process (proc_pid_maps(5))."""
    with open("/proc/self/maps", encoding="ascii", errors="replace") as file:
        ends = (int(line.split(maxsplit=1)[0].split("-")[1], 16) for line in file)
        return max(end for end in ends if end < 1 << 63)
