"""The first program of a guest whose kernel has modules: it loads them, mounts the root and becomes the agent.

An ELF file that consists of a loop of a hundred bytes and the table of system calls that it makes one after the
other. A shell script would need a shell and a process per command, a C program a compiler: this needs neither, in
the guest or to be built. x86_64 alone.

Where a call fails that must not, its name is written to the console and the program ends, after which the kernel
panics; the exit code in its message holds the error number.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from common.linux import elf
from vmm.image import cpio

# System calls (arch/x86/entry/syscalls/syscall_64.tbl) and flags of mount(2).
_EXECVE, _CHDIR, _UNLINK, _CHROOT, _MOUNT, _INIT_MODULE = 59, 80, 87, 161, 165, 175
_MS_RDONLY, _MS_NOSUID, _MS_NOEXEC, _MS_MOVE = 1, 2, 8, 8192

# One step of the table: number, 1 if it may fail, address and length of its name, five arguments.
_STEP: Final = struct.Struct("<IIQQ5Q")

_CODE: Final = bytes.fromhex(
    "bb00000000"  # mov ebx, the table's address, put in below
    # next:
    "8b03"  # mov eax, [rbx]
    "488b7b18"  # mov rdi, [rbx+24]
    "488b7320"  # mov rsi, [rbx+32]
    "488b5328"  # mov rdx, [rbx+40]
    "4c8b5330"  # mov r10, [rbx+48]
    "4c8b4338"  # mov r8, [rbx+56]
    "83f83b"  # cmp eax, 59 (execve)
    "750e"  # jne call
    "488d742408"  # lea rsi, [rsp+8]: the arguments that the kernel gave to this program
    "488b0c24"  # mov rcx, [rsp]
    "488d54cc10"  # lea rdx, [rsp+rcx*8+16]: its environment
    # call:
    "0f05"  # syscall
    "85c0"  # test eax, eax
    "7906"  # jns done
    "837b0400"  # cmp dword [rbx+4], 0
    "7406"  # je failed
    # done:
    "4883c340"  # add rbx, 64
    "ebc5"  # jmp next
    # failed:
    "4189c4"  # mov r12d, eax
    "bf02000000"  # mov edi, 2
    "488b7308"  # mov rsi, [rbx+8]
    "488b5310"  # mov rdx, [rbx+16]
    "b801000000"  # mov eax, 1 (write)
    "0f05"  # syscall
    "4489e7"  # mov edi, r12d
    "f7df"  # neg edi
    "b83c000000"  # mov eax, 60 (exit)
    "0f05"  # syscall
)
_TABLE_ADDRESS_AT: Final = 1


@dataclass(frozen=True, slots=True)
class Module:
    """A kernel module: its name, its file's content, whether a machine without its device refuses it."""

    name: str
    content: bytes
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A system call: numbers stand for themselves, bytes for their address."""

    name: str
    number: int
    arguments: Sequence[int | bytes]
    may_fail: bool = False


def ramdisk(modules: Sequence[Module], *, root: str, file_system: str, init: str) -> bytes:
    """Return an initial RAM disk that loads modules in the given order and starts `init` on the root device."""
    return cpio.archive(
        [
            cpio.directory("dev"),
            cpio.character_device("dev/console", 5, 1),
            cpio.directory("root"),
            cpio.program("init", program(list(_calls(modules, root, file_system, init)))),
        ]
    )


def _calls(modules: Sequence[Module], root: str, file_system: str, init: str) -> Iterator[Call]:
    for module in modules:
        arguments = (module.content, len(module.content), b"")
        yield Call(f"load module {module.name}", _INIT_MODULE, arguments, module.optional)
    yield Call("mount /dev", _MOUNT, (b"devtmpfs", b"/dev", b"devtmpfs", _MS_NOSUID | _MS_NOEXEC, b""))
    yield Call(f"mount {root}", _MOUNT, (root.encode(), b"/root", file_system.encode(), _MS_RDONLY, b""))
    yield Call("move /dev", _MOUNT, (b"/dev", b"/root/dev", b"", _MS_MOVE, b""))
    # What is left of the RAM disk stays in memory.
    yield Call("remove /init", _UNLINK, (b"/init",))
    yield Call("enter the root", _CHDIR, (b"/root",))
    yield Call("move the root", _MOUNT, (b".", b"/", b"", _MS_MOVE, b""))
    yield Call("change the root", _CHROOT, (b".",))
    yield Call(f"start {init}", _EXECVE, (init.encode(),))


def program(calls: Sequence[Call]) -> bytes:
    """Return an executable that makes system calls one after the other, the last of which should be execve.

    That gets, after the path, the arguments and the environment that the executable was started with.
    """
    table_at = len(_CODE)
    constants_at = elf.START + table_at + len(calls) * _STEP.size
    table, constants = bytearray(), bytearray()

    def address(constant: bytes) -> int:
        nonlocal constants
        at = constants_at + len(constants)
        constants += constant + b"\0"
        return at

    for call in calls:
        name = f"loader: cannot {call.name}\n".encode()
        arguments = [value if isinstance(value, int) else address(value) for value in call.arguments]
        arguments += [0] * (5 - len(arguments))
        table += _STEP.pack(call.number, call.may_fail, address(name), len(name), *arguments)
    code = bytearray(_CODE)
    struct.pack_into("<I", code, _TABLE_ADDRESS_AT, elf.START + table_at)
    return elf.executable(elf.X86_64, bytes(code + table + constants))
