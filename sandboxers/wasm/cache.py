"""What was compiled, by what it was made from: a directory of native code and filters that root alone may touch.

<key>                 a link to what was made from that: which module, by which engine, for which machine
<checksum>.bin        what was made, named by what it holds

An entry whose content does not have its checksum is not there: nobody runs what a disk has spoiled. The link changes
in one step, so readers need no lock; whoever finds nothing lets it be made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
from typing import Final

from common.errors import Internal

_SUFFIX: Final = ".bin"
_NEW: Final = ".new-"
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,200}")
_CHECKSUM = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 1 << 20
_serial = itertools.count()


def checksum_of(fd: int) -> str:
    """Return the SHA-256 of a file from its beginning, in hexadecimal."""
    digest, offset = hashlib.sha256(), 0
    # Not more than there is: pages that a read could fill but does not are paid for all the same.
    size = min(os.fstat(fd).st_size, _CHUNK_BYTES) or 1
    while chunk := os.pread(fd, size, offset):
        digest.update(chunk)
        offset += len(chunk)
    return digest.hexdigest()


class Cache:
    """A cache directory; any number of processes may use it."""

    __slots__ = ("_limit_bytes", "directory")

    def __init__(self, directory: str, limit_bytes: int = 0) -> None:
        """:param limit_bytes: how large it may become when something is added; 0 in a process that adds nothing."""
        self.directory = directory
        self._limit_bytes = limit_bytes

    def prepare(self) -> None:
        """Make the directory, and remove what was being added when somebody died.

        :raise Internal: others than root can reach it.
        """
        os.makedirs(self.directory, 0o700, exist_ok=True)
        status = os.stat(self.directory)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise Internal(f"{self.directory} holds native code and must be root's with mode 0700")
        for name in os.listdir(self.directory):
            if name.startswith(_NEW):
                self._unlink(name)

    def target(self, key: str) -> str:
        """Return what an entry leads to now, whether that is there and whole or not; empty if there is none."""
        try:
            return os.readlink(self._path(key))
        except OSError:
            return ""

    def find(self, key: str) -> str | None:
        """Return the path of an entry whose content is what it was; None if there is none."""
        link = self._path(key)
        try:
            target = os.readlink(link)
            path = f"{self.directory}/{target}"
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            if checksum_of(fd) != target.removesuffix(_SUFFIX):
                return None
        finally:
            os.close(fd)
        with contextlib.suppress(OSError):
            os.utime(link, follow_symlinks=False)
        return path

    def new_file(self) -> int:
        """Return a descriptor of an empty file in the directory, for what is going to be added."""
        path = f"{self.directory}/{_NEW}{os.getpid()}-{next(_serial)}"
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def add(self, key: str, fd: int, checksum: str) -> None:
        """Make a file of new_file() an entry, in place of an older one, and keep to the limit."""
        if not _CHECKSUM.fullmatch(checksum):
            raise Internal(f"{checksum[:80]!r} is not a checksum")
        written = os.readlink(f"/proc/self/fd/{fd}")
        os.rename(written, f"{self.directory}/{checksum}{_SUFFIX}")
        link = f"{written}-link"
        os.symlink(f"{checksum}{_SUFFIX}", link)
        os.rename(link, self._path(key))
        self._evict(keep=key)

    def discard(self, fd: int) -> None:
        """Remove a file of new_file() that will not be added."""
        self._unlink(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))

    def _evict(self, keep: str) -> None:
        links = self._links()
        sizes = {target: os.stat(f"{self.directory}/{target}").st_size for target in set(links.values())}
        total = sum(sizes.values())
        for name, target in list(links.items()):
            if total > self._limit_bytes and name != keep:
                total -= sizes.pop(target, 0)
                self._unlink(name)
                del links[name]
        for name in os.listdir(self.directory):
            if name.endswith(_SUFFIX) and name not in links.values():
                self._unlink(name)

    def _links(self) -> dict[str, str]:
        """Return the targets of all entries that have one, by key; what was used longest ago first."""
        with os.scandir(self.directory) as entries:
            found = sorted(
                (entry.stat(follow_symlinks=False).st_mtime_ns, entry.name)
                for entry in entries
                if entry.is_symlink() and entry.is_file()
            )
        return {name: os.readlink(f"{self.directory}/{name}") for _, name in found}

    def _path(self, key: str) -> str:
        if not _KEY.fullmatch(key):
            raise Internal(f"{key[:80]!r} cannot be the name of a cache entry")
        return f"{self.directory}/{key}"

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.directory}/{name}")
