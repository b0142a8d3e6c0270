"""Numbers of users and groups, as operators, manifests and images write them."""

from __future__ import annotations

from typing import Final

HIGHEST_ID: Final = (1 << 31) - 1


def parse_id(text: str) -> int | None:
    """Return the number of a user or group, or None for what is none."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return None
    number = int(text)
    return number if number <= HIGHEST_ID else None
