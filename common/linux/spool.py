"""Bytes on their way from a pipe to a socket, with counts of both ends that outlive this process."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket

from common.linux import _libc

_PIPE_BYTES = 64 << 10


class Spool:
    """A file in memory that bytes pass through: its size tells how many have come, its offset how many have gone.

    The kernel changes both in the system call that moves the bytes (splice(2), sendfile(2)), so whoever holds the
    descriptor next goes on at exactly the right byte. Owns the descriptor.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int = -1) -> None:
        """:param fd: that of an earlier process; without one it is a new file. Raises OSError."""
        self.fd = fd if fd >= 0 else os.memfd_create("spool", os.MFD_CLOEXEC)

    @property
    def sent(self) -> int:
        """How many bytes have gone."""
        return os.lseek(self.fd, 0, os.SEEK_CUR)

    @property
    def waiting(self) -> int:
        """How many bytes have come and not gone."""
        return os.fstat(self.fd).st_size - self.sent

    def take_from(self, pipe: int) -> int:
        """Take what is in a pipe; return how many bytes that were, 0 at its end. Raises OSError, BlockingIOError."""
        size = os.fstat(self.fd).st_size
        return os.splice(pipe, self.fd, _PIPE_BYTES, offset_dst=size, flags=os.SPLICE_F_NONBLOCK)

    def send_to(self, sock: socket.socket, limit_bytes: int) -> None:
        """Send what waits, in pieces of at most `limit_bytes`.

        :raise BlockingIOError: the socket takes no more now.
        :raise OSError: it takes nothing any more.
        """
        try:
            while waiting := self.waiting:
                os.sendfile(sock.fileno(), self.fd, None, min(waiting, limit_bytes))
        finally:
            self._free()

    def close(self) -> None:
        """Close it. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _free(self) -> None:
        # Whole pages alone: sockets may refer to a page of which a part is still unread there.
        with contextlib.suppress(OSError):
            _libc.punch_hole(self.fd, self.sent & -mmap.PAGESIZE)
