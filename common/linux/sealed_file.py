"""Files in memory that nobody can change any more: for what is checked or kept by one and used by another.

Source: memfd_create(2), fcntl(2) "File Sealing".
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable, Iterator

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL

# Kernels before 6.3 do not know the flag and make every such file executable; since then vm.memfd_noexec decides about
# those without it.
_MFD_EXEC = 0x10


def executable_file(name: str, flags: int = 0) -> int:
    """Return a descriptor of a new file of which the kernel does not forbid that it be executed. Raises OSError."""
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | _MFD_EXEC | flags)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(name, os.MFD_CLOEXEC | flags)


@contextlib.contextmanager
def sealed_file(content: Iterable[bytes]) -> Iterator[int]:
    """Give a descriptor of a file with this content, which is closed in the end. Raises OSError."""
    fd = os.memfd_create("sealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        _seal(fd, content)
        yield fd
    finally:
        os.close(fd)


def sealed_program(path: str) -> int:
    """Return a descriptor, for reading, of a copy of a program that can be executed; it is the caller's.

    :raise OSError: there is no such file, or the node forbids to execute what is in memory.
    """
    with open(path, "rb") as file:
        content = file.read()
    fd = executable_file(os.path.basename(path), os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(fd, 0o555)
        _seal(fd, [content])
        # What is open for writing by anybody cannot be executed.
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)


def _seal(fd: int, content: Iterable[bytes]) -> None:
    for part in content:
        while part:
            part = part[os.write(fd, part) :]
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
