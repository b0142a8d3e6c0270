"""Serial numbers of names, none of which two daemons of a boot give out.

Each daemon takes them from blocks of its own; a file says where the next block begins. So no name has to be looked for
in the records and journals of pods before the first new one is needed.
"""

from __future__ import annotations

import os

from common.log import get_logger

_BLOCK = 4096
_DIGITS = 15

log = get_logger()


class Serials:
    """A source of serial numbers."""

    __slots__ = ("_end", "_next", "_path")

    def __init__(self, path: str, above: int = 0) -> None:
        """:param path: the file, which is made if it is not there; empty: nobody comes after this process.
        :param above: a number that was given out, whatever the file says.
        """
        self._path = path
        self._next = self._end = above + 1

    def next(self) -> int:
        """Return a number that was not given out before."""
        if self._next == self._end:
            self._take_block()
        self._next += 1
        return self._next - 1

    def _take_block(self) -> None:
        if self._path:
            try:
                self._next = max(self._next, self._claim())
            except OSError as error:
                # A later daemon may give out our numbers, but pods must start all the same.
                log.error("serials.not_recorded", path=self._path, error=error)
        self._end = self._next + _BLOCK

    def _claim(self) -> int:
        """Write down that the block behind all that was claimed is ours, and return where it begins."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            text = os.pread(fd, _DIGITS, 0)
            start = max(self._next, int(text) if text.isdigit() else 0)
            # As long as it was: where there is room for the first block, there is room for all.
            os.pwrite(fd, b"%0*d" % (_DIGITS, start + _BLOCK), 0)
        finally:
            os.close(fd)
        return start
