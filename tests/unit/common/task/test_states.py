"""Every pair of state and trigger of containers and processes, and the pictures of them."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Mapping
from typing import Any

import pytest

from common.errors import FailedPrecondition
from common.states import advance
from common.task import states
from common.task.states import (
    CONTAINER_TRANSITIONS,
    PROCESS_TRANSITIONS,
    ContainerState,
    ContainerTrigger,
    ProcessState,
    ProcessTrigger,
)
from tests.unit.common.task.drawings import drawn_transitions

C, CT, P, PT = ContainerState, ContainerTrigger, ProcessState, ProcessTrigger

CONTAINERS = {
    (C.CREATING, CT.READY): C.READY,
    (C.READY, CT.DELETE): C.DELETING,
    (C.DELETING, CT.FAIL): C.READY,
}
PROCESSES = {
    (P.CREATED, PT.START): P.STARTING,
    (P.CREATED, PT.EXIT): P.STOPPED,
    (P.STARTING, PT.STARTED): P.RUNNING,
    (P.STARTING, PT.FAIL): P.CREATED,
    (P.STARTING, PT.EXIT): P.STOPPED,
    (P.RUNNING, PT.PAUSE): P.PAUSED,
    (P.RUNNING, PT.EXIT): P.STOPPED,
    (P.PAUSED, PT.RESUME): P.RUNNING,
    (P.PAUSED, PT.EXIT): P.STOPPED,
}
PAIRS = [
    *((CONTAINER_TRANSITIONS, CONTAINERS, *pair) for pair in itertools.product(C, CT)),
    *((PROCESS_TRANSITIONS, PROCESSES, *pair) for pair in itertools.product(P, PT)),
]


@pytest.mark.parametrize(("table", "expected", "state", "trigger"), PAIRS)
def test_every_pair_leads_where_it_should_or_is_refused(
    table: Mapping[Any, Any], expected: Mapping[Any, Any], state: enum.Enum, trigger: enum.Enum
) -> None:
    if (state, trigger) in expected:
        assert advance(table, state, trigger, "it") is expected[state, trigger]
    else:
        with pytest.raises(FailedPrecondition, match=f"cannot {trigger.value} it: it is {state.value}"):
            advance(table, state, trigger, "it")


def test_every_state_of_a_process_can_be_reached_and_all_but_the_last_left() -> None:
    assert {P.CREATED, *PROCESS_TRANSITIONS.values()} == set(P)
    assert set(P) - {state for state, _ in PROCESS_TRANSITIONS} == {P.STOPPED}


def test_a_process_may_end_in_every_state_but_the_last() -> None:
    assert {s for s, t in PROCESS_TRANSITIONS if t is PT.EXIT} == set(P) - {P.STOPPED}


def test_the_pictures_show_no_other_transition_and_leave_out_only_what_they_say_in_words() -> None:
    assert states.__doc__ is not None
    containers, mark, processes = states.__doc__.partition("\nProcess ")
    processes = mark + processes
    container_table = {(a, t, b) for (a, t), b in CONTAINER_TRANSITIONS.items()}
    assert drawn_transitions(containers, C, CT) == container_table
    process_table = {(a, t, b) for (a, t), b in PROCESS_TRANSITIONS.items()}
    assert "(every state) ─EXIT▶ STOPPED" in processes
    assert "RUNNING ⇄ PAUSED" in processes
    in_words = {(a, t, b) for a, t, b in process_table if t in (PT.EXIT, PT.PAUSE, PT.RESUME)}
    drawn = drawn_transitions(processes.replace("(every state) ─EXIT▶ STOPPED", ""), P, PT)
    assert drawn == process_table - in_words
