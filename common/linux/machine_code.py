"""Machine code of our own in this process's memory, for what no interpreter can do: pages never writable and executable
at once.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Mapping

from common.errors import Unimplemented

_PROT_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_PROT_READ_EXEC = mmap.PROT_READ | mmap.PROT_EXEC
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def load(codes: Mapping[str, bytes], purpose: str, *, data_pages: int = 0) -> int:
    """Return the address of a page with the code for this machine; the pages behind it can be written, for its data.

    :param codes: at most a page of it, by machine (as in uname -m).
    :raise Unimplemented: there is none for this machine; names the `purpose`.
    :raise OSError: the kernel refuses, such as for MemoryDenyWriteExecute= (systemd.exec(5)).
    """
    machine = os.uname().machine
    if machine not in codes:
        raise Unimplemented(f"{purpose} is not supported on {machine}")
    libc = _libc()
    size = (1 + data_pages) * mmap.PAGESIZE
    address = libc.mmap(None, size, _PROT_READ_WRITE, _PRIVATE, -1, 0)
    if address == ctypes.c_void_p(-1).value:
        raise _error(f"mmap for {purpose}")
    ctypes.memmove(address, codes[machine], len(codes[machine]))
    if libc.mprotect(address, mmap.PAGESIZE, _PROT_READ_EXEC) != 0:
        error = _error(f"mprotect for {purpose}")
        libc.munmap(address, size)
        raise error
    return int(address)


def unload(address: int, *, data_pages: int = 0) -> None:
    """Take away what `load` has returned."""
    _libc().munmap(address, (1 + data_pages) * mmap.PAGESIZE)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")
