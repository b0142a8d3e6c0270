"""Slots: each device has one, and a record brings them back."""

from __future__ import annotations

import pytest

from common.errors import AlreadyExists, NotFound, ResourceExhausted
from vmm.hypervisors.qemu.slots import Occupant, Slots


def occupied(count: int, *names: str) -> Slots:
    slots = Slots(count)
    for name in names:
        slots.occupants[name] = Occupant(slots.free(name), "blockdev-del", {"node-name": name}, "")
    return slots


def test_devices_get_the_lowest_slots_that_are_free() -> None:
    slots = occupied(3, "a", "b", "c")
    del slots.occupants["b"]
    assert slots.free("d") == 1


def test_a_device_has_one_slot_and_a_full_machine_none() -> None:
    slots = occupied(2, "a", "b")
    with pytest.raises(AlreadyExists, match="'a'"):
        slots.free("a")
    with pytest.raises(ResourceExhausted, match="'c': all 2"):
        slots.free("c")
    with pytest.raises(NotFound, match="'c'"):
        slots.occupant("c")


def test_what_is_being_attached_or_detached_is_not_settled() -> None:
    slots = Slots(2)
    slots.occupants["s"] = Occupant(0, "chardev-remove", {"id": "s"}, "share-s")
    assert slots.unsettled_roles() == {"share-s"}
    slots.settle("s")
    assert slots.unsettled() == {}
    slots.settle("s", False)
    assert set(slots.unsettled()) == {"s"}


def test_a_record_brings_them_back() -> None:
    slots = occupied(3, "a", "b")
    slots.settle("a")
    again = Slots.from_record(slots.count, slots.as_record())
    assert again.occupants == slots.occupants
    assert again.free("c") == 2
