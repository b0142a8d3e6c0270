"""State machines as data: an enum, a transition table, and one function that walks it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TypeVar

from common.errors import FailedPrecondition

StateT = TypeVar("StateT", bound=enum.Enum)
TriggerT = TypeVar("TriggerT", bound=enum.Enum)


def advance(
    table: Mapping[tuple[StateT, TriggerT], StateT], state: StateT, trigger: TriggerT, subject: str
) -> StateT:
    """Return the state that `trigger` leads to.

    :raise FailedPrecondition: the table has no such transition; the text names `subject`, trigger and state.
    """
    try:
        return table[state, trigger]
    except KeyError:
        raise FailedPrecondition(f"cannot {trigger.value} {subject}: it is {state.value}") from None
