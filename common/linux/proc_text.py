"""Fields of files in /proc, as they are escaped there (proc_pid_mountinfo(5): `\040` for a space)."""

from __future__ import annotations


def unescape(field: str) -> str:
    """Return what a field of /proc/<pid>/mountinfo stands for."""
    first, *rest = field.split("\\")
    return first + "".join(_character(part) + part[3:] if _is_escape(part) else f"\\{part}" for part in rest)


def _is_escape(part: str) -> bool:
    return len(part) >= 3 and not set(part[:3]) - set("01234567")


def _character(part: str) -> str:
    return chr(int(part[:3], 8))
