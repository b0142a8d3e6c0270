"""States of containers and processes, as tables.

Container  CREATING ──READY──▶ READY ──DELETE──▶ DELETING ──FAIL──▶ READY
               └─FAIL─▶ (forgotten)                 └─DONE──▶ (forgotten)

Process    CREATED ─START▶ STARTING ─STARTED▶ RUNNING ⇄ PAUSED
                              └─FAIL▶ CREATED     (every state) ─EXIT▶ STOPPED
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType


class ContainerState(enum.Enum):
    """A container between its Create and its Delete."""

    CREATING = "being created"
    READY = "created"
    DELETING = "being deleted"


class ContainerTrigger(enum.Enum):
    """What changes a container's state."""

    READY = "finish creating"
    DELETE = "delete"
    FAIL = "give up deleting"


CONTAINER_TRANSITIONS: Mapping[tuple[ContainerState, ContainerTrigger], ContainerState] = MappingProxyType(
    {
        (ContainerState.CREATING, ContainerTrigger.READY): ContainerState.READY,
        (ContainerState.READY, ContainerTrigger.DELETE): ContainerState.DELETING,
        (ContainerState.DELETING, ContainerTrigger.FAIL): ContainerState.READY,
    }
)


class ProcessState(enum.Enum):
    """A container's first process, or one that Exec added."""

    CREATED = "created"
    STARTING = "being started"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class ProcessTrigger(enum.Enum):
    """What changes a process's state."""

    START = "start"
    STARTED = "finish starting"
    FAIL = "give up starting"
    PAUSE = "pause"
    RESUME = "resume"
    EXIT = "end"


PROCESS_TRANSITIONS: Mapping[tuple[ProcessState, ProcessTrigger], ProcessState] = MappingProxyType(
    {
        (ProcessState.CREATED, ProcessTrigger.START): ProcessState.STARTING,
        (ProcessState.CREATED, ProcessTrigger.EXIT): ProcessState.STOPPED,
        (ProcessState.STARTING, ProcessTrigger.STARTED): ProcessState.RUNNING,
        (ProcessState.STARTING, ProcessTrigger.FAIL): ProcessState.CREATED,
        (ProcessState.STARTING, ProcessTrigger.EXIT): ProcessState.STOPPED,
        (ProcessState.RUNNING, ProcessTrigger.PAUSE): ProcessState.PAUSED,
        (ProcessState.RUNNING, ProcessTrigger.EXIT): ProcessState.STOPPED,
        (ProcessState.PAUSED, ProcessTrigger.RESUME): ProcessState.RUNNING,
        (ProcessState.PAUSED, ProcessTrigger.EXIT): ProcessState.STOPPED,
    }
)

DELETABLE = frozenset({ProcessState.CREATED, ProcessState.STOPPED})
"""The states of a process of which nothing runs."""
