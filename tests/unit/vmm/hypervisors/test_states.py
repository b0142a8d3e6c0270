"""The life of a machine: every pair of state and trigger."""

from __future__ import annotations

import itertools

import pytest

from common.errors import FailedPrecondition
from common.states import advance
from vmm.hypervisors.states import TRANSITIONS, MachineState, Trigger

ALLOWED = {
    (MachineState.NEW, Trigger.START),
    (MachineState.STARTING, Trigger.COME_UP),
    (MachineState.RUNNING, Trigger.USE),
    *itertools.product((MachineState.RUNNING, MachineState.PAUSED), (Trigger.PAUSE, Trigger.RESUME)),
    *itertools.product(MachineState, [Trigger.END]),
}


@pytest.mark.parametrize(("state", "trigger"), list(itertools.product(MachineState, Trigger)), ids=str)
def test_every_pair(state: MachineState, trigger: Trigger) -> None:
    if (state, trigger) in ALLOWED:
        assert advance(TRANSITIONS, state, trigger, "the machine") in MachineState
    else:
        with pytest.raises(FailedPrecondition, match=f"the machine: it is {state.value}"):
            advance(TRANSITIONS, state, trigger, "the machine")


def test_an_end_is_final() -> None:
    after = {target for (state, _), target in TRANSITIONS.items() if state is MachineState.ENDED}
    assert after == {MachineState.ENDED}
