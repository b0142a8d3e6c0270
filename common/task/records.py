"""What is on disk about a container, so that a new daemon can find and remove or go on with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from common.task.backend import ContainerRequest, PreparedContainer

RECORD_FILE = "container.json"


EXEC_RECORDS = "execs"


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """One container. Written before anything of it is made (pid 0), and again when it runs and when it has ended.

    `start_time` is the first process's in clock ticks since boot (proc(5)): with it, a pid is an identity.
    `exit_code` is -1 until the process has ended. `descriptors` names what a descriptor store keeps of the
    first process. `starting` without `started` is a start of which nobody knows whether it was done.
    """

    VERSION: ClassVar[int] = 2

    container_id: str
    bundle: str
    rootfs: str
    directory: str
    owner: list[int]
    cgroups_path: str
    private_pid_namespace: bool
    terminal: bool
    stdin: str
    stdout: str
    stderr: str
    mounted: bool = True
    pid: int = 0
    start_time: int = 0
    started: bool = False
    exit_code: int = -1
    exited_at_ns: int = 0
    descriptors: str = ""
    starting: bool = False
    paused: bool = False
    stdin_closed: bool = False
    oom_kills: int = 0


@dataclass(frozen=True, slots=True)
class ExecRecord:
    """One exec, in a file of its own below its container's directory. `command` is its process as JSON until it is
    started; the other fields are those of `ContainerRecord`."""

    VERSION: ClassVar[int] = 1

    exec_id: str
    command: str
    owner: list[int]
    terminal: bool
    stdin: str
    stdout: str
    stderr: str
    descriptors: str = ""
    pid: int = 0
    start_time: int = 0
    exit_code: int = -1
    exited_at_ns: int = 0
    stdin_closed: bool = False


def record_of(
    request: ContainerRequest, prepared: PreparedContainer, descriptors: str = ""
) -> ContainerRecord:
    """Return the record of a container of which nothing has been made yet."""
    return ContainerRecord(
        container_id=request.container_id,
        bundle=request.bundle,
        rootfs=prepared.rootfs,
        directory=prepared.directory,
        owner=list(prepared.owner),
        cgroups_path=prepared.cgroups_path,
        private_pid_namespace=prepared.private_pid_namespace,
        terminal=request.stdio.terminal,
        stdin=request.stdio.stdin,
        stdout=request.stdio.stdout,
        stderr=request.stdio.stderr,
        mounted=prepared.mounted,
        descriptors=request.descriptors,
    )


def exec_path(directory: str, exec_id: str) -> str:
    """Return where the record of an exec of the container with this directory is."""
    return f"{directory}/{EXEC_RECORDS}/{exec_id}.json"


def prepared_of(record: ContainerRecord) -> PreparedContainer:
    """Return what a preparer had left for the container of a record."""
    uid, gid = record.owner
    return PreparedContainer(
        record.directory,
        record.rootfs,
        (uid, gid),
        record.cgroups_path,
        record.private_pid_namespace,
        mounted=record.mounted,
    )
