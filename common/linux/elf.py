"""The smallest ELF executable: one segment of code and constants, which is mapped as the file is (elf(5))."""

from __future__ import annotations

import struct

BASE = 0x400000
"""The address of the file's first byte."""

X86_64, AARCH64 = 62, 183
"""Machines (e_machine)."""

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_IDENT = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
_ALIGNMENT = 0x10000  # the largest page of the two architectures

START = BASE + _EHDR.size + 2 * _PHDR.size
"""The address of the first instruction."""


def executable(machine: int, code: bytes) -> bytes:
    """Return the file whose process begins with the first byte of `code`, mapped at START, readable and executable."""
    offset = START - BASE
    size = offset + len(code)
    header = _EHDR.pack(_IDENT, 2, machine, 1, START, _EHDR.size, 0, 0, _EHDR.size, _PHDR.size, 2, 0, 0, 0)
    load = _PHDR.pack(1, 5, 0, BASE, BASE, size, size, _ALIGNMENT)
    stack_without_execution = _PHDR.pack(0x6474E551, 6, 0, 0, 0, 0, 0, 16)
    return header + load + stack_without_execution + code
