"""Which late device is in which slot, and what takes it away again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from common.errors import AlreadyExists, NotFound, ResourceExhausted
from vmm.hypervisors.qemu.devices import Wiring


class Occupant(NamedTuple):
    """A late device in a slot.

    `remove` and `key` are the QMP command and arguments that remove its backend, `role` is the process that serves
    it; "" where there is none. It is `settled` unless it is just being attached or detached.
    """

    slot: int
    remove: str
    key: dict[str, str]
    role: str
    settled: bool = False


class Slots:
    """The slots of one machine, by device id."""

    __slots__ = ("_count", "occupants")

    def __init__(self, count: int, occupants: Mapping[str, Occupant] | None = None) -> None:
        self._count = count
        self.occupants: dict[str, Occupant] = dict(occupants or {})

    @property
    def count(self) -> int:
        """How many there are."""
        return self._count

    def occupy(self, device_id: str, wiring: Wiring) -> None:
        """Put a device into its slot; it is not settled yet."""
        backend = wiring.backend
        self.occupants[device_id] = Occupant(
            wiring.slot, backend.remove if backend else "", backend.key if backend else {}, wiring.role
        )

    def free(self, device_id: str) -> int:
        """Return a free slot for a new device. Raises AlreadyExists, ResourceExhausted."""
        if device_id in self.occupants:
            raise AlreadyExists(f"the machine has a device {device_id!r} already")
        taken = {occupant.slot for occupant in self.occupants.values()}
        slot = next((slot for slot in range(self._count) if slot not in taken), None)
        if slot is None:
            raise ResourceExhausted(
                f"no slot for device {device_id!r}: all {self._count} of the machine are taken"
            )
        return slot

    def occupant(self, device_id: str) -> Occupant:
        """Return a device. Raises NotFound."""
        try:
            return self.occupants[device_id]
        except KeyError:
            raise NotFound(f"the machine has no device {device_id!r}") from None

    def settle(self, device_id: str, settled: bool = True) -> None:
        """Note that a device is attached, or is about to be detached."""
        self.occupants[device_id] = self.occupants[device_id]._replace(settled=settled)

    def unsettled(self) -> dict[str, Occupant]:
        """Return those that were just being attached or detached."""
        return {device_id: o for device_id, o in self.occupants.items() if not o.settled}

    def unsettled_roles(self) -> set[str]:
        """Return the processes whose end is no end of the machine."""
        return {occupant.role for occupant in self.unsettled().values() if occupant.role}

    def as_record(self) -> dict[str, dict[str, Any]]:
        """Return what `from_record` takes."""
        return {device_id: occupant._asdict() for device_id, occupant in self.occupants.items()}

    @classmethod
    def from_record(cls, count: int, devices: Mapping[str, Mapping[str, Any]]) -> Slots:
        """Return the slots of a record."""
        return cls(count, {device_id: Occupant(**fields) for device_id, fields in devices.items()})
