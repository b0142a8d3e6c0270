"""Files in memory that nobody can change any more: for what is checked by one and used by another."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


@contextlib.contextmanager
def sealed_file(content: Iterable[bytes]) -> Iterator[int]:
    """Give a descriptor of a file with this content, which is closed in the end. Raises OSError.

    Source: memfd_create(2), fcntl(2) "File Sealing".
    """
    fd = os.memfd_create("sealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for part in content:
            while part:
                part = part[os.write(fd, part) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        yield fd
    finally:
        os.close(fd)
