"""Initial RAM disks: cpio archives in the "newc" format, the same bytes for the same content.

Source: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"
_ALIGNMENT: Final = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the archive: its path without a leading slash, its mode with the type, its content or device."""

    path: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str) -> Entry:
    """A directory that everybody may enter."""
    return Entry(path, stat.S_IFDIR | 0o755)


def program(path: str, content: bytes) -> Entry:
    """An executable file."""
    return Entry(path, stat.S_IFREG | 0o755, content)


def character_device(path: str, major: int, minor: int) -> Entry:
    """A device node of root's."""
    return Entry(path, stat.S_IFCHR | 0o600, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """Return the archive: in the order given, owned by root, of the time 0."""
    parts = [_entry(number, entry) for number, entry in enumerate(entries, start=1)]
    parts.append(_entry(0, Entry(_TRAILER, 0)))
    return b"".join(parts)


def _entry(inode: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, major, minor, len(name), 0)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields) + name
    return _padded(header) + _padded(entry.content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGNMENT)
