"""Taking up the containers of a VM pod that an earlier daemon has left.

All records are read before anything is changed: one that cannot be understood leaves the whole pod as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.process.exits import ExitStatus
from common.task import recovery
from common.task.stdio import StdioSpec
from sandboxers.vm.containers import ContainerRecord, ExecRecord, GuestContainer, GuestProcess
from sandboxers.vm.guest_pod import GuestPod

LeftContainer = recovery.LeftContainer[ContainerRecord, ExecRecord]


def read_containers(directory: str) -> list[LeftContainer]:
    """Return what is on record below the directory of a pod's containers; raises like its namesake of the host."""
    return recovery.read_containers(directory, ContainerRecord, ExecRecord)


def adopt_containers(tasks: GuestPod, found: Sequence[LeftContainer]) -> None:
    """Take up these containers, and their streams."""
    for record, _, execs in found:
        container = GuestContainer(
            record.container_id, record.bundle, _process(record.container_id, "", record)
        )
        container.made, container.recovered = record.made, True
        if execs:
            container.execs = {each.exec_id: _process(container.id, each.exec_id, each) for each in execs}
        tasks.adopt(container)


def _process(container_id: str, exec_id: str, record: ContainerRecord | ExecRecord) -> GuestProcess:
    stdio = StdioSpec(record.terminal, record.stdin, record.stdout, record.stderr)
    process = GuestProcess(container_id, exec_id, record.pid, stdio)
    process.record = record
    if record.exit_code >= 0:
        process.end.set(ExitStatus(record.exit_code, record.exited_at_ns))
    return process
