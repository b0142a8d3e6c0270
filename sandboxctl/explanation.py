"""What a pod waits for, in words, from its record, the log of starts, and what its daemon says of it now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from common.failpoints import Failpoint as F
from common.operations import Action
from common.task.states import ProcessState
from sandboxctl.output import age, printable
from sandboxctl.pods import Pod
from sandboxers.states import SandboxState

Start = Mapping[str, Any]
"""An operation as `Operation.as_data` returns it."""

ACTIONS: Final[Mapping[str, str]] = {
    Action.SANDBOX_CREATE: "create the pod",
    Action.SANDBOX_START: "start the pod",
    Action.SANDBOX_STOP: "stop the pod",
    Action.SANDBOX_REMOVE: "remove the pod",
    Action.CONTAINER_CREATE: "create container",
    Action.CONTAINER_START: "start container",
    Action.CONTAINER_DELETE: "delete container",
    Action.EXEC_CREATE: "register exec",
    Action.EXEC_START: "start exec",
    Action.EXEC_DELETE: "delete exec",
}

# By what was done last: what is done then. Where an operation has done nothing yet, by what it is.
_WAITS: Final[Mapping[str, str]] = {
    Action.SANDBOX_CREATE: "the record of the pod to be written",
    Action.SANDBOX_START: "an earlier call for this pod to end",
    Action.SANDBOX_STOP: "an earlier call for this pod to end",
    Action.SANDBOX_REMOVE: "an earlier call for this pod to end",
    Action.CONTAINER_CREATE: "the container's bundle to be checked",
    Action.CONTAINER_DELETE: "the container to be looked at",
    Action.EXEC_START: "the streams to be opened: FIFOs that the engine has made",
    F.SANDBOX_STARTING: "the pod's namespaces to be made",
    F.SANDBOX_NAMESPACES_MADE: "the pod's files (hosts, resolv.conf, hostname) to be written",
    F.SANDBOX_FILES_WRITTEN: "the pod's /dev/shm to be mounted",
    F.SANDBOX_SHM_MADE: "the pod's task socket to listen",
    F.SANDBOX_CGROUP_MADE: "the directory that the guest sees of the host to be made",
    F.SANDBOX_SHARE_MADE: "taps in the pod's network namespace",
    F.SANDBOX_NETWORK_ATTACHED: "the hypervisor to be called",
    F.SANDBOX_NETWORK_PLUGGED: "the guest's agent to set up the network that came late: see `sandboxctl console`",
    F.SANDBOX_NETWORK_JOINED: "the container's root file system to be mounted",
    F.MACHINE_RECORDED: "the hypervisor's helpers (virtiofsd, the vsock daemon) to be ready",
    F.MACHINE_HELD: "the machine's devices to be backed",
    F.MACHINE_BACKED: "the hypervisor's process to be ready",
    F.MACHINE_RUNNING: "the hypervisor to answer on its control socket",
    F.MACHINE_STARTED: "the guest to boot and its agent to announce itself: see `sandboxctl console`",
    F.SANDBOX_MACHINE_STARTED: "the guest to boot and its agent to announce itself: see `sandboxctl console`",
    F.SANDBOX_GUEST_ANNOUNCED: "the guest's agent to set up network, files and clock: see `sandboxctl console`",
    F.SANDBOX_GUEST_CONFIGURED: "the pod's task socket to listen",
    F.SANDBOX_LISTENING: "the pod's descriptors to be handed to who keeps them",
    F.SANDBOX_DESCRIPTORS_KEPT: "the service manager, or the supervisor, to say that it keeps them",
    F.SANDBOX_STOPPING: "the containers to end, which were killed: a process in an uninterruptible wait cannot",
    F.SANDBOX_CONTAINERS_KILLED: "the pod's namespaces to be let go of",
    F.SANDBOX_REMOVING: "what the pod consists of to be taken away",
    F.SANDBOX_DESTROYED: "the pod's files to be removed",
    F.CONTAINER_RECORDED: "its root file system to be mounted: a remote or a busy disk may be slow",
    F.CONTAINER_ROOTFS_MOUNTED: "its specification to be written",
    F.CONTAINER_SPEC_WRITTEN: "its streams to be opened: FIFOs that the engine has made",
    F.CONTAINER_VOLUMES_MOUNTED: "its block volumes to be plugged in",
    F.CONTAINER_DISK_ATTACHED: "its specification to be written",
    F.CONTAINER_STREAMS_OPENED: "the runtime to make it: look for hooks, or a full or frozen cgroup",
    F.CONTAINER_MADE: "its root file system to be unmounted here",
    F.CONTAINER_SETTLED: "the service manager, or the supervisor, to say that it keeps its descriptors",
    F.CONTAINER_STARTING: "the runtime to start its first process",
    F.CONTAINER_RUNNING: "its record to be written",
    F.CONTAINER_DELETING: "what is left of its processes to end, which were killed, and the runtime to remove it",
    F.CONTAINER_UNMADE: "its root file system to be unmounted",
    F.MODULE_LAUNCHED: "the module's process to be moved to its cgroup",
    F.MODULE_RECORDED: "the module's process to be ready",
    F.EXEC_STREAMS_OPENED: "the runtime to start it in the container",
    F.EXEC_RUNNING: "its record to be written",
}
_WAITS_IN_MACHINES: Final[Mapping[str, str]] = {
    F.SANDBOX_STARTING: "the machine's cgroup to be made",
    F.SANDBOX_STOPPING: "the guest to write back what it holds, and the hypervisor to end",
    F.SANDBOX_CONTAINERS_KILLED: "the machine's cgroup and network to be taken away",
    F.CONTAINER_RECORDED: "its root file system and volumes to be mounted for the guest",
    F.CONTAINER_STREAMS_OPENED: "the guest's agent to make it: see `sandboxctl console`",
    F.CONTAINER_MADE: "its record to be written",
    F.CONTAINER_DELETING: "its volumes to be unplugged and unmounted",
    F.EXEC_STREAMS_OPENED: "the guest's agent to register it: see `sandboxctl console`",
}

_STATES: Final[Mapping[str, str]] = {
    SandboxState.CREATED.value: "It waits for its engine, which has created it and not asked for its start.",
    SandboxState.STARTING.value: "It was being started when its daemon ended: the next daemon removes it.",
    SandboxState.STOP_FAILED.value: "Not all of it has ended when it was stopped: the log of its daemon says what.",
    SandboxState.STOPPED.value: "It has ended, and waits for its engine to remove it.",
    SandboxState.FAILED.value: "It could not be started, and what is left of it could not be removed yet.",
    SandboxState.REMOVAL_FAILED.value: "It could not be removed: the log of its daemon says why; try `sandboxctl gc`.",
}


class Evidence(NamedTuple):
    """All that is known of a pod: its record, where there is one; the starts of it and its containers that are on
    record; what its daemon says of it, or why that is unknown; whether it lives in a virtual machine."""

    pod: Pod | None
    starts: Sequence[Start]
    live: Mapping[str, Any] | None
    problem: str
    in_machine: bool


def explain(evidence: Evidence) -> Iterator[str]:
    """Yield sentences on what the pod waits for, or why it is no more; at least one."""
    pod, live = evidence.pod, evidence.live
    if pod is None:
        yield _end_of(evidence)
        return
    if pod.problem:
        yield f"Its record cannot be understood, and it is left as it is: {pod.problem}."
        return
    if live is None:
        yield evidence.problem
        return
    operations = live.get("operations", ())
    for each in operations:
        yield _in_progress(each, evidence.in_machine)
    if any(not each["action"].startswith("exec.") for each in operations):
        return
    state = live["state"]
    if state != SandboxState.READY.value:
        yield _STATES.get(state, f"It is {state}.")
        return
    yield from _of_containers(live.get("containers") or {}, pod.created_at_ns, evidence.in_machine)


def waits_for(operation: Start, in_machine: bool) -> str:
    """Return what an operation that has not ended waits for."""
    last = operation["steps"][-1][0] if operation["steps"] else operation["action"]
    return (_WAITS_IN_MACHINES.get(last, "") if in_machine else "") or _WAITS.get(
        last, f"what comes after {last}"
    )


def title_of(operation: Start) -> str:
    """Return what an operation does, on what."""
    words = ACTIONS.get(operation["action"], operation["action"])
    what = operation.get("exec_id") or operation.get("container_id") or ""
    return printable(f"{words} {what[:13]}".rstrip())


def _in_progress(operation: Start, in_machine: bool) -> str:
    return (
        f"Its engine has asked to {title_of(operation)}, {operation['age_us'] / 1e6:.1f} s ago."
        f" That waits for {waits_for(operation, in_machine)}."
    )


def _end_of(evidence: Evidence) -> str:
    failed = next((start for start in reversed(evidence.starts) if start["error"]), None)
    if failed is None or failed["action"] not in (Action.SANDBOX_CREATE, Action.SANDBOX_START):
        return "It was removed."
    done = [step for step in failed["steps"] if not step[0].startswith(("sandbox.remov", "sandbox.destroy"))]
    waited_for = waits_for({**failed, "steps": done}, evidence.in_machine)
    return (
        f"Its start has failed after {failed['age_us'] / 1e6:.1f} s, in which it had come to wait for {waited_for}:"
        f" {printable(failed['error'])}. Nothing of it is left; its engine makes another one."
    )


def _of_containers(
    containers: Mapping[str, Mapping[str, Any]], created_at_ns: int, in_machine: bool
) -> Iterator[str]:
    if not containers:
        yield (
            f"It stands since {age(created_at_ns)}, and its engine has asked for no container: it may be pulling an"
            " image; its log and `kubectl describe pod` tell."
        )
        return
    waiting = False
    for container_id, container in containers.items():
        name, state = container_id[:13], container["state"]
        if state == ProcessState.CREATED.value:
            # The start of one in a guest is handed on without looking at it.
            or_guest = ", or for its guest to do so: see `sandboxctl console`" if in_machine else ""
            yield f"Container {name} is made, and waits for its engine to start it{or_guest}."
        elif state == ProcessState.STARTING.value:
            yield f"Container {name} is being started."
        elif state == ProcessState.PAUSED.value:
            yield f"Container {name} is paused, until its engine resumes it."
        elif state == ProcessState.STOPPED.value:
            yield f"Container {name} has ended with exit code {container.get('exit_code')}."
        else:
            continue
        waiting = True
    if not waiting:
        yield "It waits for nothing: all its containers run."
