"""Reads transitions out of a docstring's drawing: `STATE ─TRIGGER▶ STATE`, with branches that hang below."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from typing import TypeVar

StateT = TypeVar("StateT", bound=enum.Enum)
TriggerT = TypeVar("TriggerT", bound=enum.Enum)

_ARROW = re.compile(r"─+\s*([A-Z_]+)\s*─*▶\s*(\w+|\(forgotten\))")
_WORD = re.compile(r"[A-Z_]{2,}")


def drawn_transitions(
    text: str | None, states: type[StateT], triggers: type[TriggerT]
) -> set[tuple[StateT, TriggerT, StateT]]:
    """Return the (state, trigger, state) that a drawing shows.

    An arrow starts at the state written before it; one that begins with a corner starts at the state above it
    in the same column, found by climbing the bars. Arrows to (forgotten) are left out.
    """
    lines = (text or "").splitlines()
    found = set()
    for row, line in enumerate(lines):
        for arrow in _ARROW.finditer(line):
            trigger, target = arrow[1], arrow[2]
            if target not in states.__members__ or trigger not in triggers.__members__:
                continue
            source = _source(lines, row, arrow.start(), states.__members__)
            if source is not None:
                found.add((states[source], triggers[trigger], states[target]))
    return found


def _source(lines: list[str], row: int, column: int, names: Iterable[str]) -> str | None:
    before = lines[row][:column]
    corner = before.rstrip("─")
    if corner.endswith("└"):
        place = len(corner) - 1
        for above in reversed(lines[:row]):
            if place < len(above) and above[place] not in "│├└ ":
                return _word_at(above, place, names)
        return None
    words = [word for word in _WORD.findall(before) if word in names]
    return words[-1] if words else None


def _word_at(line: str, place: int, names: Iterable[str]) -> str | None:
    for word in _WORD.finditer(line):
        if word.start() <= place < word.end() and word[0] in names:
            return word[0]
    return None
