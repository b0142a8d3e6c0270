"""A runtime's program, executed from memory: it starts in half the time.

A container may reach the program of the runtime that enters it through /proc/PID/exe, and overwrite it on the host
(CVE-2019-5736). crun therefore executes a copy of itself that cannot be changed, at each call: it mounts, executes and
links itself a second time, which is a third of an exec. Where it is executed from a sealed file in memory it sees that
nothing is left to do. One such file serves all calls, and guards the host as well.
"""

from __future__ import annotations

import os
from typing import Final

from common.linux.sealed_file import sealed_program
from common.log import get_logger

# What is known to look for the seals, and to need no neighbours of its file. runc does so too, but its copy would take
# more memory than a hundred pods.
_NAME: Final = "crun"
_MAX_BYTES: Final = 4 << 20

# Exists where SELinux is on: its policy goes by the file's label, which the copy has not.
_SELINUX: Final = "/sys/fs/selinux/enforce"

log = get_logger()


class SealedBinary:
    """One program by its path, and its copy as long as the file stays the same."""

    __slots__ = ("_executable", "_fd", "_identity", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._executable = path
        self._fd = -1
        self._identity: tuple[int, ...] = ()

    def executable(self) -> str:
        """Return the path to execute now: the copy's, or the program's own where a copy would not do."""
        try:
            stat = os.stat(self.path)
        except OSError:
            return self.path
        # An upgrade replaces the file.
        identity = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if identity != self._identity:
            self.close()
            self._identity = identity
            if stat.st_size <= _MAX_BYTES:
                self._copy()
        return self._executable

    def _copy(self) -> None:
        if (
            not os.path.basename(self.path).startswith(_NAME)
            or not _is_elf(self.path)
            or os.path.exists(_SELINUX)
        ):
            return
        try:
            self._fd = sealed_program(self.path)
        except OSError as error:
            log.info("runtime.not_sealed", binary=self.path, error=str(error))
            return
        # Not /proc/self: the child has closed its descriptors by then.
        self._executable = f"/proc/{os.getpid()}/fd/{self._fd}"

    def close(self) -> None:
        """Give the copy up; what runs from it goes on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._executable, self._identity = self.path, ()


def _is_elf(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"
