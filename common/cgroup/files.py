"""The small files of cgroupfs; a file that is not there is None, not an error."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

Read = Callable[[str], str | None]
"""Returns the text of one file of a cgroup, or None."""

# ENODEV is what the files of a cgroup answer once it is removed, ESRCH what those of a process do.
_ABSENT = frozenset({errno.ENOENT, errno.ENODEV, errno.ESRCH, errno.ENOTDIR, errno.EOPNOTSUPP})
_CHUNK_BYTES = 16384


def read_text(path: str) -> str | None:
    """Return the text of a file, or None where it does not exist or its cgroup is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # Until the end: one read returns a page of a list such as cgroup.procs, whatever it could take.
            chunks = []
            while chunk := os.read(fd, _CHUNK_BYTES):
                chunks.append(chunk)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise
    return b"".join(chunks).decode(errors="surrogateescape")


def write_text(path: str, text: str) -> None:
    """Write a file's one value. Raises OSError with the path, also where the kernel refuses the value."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)


def number(text: str | None, *, unlimited: int = 0) -> int:
    """Return a file's single number, 0 where there is none, `unlimited` for "max"."""
    if text is None:
        return 0
    text = text.strip()
    return unlimited if text == "max" else int(text or 0)


def keyed_numbers(text: str | None, fields: dict[str, str]) -> dict[str, int]:
    """Return the numbers of a "key value" file by `fields`, which renames its keys; equal names add up."""
    values: dict[str, int] = {}
    for line in (text or "").splitlines():
        key, _, value = line.partition(" ")
        field = fields.get(key)
        if field is not None:
            values[field] = values.get(field, 0) + int(value)
    return values
