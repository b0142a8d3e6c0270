"""Seeding the kernel's random number generator (random(4))."""

from __future__ import annotations

import fcntl
import os
import struct

_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
_HEADER = struct.Struct("=ii")


def add_entropy(seed: bytes) -> None:
    """Mix a seed in, credit all its bits, and let the generator use it from now on. Raises OSError."""
    fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _RNDADDENTROPY, _HEADER.pack(len(seed) * 8, len(seed)) + seed)
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    finally:
        os.close(fd)
