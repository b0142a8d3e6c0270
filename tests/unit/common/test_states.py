"""One function walks every transition table."""

from __future__ import annotations

import enum

import pytest

from common.errors import FailedPrecondition
from common.states import advance


class Light(enum.Enum):
    RED = "red"
    GREEN = "green"


class Trigger(enum.Enum):
    GO = "switch on"


TABLE = {(Light.RED, Trigger.GO): Light.GREEN}


def test_a_transition_of_the_table_is_made() -> None:
    assert advance(TABLE, Light.RED, Trigger.GO, "the light") is Light.GREEN


def test_any_other_is_refused_naming_subject_trigger_and_state() -> None:
    with pytest.raises(FailedPrecondition, match=r"^cannot switch on the light: it is green$"):
        advance(TABLE, Light.GREEN, Trigger.GO, "the light")
