"""Every pair of state and trigger of a sandbox, and the picture of them."""

from __future__ import annotations

import itertools

import pytest

from common.errors import FailedPrecondition
from common.states import advance
from sandboxers import states
from sandboxers.states import SANDBOX_TRANSITIONS, SandboxState, SandboxTrigger
from tests.unit.common.task.drawings import drawn_transitions

S, T = SandboxState, SandboxTrigger

EXPECTED = {
    (S.CREATED, T.START): S.STARTING,
    (S.CREATED, T.STOP): S.STOPPING,
    (S.STARTING, T.STARTED): S.READY,
    (S.STARTING, T.FAIL): S.FAILED,
    (S.READY, T.STOP): S.STOPPING,
    (S.READY, T.EXIT): S.STOPPED,
    (S.STOPPING, T.EXIT): S.STOPPED,
    (S.STOPPING, T.FAIL): S.STOP_FAILED,
    (S.STOP_FAILED, T.STOP): S.STOPPING,
    (S.STOPPED, T.REMOVE): S.REMOVING,
    (S.FAILED, T.REMOVE): S.REMOVING,
    (S.REMOVING, T.FAIL): S.REMOVAL_FAILED,
    (S.REMOVAL_FAILED, T.REMOVE): S.REMOVING,
}


@pytest.mark.parametrize(("state", "trigger"), list(itertools.product(SandboxState, SandboxTrigger)))
def test_every_pair_leads_where_it_should_or_is_refused(state: SandboxState, trigger: SandboxTrigger) -> None:
    if (state, trigger) in EXPECTED:
        assert advance(SANDBOX_TRANSITIONS, state, trigger, "sandbox x") is EXPECTED[state, trigger]
    else:
        with pytest.raises(FailedPrecondition, match=f"sandbox x: it is {state.value}"):
            advance(SANDBOX_TRANSITIONS, state, trigger, "sandbox x")


def test_every_state_can_be_reached_and_left() -> None:
    assert {S.CREATED, *SANDBOX_TRANSITIONS.values()} == set(S)
    assert {state for state, _ in SANDBOX_TRANSITIONS} == set(S)


def test_the_picture_shows_each_transition_and_no_other() -> None:
    drawn = drawn_transitions(states.__doc__, S, T)
    assert drawn == {(a, t, b) for (a, t), b in SANDBOX_TRANSITIONS.items()}


def test_the_values_stand_in_records_and_so_never_change() -> None:
    assert {state.name: state.value for state in S} == {
        "CREATED": "created",
        "STARTING": "being started",
        "READY": "running",
        "STOPPING": "being stopped",
        "STOP_FAILED": "not completely stopped",
        "STOPPED": "stopped",
        "FAILED": "failed to start",
        "REMOVING": "being removed",
        "REMOVAL_FAILED": "not completely removed",
    }
