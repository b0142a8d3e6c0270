"""Files of text that somebody may be writing."""

from __future__ import annotations


def complete_lines(text: str) -> list[str]:
    """The lines of such a file: the last one only if it has its end."""
    return text[: text.rfind("\n") + 1].splitlines()
