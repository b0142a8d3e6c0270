"""How far a connection was read, whichever process has read it.

The kernel counts what is read from a unix socket, in the very system call that takes it away: SO_PEEK_OFF (socket(7))
is where the next MSG_PEEK would begin, and each byte that is consumed before that counts it down. Nobody peeks here.
"""

from __future__ import annotations

import socket
from typing import Final

_SO_PEEK_OFF: Final = 42  # asm-generic/socket.h; Python has no name for it

MODULUS: Final = 1 << 29
"""Counts are modulo this, far more than what can be on its way between two readings."""


class ReadCount:
    """The bytes that were read from one socket since it was connected, modulo `MODULUS`."""

    __slots__ = ("_own", "_sock")

    def __init__(self, sock: socket.socket, *, recovered: bool = False) -> None:
        """Count from now on or, if the socket is `recovered`, go on where an earlier process has stopped."""
        self._sock = sock
        self._own: int | None = None
        if sock.family != socket.AF_UNIX:
            self._own = None if recovered else 0
        elif not recovered:
            self._arm(2 * MODULUS)

    @property
    def value(self) -> int | None:
        """How many; None where the kernel does not count and an earlier process has read, too."""
        if self._sock.family != socket.AF_UNIX:
            return self._own
        return -self._armed % MODULUS

    def add(self, size_bytes: int) -> None:
        """So many have just been read: at most half of `MODULUS`."""
        if self._own is not None:
            self._own = (self._own + size_bytes) % MODULUS
        elif self._sock.family == socket.AF_UNIX and (armed := self._armed) <= MODULUS:
            self._arm(armed + MODULUS)

    @property
    def _armed(self) -> int:
        return self._sock.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)

    def _arm(self, value: int) -> None:
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, value)
