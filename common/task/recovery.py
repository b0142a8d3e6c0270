"""Taking up the containers of a pod that an earlier daemon has left: going on with those that exist, undoing what is
half made, and learning what has happened meanwhile.

Everything is read before anything is changed: a record that cannot be understood leaves the whole pod as it is.
"""

from __future__ import annotations

import os
import shutil
import time
from typing import Any, Generic, NamedTuple, TypeVar

from common.errors import NotFound, SandboxdError
from common.failpoints import Failpoint, failpoint
from common.linux.pidfd import is_same_process, start_time
from common.log import get_logger
from common.process.exits import UNKNOWN_EXIT_CODE, ExitStatus
from common.records import Record, read_record
from common.task.container import Container, Process
from common.task.pod import TaskPod
from common.task.records import EXEC_RECORDS, RECORD_FILE, ContainerRecord, ExecRecord, exec_path, prepared_of
from common.task.states import ContainerTrigger, ProcessTrigger
from common.task.stdio import Stdio, StdioSpec

log = get_logger()


RecordT = TypeVar("RecordT", bound=Record)
ExecT = TypeVar("ExecT", bound=Record)


class LeftContainer(NamedTuple, Generic[RecordT, ExecT]):
    """The records of one container and of its execs, and whether they are of this boot."""

    record: RecordT
    of_this_boot: bool
    execs: list[ExecT]


async def recover_containers(pod: TaskPod, tasks_directory: str) -> None:
    """Take up all containers that have a record below the directory.

    Raises as `read_containers` does.
    """
    pod.unmade.recover()
    for found in read_containers(tasks_directory, ContainerRecord, ExecRecord):
        await _recover(pod, found)


def read_containers(
    directory: str, record_type: type[RecordT], exec_type: type[ExecT]
) -> list[LeftContainer[RecordT, ExecT]]:
    """Return what is on record below the directory of a pod's containers.

    :raise FailedPrecondition: a newer sandboxd wrote one of the records; nothing was changed.
    :raise UnreadableRecord: one of the records is damaged; nothing was changed.
    """
    found, unrecorded = [], []
    for name in _list(directory):
        place = f"{directory}/{name}"
        try:
            record, of_this_boot = read_record(f"{place}/{RECORD_FILE}", record_type)
        except FileNotFoundError:
            unrecorded.append(place)
            continue
        files = [file for file in _list(f"{place}/{EXEC_RECORDS}") if file.endswith(".json")]
        execs = [read_record(f"{place}/{EXEC_RECORDS}/{file}", exec_type)[0] for file in files]
        found.append(LeftContainer(record, of_this_boot, execs))
    for place in unrecorded:
        # The record is the first that is made, and the last thing in a directory that is being removed may be
        # anything: what such a directory holds are files of ours.
        shutil.rmtree(place, ignore_errors=True)
    return found


def _list(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


async def _recover(pod: TaskPod, found: LeftContainer[ContainerRecord, ExecRecord]) -> None:
    record = found.record
    container = Container(
        record.container_id,
        record.bundle,
        StdioSpec(record.terminal, record.stdin, record.stdout, record.stderr),
    )
    container.prepared, container.record = prepared_of(record), record
    container.oom_kills = record.oom_kills
    container.advance(ContainerTrigger.READY)
    pod.containers[container.id] = container
    if not record.pid or not found.of_this_boot:
        try:
            await _roll_back(pod, container, record)
        except (SandboxdError, OSError) as error:
            # It is known by now: what is left of it goes with its Delete, or with the pod.
            log.error("container.not_rolled_back", container_id=container.id, error=error)
        return
    await _take_up(pod, container, container.init, record)
    for exec_record in found.execs:
        await _take_up_exec(pod, container, exec_record)


async def _roll_back(pod: TaskPod, container: Container, record: ContainerRecord) -> None:
    assert container.prepared is not None
    streams_kept = _discard_streams(pod, container.init, record.descriptors)
    container.init.finish(ExitStatus(UNKNOWN_EXIT_CODE, time.time_ns(), known=False))
    await pod.kill_unknown(container.id, container.prepared)
    await pod.delete_container(container)
    failpoint(Failpoint.RECOVERY_CONTAINER_UNDONE)
    log.info(
        "container.rolled_back",
        sandbox_id=pod.sandbox_id,
        container_id=container.id,
        streams_kept=streams_kept,
    )


async def _take_up(pod: TaskPod, container: Container, init: Process, record: ContainerRecord) -> None:
    assert container.prepared is not None
    init.pid, init.stdin_closed = record.pid, record.stdin_closed
    init.stdio, pidfd = Stdio.recover(
        init.stdio_spec, record.stdin_closed, pod.parts.store, record.descriptors
    )
    if await _is_started(pod, container, record):
        init.advance(ProcessTrigger.START)
        init.advance(ProcessTrigger.STARTED)
        if record.paused:
            init.advance(ProcessTrigger.PAUSE)
        if not record.started:
            pod.save_change(container, init, started=True)
    try:
        pod.watch_memory(container)
        if record.exit_code < 0 and container.oom_watch is not None:
            container.oom_watch.check()
    except (SandboxdError, OSError) as error:
        # Whatever else is not learnt of it, its end must be.
        log.error("container.memory_not_watched", container_id=container.id, error=error)
    _follow(pod, container, init, record, pidfd)


async def _is_started(pod: TaskPod, container: Container, record: ContainerRecord) -> bool:
    if record.started or not record.starting:
        return record.started
    assert container.prepared is not None
    # Whether the runtime had done it, only the runtime knows.
    try:
        return await pod.parts.backend.is_started(container.id, container.prepared)
    except NotFound:
        return False
    except (SandboxdError, OSError) as error:
        # The engine's Start is replayed, and tries it again.
        log.error("container.start_not_known", container_id=container.id, error=error)
        return False


async def _take_up_exec(pod: TaskPod, container: Container, record: ExecRecord) -> None:
    assert container.prepared is not None
    spec = StdioSpec(record.terminal, record.stdin, record.stdout, record.stderr)
    process = Process(container.id, record.exec_id, spec)
    process.record, process.stdin_closed = record, record.stdin_closed
    uid, gid = record.owner
    process.owner = (uid, gid)
    if container.execs is None:
        container.execs = {}
    container.execs[process.exec_id] = process
    if not record.pid:
        pid = pod.parts.backend.pid_of_exec(process.exec_id, container.prepared)
        if not pid:
            pod.parts.backend.forget_exec(process.exec_id, container.prepared)
            _discard_streams(pod, process, record.descriptors)
            return  # it was never started, or in vain
        record_path = exec_path(container.prepared.directory, process.exec_id)
        changes: dict[str, Any] = {"command": "", "pid": pid}
        try:
            changes["start_time"] = start_time(pid) if pod.is_inside(container, pid) else 0
        except ProcessLookupError:
            changes["start_time"] = 0
        if not changes["start_time"]:
            ended = pod.parts.exits.ended_since(pid, os.stat(record_path).st_mtime_ns)
            if ended is not None:
                changes.update(exit_code=ended.code, exited_at_ns=ended.exited_at_ns)
        pod.save_change(container, process, **changes)
        pod.parts.backend.forget_exec(process.exec_id, container.prepared)
        assert process.record is not None
        record = process.record
    process.advance(ProcessTrigger.START)
    process.advance(ProcessTrigger.STARTED)
    process.stdio, pidfd = Stdio.recover(spec, record.stdin_closed, pod.parts.store, record.descriptors)
    _follow(pod, container, process, record, pidfd)


def _discard_streams(pod: TaskPod, process: Process, descriptors: str) -> bool:
    """Undo the streams of a process that was not made; tell whether the engine has seen no end of them."""
    is_kept = pod.unmade.knows(process.container_id, process.exec_id)
    kept = Stdio.discard(process.stdio_spec, pod.parts.store, descriptors, reopen=not is_kept)
    if kept:
        pod.unmade.add(process.container_id, process.exec_id, kept)
    return is_kept or bool(kept)


def _follow(
    pod: TaskPod,
    container: Container,
    process: Process,
    record: ContainerRecord | ExecRecord,
    pidfd: int | None,
) -> None:
    """Watch a process of an earlier daemon, or say how it has ended."""
    process.pid = record.pid
    if record.exit_code >= 0:
        process.finish(ExitStatus(record.exit_code, record.exited_at_ns))
    elif is_same_process(record.pid, record.start_time) and _try_adopt(
        pod, container, process, record, pidfd
    ):
        return
    else:
        status = pod.parts.exits.ended(record.pid, record.start_time, pidfd)
        if status is None:
            status = ExitStatus(UNKNOWN_EXIT_CODE, time.time_ns(), known=False)
        pod.on_exit(container, process, status)
    if pidfd is not None:
        os.close(pidfd)


def _try_adopt(
    pod: TaskPod,
    container: Container,
    process: Process,
    record: ContainerRecord | ExecRecord,
    pidfd: int | None,
) -> bool:
    try:
        pod.adopt(container, process, record.pid, pidfd, record.start_time)
    except NotFound:
        return False  # it has ended this moment
    return True
