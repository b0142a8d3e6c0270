"""States of a sandbox, as a table.

    CREATED ─START▶ STARTING ─STARTED▶ READY ─EXIT▶ STOPPED
       │               └─FAIL▶ FAILED    └─STOP▶ STOPPING ─EXIT▶ STOPPED
       └─STOP▶ STOPPING                          └─FAIL▶ STOP_FAILED ─STOP▶ STOPPING
    STOPPED ─REMOVE▶ REMOVING ─FAIL▶ REMOVAL_FAILED ─REMOVE▶ REMOVING
    FAILED ─REMOVE▶ REMOVING

A sandbox that has been removed is forgotten.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType


class SandboxState(enum.Enum):
    """A sandbox between its Create and its Shutdown; the values stand in records."""

    CREATED = "created"
    STARTING = "being started"
    READY = "running"
    STOPPING = "being stopped"
    STOP_FAILED = "not completely stopped"
    STOPPED = "stopped"
    FAILED = "failed to start"
    REMOVING = "being removed"
    REMOVAL_FAILED = "not completely removed"


class SandboxTrigger(enum.Enum):
    """What changes a sandbox's state."""

    START = "start"
    STARTED = "finish starting"
    STOP = "stop"
    FAIL = "give up"
    EXIT = "end"
    REMOVE = "remove"


SANDBOX_TRANSITIONS: Mapping[tuple[SandboxState, SandboxTrigger], SandboxState] = MappingProxyType(
    {
        (SandboxState.CREATED, SandboxTrigger.START): SandboxState.STARTING,
        (SandboxState.CREATED, SandboxTrigger.STOP): SandboxState.STOPPING,
        (SandboxState.STARTING, SandboxTrigger.STARTED): SandboxState.READY,
        (SandboxState.STARTING, SandboxTrigger.FAIL): SandboxState.FAILED,
        (SandboxState.READY, SandboxTrigger.STOP): SandboxState.STOPPING,
        (SandboxState.READY, SandboxTrigger.EXIT): SandboxState.STOPPED,
        (SandboxState.STOPPING, SandboxTrigger.EXIT): SandboxState.STOPPED,
        (SandboxState.STOPPING, SandboxTrigger.FAIL): SandboxState.STOP_FAILED,
        (SandboxState.STOP_FAILED, SandboxTrigger.STOP): SandboxState.STOPPING,
        (SandboxState.STOPPED, SandboxTrigger.REMOVE): SandboxState.REMOVING,
        (SandboxState.FAILED, SandboxTrigger.REMOVE): SandboxState.REMOVING,
        (SandboxState.REMOVING, SandboxTrigger.FAIL): SandboxState.REMOVAL_FAILED,
        (SandboxState.REMOVAL_FAILED, SandboxTrigger.REMOVE): SandboxState.REMOVING,
    }
)
