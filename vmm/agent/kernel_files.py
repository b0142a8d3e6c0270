"""Small files in /proc and /sys, of which an absent one says nothing."""

from __future__ import annotations

from common.cgroup.files import read_text


def read(path: str) -> str:
    """Return the text of a file of the kernel's, without space around it; "" where it has none."""
    return (read_text(path) or "").strip()
