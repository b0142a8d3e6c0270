"""A runtime's program, executed where it is read-only: it starts in half the time.

A container may reach the program of the runtime that enters it through /proc/PID/exe, and overwrite it on the host
(CVE-2019-5736). crun and runc therefore mount or copy themselves read-only and execute that, at each call: a second
start of theirs, which is a third of an exec. Where they are executed from a read-only mount they see that nothing is
left to do. One such mount, attached nowhere, serves all calls and guards the host as well.
"""

from __future__ import annotations

import os
from typing import Final

from common.linux.mounts import hold_mount
from common.log import get_logger

# Those that protect themselves in this way, and need no neighbours of their file.
_NAMES: Final = ("crun", "runc")

log = get_logger()


class ReadOnlyProgram:
    """One program by its path, and its mount as long as the file stays the same."""

    __slots__ = ("_executable", "_fd", "_identity", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._executable = path
        self._fd = -1
        self._identity: tuple[int, ...] = ()

    def executable(self) -> str:
        """Return the path to execute now: in the mount, or the program's own where that is no gain."""
        try:
            stat = os.stat(self.path)
        except OSError:
            return self.path
        # An upgrade replaces the file, and the mount would go on to show the old one.
        identity = (stat.st_dev, stat.st_ino, stat.st_ctime_ns)
        if identity != self._identity:
            self.close()
            self._identity = identity
            try:
                self._mount()
            except OSError as error:
                self._release()
                log.info("runtime.not_read_only", binary=self.path, error=str(error))
        return self._executable

    def _mount(self) -> None:
        if not os.path.basename(self.path).startswith(_NAMES) or not _is_elf(self.path):
            return
        if os.statvfs(self.path).f_flag & os.ST_RDONLY:
            return
        self._fd = hold_mount(self.path, read_only=True)
        # Not /proc/self: the child has closed its descriptors by then.
        executable = f"/proc/{os.getpid()}/fd/{self._fd}"
        os.stat(executable)
        self._executable = executable

    def close(self) -> None:
        """Give the mount up; what runs from it goes on."""
        self._release()
        self._identity = ()

    def _release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._executable = self.path


def _is_elf(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"
