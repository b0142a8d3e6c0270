"""What is on disk about a machine, so that a new daemon can take it up or clean up after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

RECORD_FILE = "machine.json"


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """One machine. Written before anything of it is made, before its processes run, and when it has been started.

    `vsock` is its address. `processes` is pid and start time (clock ticks since boot) by role, together an identity.
    `devices` is, by id, what the driver needs to detach a late device again. `reason`, `message` and `exited_at_ns`
    are those of its end (`GuestExit`), once somebody has seen it.
    """

    VERSION: ClassVar[int] = 1

    vsock: str
    started: bool = False
    processes: dict[str, list[int]] = field(default_factory=dict)
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    slots: int = 0
    reason: str = ""
    message: str = ""
    exited_at_ns: int = 0
