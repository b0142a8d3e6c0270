"""Taking up the containers of a VM pod that an earlier daemon has left.

All records are read before anything is changed: one that cannot be understood leaves the whole pod as it is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from typing import NamedTuple

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


class LeftContainer(NamedTuple):
    """The records of one container and of its execs."""

    record: ContainerRecord
    execs: list[ExecRecord]


def read_containers(directory: str) -> list[LeftContainer]:
    """Return what is on record below the directory of a pod's containers.

    :raise FailedPrecondition: a newer sandboxd wrote one of the records; nothing was changed.
    :raise UnreadableRecord: one of the records is damaged; nothing was changed.
    """
    found, unrecorded = [], []
    for name in _list(directory):
        place = f"{directory}/{name}"
        try:
            record, _ = read_record(f"{place}/{RECORD_FILE}", ContainerRecord)
        except FileNotFoundError:
            unrecorded.append(place)
            continue
        names = [file for file in _list(f"{place}/{EXECS}") if file.endswith(".json")]
        execs = [read_record(f"{place}/{EXECS}/{file}", ExecRecord)[0] for file in names]
        found.append(LeftContainer(record, execs))
    for place in unrecorded:
        # The record is the first that is made there and the last that goes.
        shutil.rmtree(place, ignore_errors=True)
    return found


def adopt_containers(tasks: GuestPod, found: Sequence[LeftContainer]) -> None:
    """Take up these containers, and their streams."""
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
