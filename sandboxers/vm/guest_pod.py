"""The containers of one VM pod: what the host holds for them, how they end, and what is on record of all that.

`GuestTasks` puts the engine's protocol on top of it; a sandbox uses it to recover, to end and to clean.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal as signals
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from common.descriptors.store import DescriptorStore
from common.errors import DeadlineExceeded, FailedPrecondition, NotFound, SandboxdError, Unavailable
from common.failpoints import Failpoint, failpoint
from common.log import get_logger
from common.process.exits import ExitStatus
from common.records import write_record
from common.task.backend import EventSink
from common.task.calls import exit_event
from common.task.records import EXEC_RECORDS, RECORD_FILE, exec_path
from proto.gen.containerd.events import task_pb2 as task_events
from proto.gen.containerd.task.v3 import shim_pb2 as api
from proto.gen.sandboxd.agent.v1.agent_pb2 import StreamEnd
from sandboxers.vm.containers import (
    ContainerRecord,
    ExecRecord,
    GuestContainer,
    GuestProcess,
    PidSource,
)
from sandboxers.vm.preparer import GuestPreparer
from sandboxers.vm.streams import StreamNames, Streams
from vmm.guest.client import GuestClient
from vmm.guest.reception import GuestEvent

_COLLECT_TIMEOUT_S: Final = 10.0
_FORGET_TIMEOUT_S: Final = 2.0
_KILL_PATIENCE_S: Final = 5.0
_PROBE_TIMEOUT_S: Final = 5.0
_LAST_PATIENCE_S: Final = 30.0
_KILLED: Final = 128 + signals.SIGKILL
_KNOWN_TIMESTAMP_NS: Final = 10**18  # 2001: what is earlier is a clock that was never set

log = get_logger()


class GuestPod:
    """The containers of one VM pod."""

    __slots__ = (
        "_guest",
        "_on_frozen",
        "_probe",
        "_store",
        "_unmeasured_since_s",
        "containers",
        "directory",
        "ended",
        "events",
        "pid_source",
        "preparer",
        "sandbox_id",
        "stats_as_v1",
        "stopped",
    )

    def __init__(
        self,
        sandbox_id: str,
        directory: str,
        guest: GuestClient,
        preparer: GuestPreparer,
        events: EventSink,
        store: DescriptorStore,
        pids: PidSource,
        on_frozen: Callable[[str], None],
        *,
        stats_as_v1: bool = False,
    ) -> None:
        """:param directory: where each container gets a directory for its records.
        :param on_frozen: told, with a reason, when a guest answers nothing, or does not do as it is told.
        :param stats_as_v1: whether the engine knows the figures of cgroup v1 alone.
        """
        self.sandbox_id = sandbox_id
        self.containers: dict[str, GuestContainer] = {}
        self.stopped = False
        self.ended = ""
        """Why the machine has ended; empty while it lives."""
        self.directory = directory
        self._guest = guest
        self.preparer = preparer
        self.events = events
        self._store = store
        self.pid_source = pids
        self._on_frozen = on_frozen
        self.stats_as_v1 = stats_as_v1
        self._probe: asyncio.Task[None] | None = None
        self._unmeasured_since_s = 0.0

    def container(self, container_id: str) -> GuestContainer:
        """Return a container.

        :raise NotFound: there is none of this id in this pod.
        """
        try:
            return self.containers[container_id]
        except KeyError:
            raise NotFound(f"no container {container_id[:100]!r} in pod {self.sandbox_id}") from None

    # -- containers of an earlier daemon ---------------------------------------------------------------

    def adopt(self, container: GuestContainer) -> None:
        """Go on with a container that is on record, and with its streams."""
        self.containers[container.id] = container
        for process in container.processes():
            record = process.record
            assert record is not None
            self.pid_source.reserve(process.pid)
            streams = Streams(StreamNames(*record.streams), self._guest, self._store)
            if not streams.recover() and not record.made:
                # Whoever asks again for the process gets others; these stay kept until then.
                streams.hold(process.stdio_spec)
                process.lost_streams = streams
                continue
            process.streams = streams
            if record.stdin_closed:
                streams.close_stdin()
            for name, length in record.lengths.items():
                streams.end_output(name, length)

    def abandoned(self) -> list[str]:
        """Return the containers of an earlier daemon whose bundle is gone, as engines leave what they give up."""
        return [c.id for c in self.containers.values() if c.recovered and not os.path.lexists(c.bundle)]

    async def collect(self, container_id: str) -> None:
        """Kill a container, and remove it in the guest and here."""
        container = self.container(container_id)
        if container.made and not self.ended:
            await self.unmake(container_id)
        await self.release(container)

    async def unmake(self, container_id: str) -> None:
        """Let the agent kill and remove a container."""
        with contextlib.suppress(NotFound, FailedPrecondition):
            kill = api.KillRequest(id=container_id, signal=signals.SIGKILL, all=True)
            await self._guest.call_task("Kill", kill, Empty, _COLLECT_TIMEOUT_S)
        with contextlib.suppress(NotFound):
            wait = api.WaitRequest(id=container_id)
            await self._guest.call_task("Wait", wait, api.WaitResponse, _COLLECT_TIMEOUT_S)
            delete = api.DeleteRequest(id=container_id)
            await self._guest.call_task("Delete", delete, api.DeleteResponse, _COLLECT_TIMEOUT_S)

    async def open_streams(self, process: GuestProcess, names: StreamNames) -> None:
        if process.streams is None:
            streams = Streams(names, self._guest, self._store)
            try:
                await streams.open(process.stdio_spec)
            except DeadlineExceeded:
                self.doubt()
                raise
            process.streams = streams
        if process.lost_streams is not None:
            process.lost_streams.forget()
            process.lost_streams = None

    async def release(self, container: GuestContainer) -> None:
        """Let go of all that the host holds for a container."""
        failpoint(Failpoint.CONTAINER_DELETING)
        for process in container.processes():
            self.end_streams(process)
            process.end.interrupt(NotFound(f"{process} has been deleted"))
        await self.release_prepared(container)
        failpoint(Failpoint.CONTAINER_UNMADE)
        self.forget(container)
        failpoint(Failpoint.CONTAINER_DELETED)

    # -- a guest that does not answer ------------------------------------------------------------------

    def expect_end(self, process: GuestProcess) -> None:
        """A process is killed now and must end soon: else its guest is not there, or does not do as it is told."""
        asyncio.get_running_loop().call_later(_KILL_PATIENCE_S, self._miss_end, process)

    def _miss_end(self, process: GuestProcess) -> None:
        if self._is_over(process):
            return
        asyncio.get_running_loop().call_later(_LAST_PATIENCE_S, self._give_up, process)
        self.doubt(_PROBE_TIMEOUT_S)

    def expect_figures(self) -> None:
        """The engine asks for figures, as it does every few seconds: if earlier questions have no answer there may be
        nobody to give one, though QEMU and all its helpers run.
        """
        now_s = asyncio.get_running_loop().time()
        if not self._unmeasured_since_s:
            self._unmeasured_since_s = now_s
        elif now_s - self._unmeasured_since_s > _LAST_PATIENCE_S:
            self.doubt()

    def note_figures(self) -> None:
        """The guest has given figures."""
        self._unmeasured_since_s = 0.0

    def doubt(self, timeout_s: float = _LAST_PATIENCE_S) -> None:
        """Something was not answered in time: find out whether the guest answers, and accepts connections."""
        if self._probe is None and not self.ended:
            self._probe = asyncio.get_running_loop().create_task(self._ask(timeout_s))

    async def _ask(self, timeout_s: float) -> None:
        try:
            reason = await self._miss_answer(timeout_s)
        finally:
            self._probe = None
        if reason:
            self._on_frozen(reason)
        else:
            self.note_figures()

    async def _miss_answer(self, timeout_s: float) -> str:
        """Return what the guest does not do, empty if it answers. That it cannot, or refuses, is an answer."""
        try:
            await self._guest.stats(timeout_s)
        except (DeadlineExceeded, Unavailable) as error:
            return f"it does not answer ({error})"
        except SandboxdError:
            pass
        # What stands already says nothing of what is asked for now.
        try:
            (await self._guest.open_tasks(timeout_s)).close()
        except DeadlineExceeded as error:
            return f"it does not accept connections ({error})"
        except SandboxdError:
            pass
        return ""

    def _give_up(self, process: GuestProcess) -> None:
        if not self._is_over(process):
            self._on_frozen(f"{process} was killed and has not ended")

    def _is_over(self, process: GuestProcess) -> bool:
        """Whether nothing more is expected of the guest. All that might write for a container ends with its init, and
        engines wait for the end of its output.
        """
        if self.ended or (process.exec_id and process.exit is not None):
            return True
        return process.exit is not None and not (process.streams and process.streams.wait_for_guest)

    # -- what the guest tells by itself, and its end ---------------------------------------------------

    async def on_event(self, event: GuestEvent) -> None:
        """Take an event of the guest; what it names must be ours. An OOM event is with the engine when this returns."""
        if isinstance(event, StreamEnd):
            self._end_stream(event.id, event.length)
            return
        with contextlib.suppress(NotFound):
            container = self.container(event.container_id)
            if isinstance(event, task_events.TaskExit):
                process = container.process("" if event.id == container.id else event.id)
                self.note_exit(process, event.exit_status, event.exited_at)
            elif not container.oom_told:
                # Engines ask whether there was one, and a guest can claim as many as it likes.
                container.oom_told = True
                self.events.publish("/tasks/oom", task_events.TaskOOM(container_id=container.id))
                log.info("container.oom", sandbox_id=self.sandbox_id, container_id=container.id)
                await self.events.flush(2.0)

    def end(self, reason: str, exited_at_ns: int) -> None:
        """The machine has ended, and with it all processes."""
        self.ended = self.ended or reason
        for container in self.containers.values():
            for process in container.processes():
                if process.exit is None:
                    self._finish(process, ExitStatus(_KILLED, exited_at_ns))
                if process.streams is not None:
                    process.streams.drain()

    def _end_stream(self, name: str, length: int) -> None:
        for container in self.containers.values():
            for process in container.processes():
                if process.streams is not None and process.streams.has_output(name):
                    assert process.record is not None
                    # The guest tells it once: a later daemon must know it, and a second word is a lie.
                    if name not in process.record.lengths:
                        self.save(process, lengths={**process.record.lengths, name: length})
                        process.streams.end_output(name, length)
                    return

    def note_exit(self, process: GuestProcess, code: int, exited_at: Timestamp) -> ExitStatus:
        """Note an exit that the guest has told, once; what it says of the time must be possible."""
        if process.exit is not None:
            return process.exit
        now_ns = time.time_ns()
        told_ns = exited_at.seconds * 10**9 + exited_at.nanos
        status = ExitStatus(code & 0xFF, told_ns if _KNOWN_TIMESTAMP_NS < told_ns <= now_ns else now_ns)
        self._finish(process, status)
        return status

    def _finish(self, process: GuestProcess, status: ExitStatus) -> None:
        failpoint(Failpoint.EXEC_EXITED if process.exec_id else Failpoint.CONTAINER_EXITED)
        self.save(process, exit_code=status.code, exited_at_ns=status.exited_at_ns)
        failpoint(Failpoint.EXEC_EXIT_RECORDED if process.exec_id else Failpoint.CONTAINER_EXIT_RECORDED)
        process.end.set(status)
        if process.record is not None and process.record.started:
            self._publish_exit(process, status)
        if not process.exec_id:
            log.info(
                "container.exited",
                sandbox_id=self.sandbox_id,
                container_id=process.container_id,
                exit_code=status.code,
            )

    def note_start(self, process: GuestProcess) -> None:
        """Note that a process runs, or ran: its exit comes over another connection, perhaps earlier."""
        was_started = process.record is not None and process.record.started
        self.save(process, started=True)
        ids = {"container_id": process.container_id}
        if process.exec_id:
            event = task_events.TaskExecStarted(exec_id=process.exec_id, pid=process.pid, **ids)
            self.events.publish("/tasks/exec-started", event)
        else:
            self.events.publish("/tasks/start", task_events.TaskStart(pid=process.pid, **ids))
        if process.exit is not None and not was_started:
            self._publish_exit(process, process.exit)

    def _publish_exit(self, process: GuestProcess, status: ExitStatus) -> None:
        self.events.publish("/tasks/exit", exit_event(process, status))

    # -- records -------------------------------------------------------------------------------------

    def register(self, process: GuestProcess, bundle: str = "") -> StreamNames:
        """Write the record of a process of which nothing is made yet; return the names of its streams.

        :param bundle: that of the container whose first process it is.
        """
        if process.record is not None:
            return self._names_of(process)
        names = StreamNames.new(process.stdio_spec, self._store)
        facts: dict[str, Any] = {
            **dataclasses.asdict(process.stdio_spec),
            "pid": process.pid,
            "streams": [*names],
        }
        directory = self._record_directory(process.container_id)
        if process.exec_id:
            process.record = ExecRecord(exec_id=process.exec_id, **facts)
            directory += f"/{EXEC_RECORDS}"
        else:
            process.record = ContainerRecord(process.container_id, bundle, disks=[], **facts)
        os.makedirs(directory, 0o700, exist_ok=True)
        self._write(process)
        return names

    def _names_of(self, process: GuestProcess) -> StreamNames:
        """Return the names on record, or others if the streams of these were lost: the guest may have seen them."""
        assert process.record is not None
        if process.lost_streams is not None:
            names = StreamNames.new(process.stdio_spec, self._store)
            process.record = dataclasses.replace(process.record, streams=list(names))
            self._write(process)
        return StreamNames(*process.record.streams)

    def _write(self, process: GuestProcess) -> None:
        assert process.record is not None
        directory = self._record_directory(process.container_id)
        path = exec_path(directory, process.exec_id) if process.exec_id else f"{directory}/{RECORD_FILE}"
        write_record(path, process.record)

    def save(self, process: GuestProcess, **changes: Any) -> None:
        """Write into the record what must not fail for want of space: what has happened has happened."""
        if process.record is None:
            return
        process.record = dataclasses.replace(process.record, **changes)
        try:
            self._write(process)
        except OSError as error:
            ids = {"sandbox_id": self.sandbox_id, "container_id": process.container_id}
            log.error("container.record_not_written", **ids, error=error)

    def note_disk(self, container: GuestContainer) -> Any:
        def note(device_id: str) -> None:
            assert isinstance(container.init.record, ContainerRecord)
            record = container.init.record
            container.init.record = dataclasses.replace(record, disks=[*record.disks, device_id])
            self._write(container.init)

        return note

    async def release_prepared(self, container: GuestContainer) -> None:
        record = container.init.record
        disks = record.disks if isinstance(record, ContainerRecord) else []
        await self.preparer.release(container.id, disks)

    def _record_directory(self, container_id: str) -> str:
        return f"{self.directory}/{container_id}"

    def forget(self, container: GuestContainer) -> None:
        self.containers.pop(container.id, None)
        directory = self._record_directory(container.id)
        for path in _files_below(directory):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        for name in (f"{directory}/{EXEC_RECORDS}", directory):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(name)

    def forget_exec(self, container: GuestContainer, process: GuestProcess) -> None:
        self.end_streams(process)
        if container.execs is not None:
            container.execs.pop(process.exec_id, None)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(exec_path(self._record_directory(container.id), process.exec_id))

    async def forget_unlisted_execs(self, listed: Mapping[str, Collection[str]]) -> None:
        """Forget the execs that do not run and are not among those listed, by container, here and in the guest."""
        unlisted = [
            (container, process)
            for container in self.containers.values()
            for process in (container.execs or {}).values()
            if process.exec_id not in listed.get(container.id, ()) and not process.runs
        ]
        for container, process in unlisted:
            self.forget_exec(container, process)
        with contextlib.suppress(TimeoutError, SandboxdError):
            async with asyncio.timeout(_FORGET_TIMEOUT_S):
                for container, process in unlisted:
                    await self._delete_exec(container.id, process.exec_id)

    async def _delete_exec(self, container_id: str, exec_id: str) -> None:
        request = api.DeleteRequest(id=container_id, exec_id=exec_id)
        with contextlib.suppress(NotFound):
            await self._guest.call_task("Delete", request, api.DeleteResponse, _FORGET_TIMEOUT_S)

    @staticmethod
    def end_streams(process: GuestProcess) -> None:
        if process.streams is not None:
            process.streams.close()
        if process.lost_streams is not None:
            process.lost_streams.forget()


def _files_below(directory: str) -> Iterator[str]:
    for path, _, files in os.walk(directory):
        yield from (f"{path}/{file}" for file in files)
