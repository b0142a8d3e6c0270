"""The life of a virtual machine, as a table."""

from __future__ import annotations

import enum


class MachineState(enum.Enum):
    """Where a machine is in its life."""

    NEW = "not started"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"


class Trigger(enum.Enum):
    """What moves it on."""

    START = "start"
    COME_UP = "come up as"
    USE = "use"
    PAUSE = "pause"
    RESUME = "resume"
    END = "end"


TRANSITIONS = {
    (MachineState.NEW, Trigger.START): MachineState.STARTING,
    (MachineState.NEW, Trigger.END): MachineState.ENDED,
    (MachineState.STARTING, Trigger.COME_UP): MachineState.RUNNING,
    (MachineState.STARTING, Trigger.END): MachineState.ENDED,
    (MachineState.RUNNING, Trigger.USE): MachineState.RUNNING,
    (MachineState.RUNNING, Trigger.PAUSE): MachineState.PAUSED,
    (MachineState.RUNNING, Trigger.RESUME): MachineState.RUNNING,
    (MachineState.RUNNING, Trigger.END): MachineState.ENDED,
    (MachineState.PAUSED, Trigger.PAUSE): MachineState.PAUSED,
    (MachineState.PAUSED, Trigger.RESUME): MachineState.RUNNING,
    (MachineState.PAUSED, Trigger.END): MachineState.ENDED,
    (MachineState.ENDED, Trigger.END): MachineState.ENDED,
}
"""`USE` is attaching and detaching: a guest whose processors stand still lets go of nothing."""
