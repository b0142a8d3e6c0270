"""What people and programs read: tables for the ones, JSON for the others. Nothing is coloured or wrapped."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Sequence
from typing import Any

_SHORT = 13


def print_json(value: Any) -> None:
    """Print a value as one JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_done(ids: Sequence[str], *, as_json: bool) -> None:
    """Print the ids of what something was done to."""
    if as_json:
        print_json([{"id": what} for what in ids])
    else:
        for what in ids:
            print(what)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns as wide as their widest cell, the last one as it comes; the header alone if there are no rows."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header) - 1)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, [*widths, 0], strict=True)).rstrip())


def short(identifier: str) -> str:
    """Return the beginning of an id, which is enough to name what it stands for nearly always."""
    return identifier[:_SHORT]


def printable(text: str) -> str:
    """Return a text that others have written without what could steer a terminal."""
    return "".join(c if c.isprintable() or c == "\t" else "?" for c in text)


def terminal_columns() -> int:
    """Return how wide text may be: as the terminal, within reason; 80 where there is none."""
    return min(shutil.get_terminal_size((80, 24)).columns, 120)


def age(since_ns: int) -> str:
    """Return how long ago an instant was, in the largest unit that gives two figures or the next smaller one."""
    if not since_ns:
        return "-"
    seconds = max(0, int(time.time() - since_ns / 1e9))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def size(count_bytes: int) -> str:
    """Return a number of bytes in three or four figures and a binary unit."""
    value = float(count_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1000:
            return f"{value:.0f}{unit}" if unit == "B" or value >= 100 else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}TiB"
