"""Failpoints: named places, one behind each step that changes the world, at which a test can break the daemon.

Off unless the environment names some, and then one failpoint costs a look into an empty dictionary:

    SANDBOXD_FAILPOINTS="container.created=kill exec.started=raise store.put=delay:0.2 container.started=kill@3"

`kill` is SIGKILL to this very process, `raise` an Internal error, `delay:S` blocks the process for S seconds;
`@N` lets the first N - 1 passes go by. The table below is the list: nothing passes a failpoint it does not name.

What the places are good for beside: each that an operation passes is a step of its timeline (`common/operations.py`).
"""

from __future__ import annotations

import enum
import os
import signal
import time
from collections.abc import Mapping
from typing import NamedTuple

from common.errors import Internal, InvalidArgument
from common.operations import note_step

VARIABLE = "SANDBOXD_FAILPOINTS"


class Failpoint(enum.StrEnum):
    """Every failpoint, by the step that has just been done when it is passed."""

    SANDBOX_RECORDED = "sandbox.recorded"
    SANDBOX_STARTING = "sandbox.starting"
    SANDBOX_NAMESPACES_MADE = "sandbox.namespaces_made"
    SANDBOX_FILES_WRITTEN = "sandbox.files_written"
    SANDBOX_SHM_MADE = "sandbox.shm_made"
    SANDBOX_CGROUP_MADE = "sandbox.cgroup_made"
    SANDBOX_SHARE_MADE = "sandbox.share_made"
    SANDBOX_NETWORK_ATTACHED = "sandbox.network_attached"
    SANDBOX_NETWORK_PLUGGED = "sandbox.network_plugged"
    SANDBOX_NETWORK_JOINED = "sandbox.network_joined"
    SANDBOX_MACHINE_STARTED = "sandbox.machine_started"
    SANDBOX_GUEST_ANNOUNCED = "sandbox.guest_announced"
    SANDBOX_GUEST_CONFIGURED = "sandbox.guest_configured"
    SANDBOX_LISTENING = "sandbox.listening"
    SANDBOX_DESCRIPTORS_KEPT = "sandbox.descriptors_kept"
    SANDBOX_STARTED = "sandbox.started"
    SANDBOX_STOPPING = "sandbox.stopping"
    SANDBOX_CONTAINERS_KILLED = "sandbox.containers_killed"
    SANDBOX_STOPPED = "sandbox.stopped"
    SANDBOX_REMOVING = "sandbox.removing"
    SANDBOX_DESTROYED = "sandbox.destroyed"
    SANDBOX_REMOVED = "sandbox.removed"
    CONTAINER_RECORDED = "container.recorded"
    CONTAINER_ROOTFS_MOUNTED = "container.rootfs_mounted"
    CONTAINER_VOLUMES_MOUNTED = "container.volumes_mounted"
    CONTAINER_DISK_ATTACHED = "container.disk_attached"
    CONTAINER_SPEC_WRITTEN = "container.spec_written"
    CONTAINER_STREAMS_OPENED = "container.streams_opened"
    CONTAINER_MADE = "container.made"
    CONTAINER_SETTLED = "container.settled"
    CONTAINER_CREATED = "container.created"
    CONTAINER_STARTING = "container.starting"
    CONTAINER_RUNNING = "container.running"
    CONTAINER_STARTED = "container.started"
    CONTAINER_SIGNALLED = "container.signalled"
    CONTAINER_EXITED = "container.exited"
    CONTAINER_EXIT_RECORDED = "container.exit_recorded"
    CONTAINER_DELETING = "container.deleting"
    CONTAINER_UNMADE = "container.unmade"
    CONTAINER_DELETED = "container.deleted"
    EXEC_RECORDED = "exec.recorded"
    EXEC_STREAMS_OPENED = "exec.streams_opened"
    EXEC_RUNNING = "exec.running"
    EXEC_STARTED = "exec.started"
    EXEC_EXITED = "exec.exited"
    EXEC_EXIT_RECORDED = "exec.exit_recorded"
    EXEC_DELETED = "exec.deleted"
    MACHINE_RECORDED = "machine.recorded"
    MACHINE_HELD = "machine.held"
    MACHINE_BACKED = "machine.backed"
    MACHINE_RUNNING = "machine.running"
    MACHINE_STARTED = "machine.started"
    MACHINE_STOPPING = "machine.stopping"
    MACHINE_STOPPED = "machine.stopped"
    DEVICE_RECORDED = "device.recorded"
    DEVICE_BACKED = "device.backed"
    DEVICE_ATTACHED = "device.attached"
    DEVICE_DETACHING = "device.detaching"
    DEVICE_DETACHED = "device.detached"
    MODULE_LAUNCHED = "module.launched"
    MODULE_RECORDED = "module.recorded"
    MODULE_READY = "module.ready"
    MODULE_RELEASED = "module.released"
    MODULE_COMPILED = "module.compiled"
    MODULE_CACHED = "module.cached"
    OUTPUT_OPENED = "output.opened"
    STDIN_CLOSED = "stdin.closed"
    TERMINAL_RECEIVED = "terminal.received"
    GUEST_ASKED = "guest.asked"
    CONNECTION_KEPT = "connection.kept"
    LINK_KEPT = "link.kept"
    REQUEST_ADMITTED = "request.admitted"
    REQUEST_CONSUMED = "request.consumed"
    REQUEST_ANSWERED = "request.answered"
    OUTCOME_RECORDED = "outcome.recorded"
    STORE_PUT = "store.put"
    STORE_REMOVED = "store.removed"
    RECOVERY_BEGUN = "recovery.begun"
    RECOVERY_CONTAINER_UNDONE = "recovery.container_undone"
    RECOVERY_SHM_ATTACHED = "recovery.shm_attached"
    RECOVERY_SHM_KEPT = "recovery.shm_kept"
    RECOVERY_POD_DONE = "recovery.pod_done"
    RECOVERY_DONE = "recovery.done"


# Behind what is done for many a step, and on no operation's own account.
_NO_STEPS = frozenset(
    {
        Failpoint.CONNECTION_KEPT,
        Failpoint.GUEST_ASKED,
        Failpoint.LINK_KEPT,
        Failpoint.OUTCOME_RECORDED,
        Failpoint.OUTPUT_OPENED,
        Failpoint.REQUEST_ADMITTED,
        Failpoint.REQUEST_ANSWERED,
        Failpoint.REQUEST_CONSUMED,
        Failpoint.STORE_PUT,
        Failpoint.STORE_REMOVED,
    }
)


class _Armed(NamedTuple):
    action: str
    delay_s: float
    after: int


def _parse(text: str) -> dict[Failpoint, _Armed]:
    armed = {}
    for word in text.split():
        name, _, action = word.partition("=")
        action, _, after = action.partition("@")
        action, _, delay = action.partition(":")
        try:
            if action not in ("kill", "raise", "delay"):
                raise ValueError(action)
            armed[Failpoint(name)] = _Armed(action, float(delay or 0), int(after or 1))
        except ValueError as error:
            raise InvalidArgument(f"{VARIABLE}: {word!r}: {error}") from None
    return armed


def arm(environment: Mapping[str, str] = os.environ) -> list[Failpoint]:
    """Take the armed failpoints from the environment and return them.

    :raise InvalidArgument: a failpoint or an action that does not exist.
    """
    _armed.clear()
    _passes.clear()
    _armed.update(_parse(environment.get(VARIABLE, "")))
    return list(_armed)


_armed: dict[Failpoint, _Armed] = {}
_passes: dict[Failpoint, int] = {}


def failpoint(point: Failpoint) -> None:
    """Pass a failpoint.

    :raise Internal: it is armed with `raise`.
    """
    if point not in _NO_STEPS:
        note_step(point)
    if _armed and point in _armed:
        _hit(point, _armed[point])


def _hit(point: Failpoint, armed: _Armed) -> None:
    _passes[point] = _passes.get(point, 0) + 1
    if _passes[point] < armed.after:
        return
    if armed.action == "kill":
        signal.raise_signal(signal.SIGKILL)
    elif armed.action == "delay":
        time.sleep(armed.delay_s)
    else:
        raise Internal(f"failpoint {point} is armed")
