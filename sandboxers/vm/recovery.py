"""Taking up the containers of a VM pod that an earlier daemon has left.

All records are read before anything is changed: one that cannot be understood leaves the whole pod as it is.
"""

from __future__ import annotations

import contextlib
import os
import shutil

from common.process.exits import ExitStatus
from common.records import read_record
from common.task.stdio import StdioSpec
from sandboxers.vm.containers import (
    EXECS,
    RECORD_FILE,
    ContainerRecord,
    ExecRecord,
    GuestContainer,
    GuestProcess,
)
from sandboxers.vm.guest_pod import GuestPod


def recover_containers(tasks: GuestPod) -> None:
    """Take up all containers that have a record, and their streams.

    :raise FailedPrecondition: a newer sandboxd wrote one of the records; nothing was changed.
    :raise UnreadableRecord: one of the records is damaged; nothing was changed.
    """
    found, unrecorded = [], []
    for name in _list(tasks.directory):
        directory = f"{tasks.directory}/{name}"
        try:
            record, _ = read_record(f"{directory}/{RECORD_FILE}", ContainerRecord)
        except FileNotFoundError:
            unrecorded.append(directory)
            continue
        names = [file for file in _list(f"{directory}/{EXECS}") if file.endswith(".json")]
        found.append((record, [read_record(f"{directory}/{EXECS}/{file}", ExecRecord)[0] for file in names]))
    for directory in unrecorded:
        # The record is the first that is made there and the last that goes.
        shutil.rmtree(directory, ignore_errors=True)
    for record, execs in found:
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


def _list(directory: str) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return sorted(os.listdir(directory))
    return []
