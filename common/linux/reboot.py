"""Ending the machine (reboot(2))."""

from __future__ import annotations

from typing import Final

from common.linux import _libc

RESTART: Final = 0x01234567


def reboot(command: int) -> None:
    """End the machine at once, without a sync. Raises OSError."""
    _libc.reboot(command)
