"""Names in a descriptor store: a letter for the kind and a serial number in base 36, at most 8 characters."""

from __future__ import annotations

EXIT_LOG_NAME = "exits"
"""No group: the log of the exits that only a supervisor could see (`common.process.exit_log`)."""

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def name_of(kind: str, serial: int) -> str:
    """Return the name of the group of this kind (one letter) with this serial number."""
    digits = ""
    while serial:
        serial, digit = divmod(serial, 36)
        digits = _DIGITS[digit] + digits
    return kind + (digits or "0")


def serial_of(name: str) -> int:
    """Return the serial number in a name.

    :raise ValueError: it has none.
    """
    return int(name[1:], 36)
