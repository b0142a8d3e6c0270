"""The Task service of a VM pod as its engine sees it: the relay to the agent in the guest.

Calls go to the guest as they came but for Create and Exec, which get a bundle and streams of the guest's; Delete, after
which what the host holds for the container is released; and what the host answers by itself because it knows (pids,
ends). Nothing that names something comes from the guest: pids, paths, ids and times in answers are the host's.

When the machine has ended every call is answered without it, so that an engine learns of the end and can clean up.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal as signals
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from common.descriptors.store import DescriptorStore
from common.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    SandboxdError,
    Unavailable,
    Unimplemented,
)
from common.failpoints import Failpoint, failpoint
from common.identifiers import check_identifier
from common.linux.mounts import MountSpec
from common.log import get_logger
from common.oci.spec import parse_process
from common.process.exits import ExitStatus
from common.records import write_record
from common.task.backend import EventSink
from common.task.stdio import StdioSpec
from common.ttrpc import CallContext, ConnectionLost, Method, RelayContext, RelayedMethod
from proto.gen.containerd.events import task_pb2 as events
from proto.gen.containerd.task.v3 import shim_pb2 as api
from proto.gen.containerd.types import task_pb2 as types
from proto.gen.sandboxd.agent.v1.agent_pb2 import StreamEnd
from sandboxers.vm.containers import (
    EXECS,
    RECORD_FILE,
    ContainerRecord,
    ExecRecord,
    GuestContainer,
    GuestProcess,
    PidSource,
)
from sandboxers.vm.preparer import GuestPreparer, guest_bundle
from sandboxers.vm.streams import StreamNames, Streams
from vmm.guest.client import GuestClient
from vmm.guest.reception import GuestEvent

_COLLECT_TIMEOUT_S: Final = 10.0
_KILL_PATIENCE_S: Final = 5.0
_PROBE_TIMEOUT_S: Final = 5.0
_KILLED: Final = 128 + signals.SIGKILL
_STATS_TYPES: Final = frozenset({"io.containerd.cgroups.v2.Metrics", "io.containerd.cgroups.v1.Metrics"})
_STATUSES: Final = frozenset({types.CREATED, types.RUNNING, types.STOPPED, types.PAUSED, types.PAUSING})
_KNOWN_TIMESTAMP_NS: Final = 10**18  # 2001: what is earlier is a clock that was never set

log = get_logger()


class GuestTasks:
    """The containers of one VM pod, and the calls that concern them."""

    __slots__ = (
        "_events",
        "_guest",
        "_on_frozen",
        "_pids",
        "_preparer",
        "_probe",
        "_store",
        "containers",
        "directory",
        "ended",
        "sandbox_id",
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
    ) -> None:
        """:param directory: where each container gets a directory for its records.
        :param on_frozen: told, with a reason, when a guest answers nothing in which something must be killed.
        """
        self.sandbox_id = sandbox_id
        self.containers: dict[str, GuestContainer] = {}
        self.stopped = False
        self.ended = ""
        """Why the machine has ended; empty while it lives."""
        self.directory = directory
        self._guest = guest
        self._preparer = preparer
        self._events = events
        self._store = store
        self._pids = pids
        self._on_frozen = on_frozen
        self._probe: asyncio.Task[None] | None = None

    def container(self, container_id: str) -> GuestContainer:
        """Return a container.

        :raise NotFound: there is none of this id in this pod.
        """
        try:
            return self.containers[container_id]
        except KeyError:
            raise NotFound(f"no container {container_id[:100]!r} in pod {self.sandbox_id}") from None

    def process(self, request: Any) -> GuestProcess:
        """Return the process that a request names with its `id` and `exec_id`, where it has one."""
        return self.container(request.id).process(getattr(request, "exec_id", ""))

    # -- containers of an earlier daemon ---------------------------------------------------------------

    def adopt(self, container: GuestContainer) -> None:
        """Go on with a container that is on record, and with its streams."""
        self.containers[container.id] = container
        for process in container.processes():
            record = process.record
            assert record is not None
            self._pids.reserve(process.pid)
            streams = Streams(StreamNames(*record.streams), self._guest, self._store)
            if not streams.recover() and not record.made:
                # Whoever asks again for the process gets others; these stay kept until then.
                streams.close()
                process.lost_streams = streams
                continue
            process.streams = streams
            if record.stdin_closed:
                streams.close_stdin()
            for name in record.ended:
                streams.end_output(name, 0)

    def abandoned(self) -> list[str]:
        """Return the containers of an earlier daemon whose bundle is gone, as engines leave what they give up."""
        return [c.id for c in self.containers.values() if c.recovered and not os.path.lexists(c.bundle)]

    async def collect(self, container_id: str) -> None:
        """Kill a container, and remove it in the guest and here."""
        container = self.container(container_id)
        if container.made and not self.ended:
            await self._unmake(container_id)
        await self.release(container)

    async def _unmake(self, container_id: str) -> None:
        """Let the agent kill and remove a container."""
        with contextlib.suppress(NotFound, FailedPrecondition):
            kill = api.KillRequest(id=container_id, signal=signals.SIGKILL, all=True)
            await self._guest.call_task("Kill", kill, Empty, _COLLECT_TIMEOUT_S)
        with contextlib.suppress(NotFound):
            wait = api.WaitRequest(id=container_id)
            await self._guest.call_task("Wait", wait, api.WaitResponse, _COLLECT_TIMEOUT_S)
            delete = api.DeleteRequest(id=container_id)
            await self._guest.call_task("Delete", delete, api.DeleteResponse, _COLLECT_TIMEOUT_S)

    # -- create, exec, delete: what the host has to do with it ---------------------------------------

    async def create(self, request: api.CreateTaskRequest, context: CallContext) -> api.CreateTaskResponse:
        """Prepare a container on the host and let the agent make it. All or nothing."""
        assert isinstance(context, RelayContext)
        container_id = check_identifier("container", request.id)
        if request.checkpoint:
            raise InvalidArgument(
                f"container {container_id} cannot be restored from a checkpoint: not supported"
            )
        self._require_life(container_id)
        container = self.containers.get(container_id)
        if container is not None and not (context.replayed and container.bundle == request.bundle):
            raise AlreadyExists(f"container {container_id} exists already in this pod")
        if container is None or not container.made:
            container = await self._create(request, context, container)
        pid = container.init.pid
        event = events.TaskCreate(
            container_id=container_id, bundle=request.bundle, rootfs=request.rootfs, pid=pid
        )
        event.io.CopyFrom(
            events.TaskIO(
                stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, terminal=request.terminal
            )
        )
        self._events.publish("/tasks/create", event)
        return api.CreateTaskResponse(pid=pid)

    async def _create(
        self, request: api.CreateTaskRequest, context: RelayContext, begun: GuestContainer | None
    ) -> GuestContainer:
        stdio = StdioSpec(request.terminal, request.stdin, request.stdout, request.stderr)
        container = begun or GuestContainer(
            request.id, request.bundle, GuestProcess(request.id, "", self._pids.new(), stdio)
        )
        init = container.init
        self.containers[container.id] = container
        async with contextlib.AsyncExitStack() as undo:
            undo.callback(self._forget, container)
            names = self._register(container)
            failpoint(Failpoint.CONTAINER_RECORDED)
            rootfs = [MountSpec(m.type, m.source, tuple(m.options), m.target) for m in request.rootfs]
            undo.push_async_callback(self._release_prepared, container)
            assert isinstance(init.record, ContainerRecord)
            # An earlier daemon may have handed the call on already: then what it has prepared is in use.
            if not init.record.prepared:
                await self._preparer.prepare(container.id, request.bundle, rootfs, self._note_disk(container))
                self._save(init, prepared=True)
            failpoint(Failpoint.CONTAINER_SPEC_WRITTEN)
            await self._open_streams(init, names)
            undo.callback(self._end_streams, init)
            failpoint(Failpoint.CONTAINER_STREAMS_OPENED)
            stdin, stdout, stderr = names.uris()
            await self._forward(
                context,
                api.CreateTaskRequest(
                    id=container.id,
                    bundle=guest_bundle(container.id),
                    terminal=stdio.terminal,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                ),
            )
            undo.push_async_callback(self._unmake, container.id)
            failpoint(Failpoint.CONTAINER_MADE)
            container.made = True
            self._save(init, made=True)
            undo.pop_all()
        failpoint(Failpoint.CONTAINER_CREATED)
        return container

    async def exec(self, request: api.ExecProcessRequest, context: CallContext) -> Empty:
        """Register one more process, with its streams."""
        assert isinstance(context, RelayContext)
        exec_id = check_identifier("exec", request.exec_id)
        self._require_life(request.id)
        container = self.container(request.id)
        if container.init.exit is not None:
            raise FailedPrecondition(f"cannot exec in container {container.id}: it has stopped")
        parse_process(request.spec.value, f"the process of exec {exec_id}")
        process = (container.execs or {}).get(exec_id)
        if process is not None and not context.replayed:
            raise AlreadyExists(f"exec {exec_id} exists already in container {container.id}")
        stdio = StdioSpec(request.terminal, request.stdin, request.stdout, request.stderr)
        if process is None:
            process = GuestProcess(container.id, exec_id, self._pids.new(), stdio)
            if container.execs is None:
                container.execs = {}
            container.execs[exec_id] = process
        with contextlib.ExitStack() as undo:
            undo.callback(self._forget_exec, container, process)
            names = self._register_exec(process)
            failpoint(Failpoint.EXEC_RECORDED)
            await self._open_streams(process, names)
            failpoint(Failpoint.EXEC_STREAMS_OPENED)
            changed = api.ExecProcessRequest()
            changed.CopyFrom(request)
            changed.stdin, changed.stdout, changed.stderr = names.uris()
            await self._forward(context, changed)
            self._save(process, made=True)
            undo.pop_all()
        self._events.publish(
            "/tasks/exec-added", events.TaskExecAdded(container_id=container.id, exec_id=exec_id)
        )
        return Empty()

    async def delete(self, request: api.DeleteRequest, context: CallContext) -> api.DeleteResponse:
        """Let the agent forget an exec or remove a container, then release what the host holds for it."""
        assert isinstance(context, RelayContext)
        container = self.container(request.id)
        process = container.process(request.exec_id)
        if container.made or request.exec_id:
            with contextlib.suppress(NotFound):
                payload = await self._forward(context, request, bereaved=api.DeleteResponse())
                answer = api.DeleteResponse.FromString(payload)
                if answer.HasField("exited_at"):
                    self._note_exit(process, answer.exit_status, answer.exited_at)
        if request.exec_id:
            self._forget_exec(container, process)
            failpoint(Failpoint.EXEC_DELETED)
        else:
            await self.release(container)
        status = process.exit
        response = api.DeleteResponse(pid=process.pid, exit_status=status.code if status else 0)
        if status is not None:
            response.exited_at.CopyFrom(_timestamp(status))
        if not request.exec_id:
            event = events.TaskDelete(
                container_id=container.id, pid=process.pid, exit_status=response.exit_status
            )
            event.exited_at.CopyFrom(response.exited_at)
            self._events.publish("/tasks/delete", event)
        return response

    async def _open_streams(self, process: GuestProcess, names: StreamNames) -> None:
        if process.streams is None:
            streams = Streams(names, self._guest, self._store)
            await streams.open(process.stdio)
            process.streams = streams
        if process.lost_streams is not None:
            process.lost_streams.forget()
            process.lost_streams = None

    async def release(self, container: GuestContainer) -> None:
        """Let go of all that the host holds for a container."""
        failpoint(Failpoint.CONTAINER_DELETING)
        for process in container.processes():
            self._end_streams(process)
            process.end.interrupt(NotFound(f"{process} has been deleted"))
        await self._release_prepared(container)
        failpoint(Failpoint.CONTAINER_UNMADE)
        self._forget(container)
        failpoint(Failpoint.CONTAINER_DELETED)

    async def _forward(
        self, context: RelayContext, request: Message, bereaved: Message | None = None
    ) -> bytes:
        try:
            return await context.forward(request)
        except ConnectionLost as error:
            if bereaved is not None and self.ended:
                return bereaved.SerializeToString()
            raise Unavailable(f"pod {self.sandbox_id}: {self.ended or error}") from None

    def _require_life(self, container_id: str) -> None:
        if self.ended or self.stopped:
            raise FailedPrecondition(
                f"container {container_id[:100]}: pod {self.sandbox_id} has ended: {self.ended or 'it was stopped'}"
            )

    # -- answered by the host alone ------------------------------------------------------------------

    async def connect(self, request: api.ConnectRequest, _: CallContext) -> api.ConnectResponse:
        """Tell the pid of a container; 0 for an unknown one, which is how the engine probes a task server."""
        container = self.containers.get(request.id)
        return api.ConnectResponse(
            shim_pid=os.getpid(), task_pid=container.init.pid if container else 0, version="3"
        )

    async def pids(self, request: api.PidsRequest, _: CallContext) -> api.PidsResponse:
        """List the processes that the engine started: never none, or a restarted engine would take it for leaked."""
        container = self.container(request.id)
        alive = [p for p in container.processes() if p is container.init or p.exit is None]
        return api.PidsResponse(processes=[types.ProcessInfo(pid=process.pid) for process in alive])

    async def close_io(self, request: api.CloseIORequest, _: CallContext) -> Empty:
        """Let the process read end-of-file after what the engine has written; the guest is told when all is there."""
        process = self.process(request)
        if request.stdin:
            if process.exit is None:
                self._save(process, stdin_closed=True)
            if process.streams is not None:
                process.streams.close_stdin()
                failpoint(Failpoint.STDIN_CLOSED)
        return Empty()

    async def checkpoint(self, request: api.CheckpointTaskRequest, _: CallContext) -> Empty:
        """Not offered."""
        raise Unimplemented(
            f"container {request.id[:100]} cannot be checkpointed: not supported by this sandboxer"
        )

    async def shutdown(self, _: api.ShutdownRequest, __: CallContext) -> Empty:
        """Do nothing: engines send it after deletes and failed creates, but the pod's life is the Controller's."""
        return Empty()

    # -- handed on as they are: before, after, and without the guest -----------------------------------

    def known(self, request: Any) -> None:
        """Refuse what concerns no process of this pod."""
        self.process(request)

    def empty(self, _: Any, payload: bytes) -> Empty:
        """An empty answer."""
        Empty.FromString(payload)
        return Empty()

    def without_guest(self, request: Any) -> Message:
        """Say that the machine has ended."""
        process = self.process(request)
        raise FailedPrecondition(f"{process}: the pod's machine has ended: {self.ended}")

    def started(self, request: api.StartRequest, payload: bytes) -> api.StartResponse:
        """A process runs."""
        api.StartResponse.FromString(payload)
        process = self.process(request)
        self._save(process, started=True)
        if process.exec_id:
            self._events.publish(
                "/tasks/exec-started",
                events.TaskExecStarted(
                    container_id=process.container_id, exec_id=process.exec_id, pid=process.pid
                ),
            )
        else:
            self._events.publish(
                "/tasks/start", events.TaskStart(container_id=process.container_id, pid=process.pid)
            )
        return api.StartResponse(pid=process.pid)

    def state_of_ended(self, request: api.StateRequest) -> api.StateResponse | None:
        """Answer State for a process that has ended, as far as is known here."""
        process = self.process(request)
        return None if process.exit is None else self._state(process, types.STOPPED)

    def state(self, request: api.StateRequest, payload: bytes) -> api.StateResponse:
        """Take the state alone from the agent's answer."""
        answer = api.StateResponse.FromString(payload)
        if answer.status not in _STATUSES:
            raise ValueError(f"{answer.status} is no state of a process")
        process = self.process(request)
        if answer.status == types.STOPPED:
            self._note_exit(process, answer.exit_status, answer.exited_at)
        return self._state(process, answer.status)

    def _state(self, process: GuestProcess, status: int) -> api.StateResponse:
        stdio = process.stdio
        response = api.StateResponse(
            id=process.container_id,
            exec_id=process.exec_id,
            bundle=self.container(process.container_id).bundle,
            pid=process.pid,
            status=status,  # type: ignore[arg-type]
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            terminal=stdio.terminal,
        )
        if process.exit is not None:
            response.exit_status = process.exit.code
            response.exited_at.CopyFrom(_timestamp(process.exit))
        return response

    def wait_for_ended(self, request: api.WaitRequest) -> api.WaitResponse | None:
        """Answer Wait for a process that has ended."""
        status = self.process(request).exit
        return None if status is None else _exit_answer(status)

    def waited(self, request: api.WaitRequest, payload: bytes) -> api.WaitResponse:
        """A process has ended."""
        answer = api.WaitResponse.FromString(payload)
        return _exit_answer(self._note_exit(self.process(request), answer.exit_status, answer.exited_at))

    def killable(self, request: api.KillRequest) -> None:
        """Refuse to signal what has ended, or with what is no signal."""
        process = self.process(request)
        if not 0 < request.signal <= 64:
            raise InvalidArgument(f"{request.signal} is not a signal")
        if process.exit is not None:
            raise NotFound(f"{process} has already finished")
        if request.signal == signals.SIGKILL:
            asyncio.get_running_loop().call_later(_KILL_PATIENCE_S, self._doubt, process)

    def _doubt(self, process: GuestProcess) -> None:
        """What was to be killed has not ended: that is the guest's fault, or the guest is not there any more."""
        if process.exit is None and not self.ended and self._probe is None:
            self._probe = asyncio.get_running_loop().create_task(self._ask())

    async def _ask(self) -> None:
        try:
            await self._guest.stats(_PROBE_TIMEOUT_S)
        except SandboxdError as error:
            self._on_frozen(f"it does not answer ({error})")
        finally:
            self._probe = None

    def kill_without_guest(self, request: api.KillRequest) -> Message:
        """All have ended with the machine."""
        raise NotFound(f"{self.process(request)} has already finished")

    def stats(self, request: api.StatsRequest, payload: bytes) -> api.StatsResponse:
        """Pass figures on, if they are of a kind that engines know."""
        answer = api.StatsResponse.FromString(payload)
        if answer.stats.type_url not in _STATS_TYPES:
            raise ValueError("the figures are of no known kind")
        return api.StatsResponse(stats=answer.stats)

    def stats_without_guest(self, request: api.StatsRequest) -> Message:
        """Nothing is left to measure, which engines skip."""
        raise NotFound(f"container {self.container(request.id).id} has no cgroup to measure")

    # -- what the guest tells by itself, and its end ---------------------------------------------------

    async def on_event(self, event: GuestEvent) -> None:
        """Take an event of the guest; what it names must be ours. An OOM event is with the engine when this returns."""
        if isinstance(event, StreamEnd):
            self._end_stream(event.id, event.length)
            return
        with contextlib.suppress(NotFound):
            container = self.container(event.container_id)
            if isinstance(event, events.TaskExit):
                process = container.process("" if event.id == container.id else event.id)
                self._note_exit(process, event.exit_status, event.exited_at)
            else:
                self._events.publish("/tasks/oom", events.TaskOOM(container_id=container.id))
                log.info("container.oom", sandbox_id=self.sandbox_id, container_id=container.id)
                await self._events.flush(2.0)

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
                    # The guest tells it once: a later daemon must know that nothing more comes.
                    assert process.record is not None
                    self._save(process, ended=[*process.record.ended, name])
                    process.streams.end_output(name, length)
                    return

    def _note_exit(self, process: GuestProcess, code: int, exited_at: Timestamp) -> ExitStatus:
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
        self._save(process, exit_code=status.code, exited_at_ns=status.exited_at_ns)
        failpoint(Failpoint.EXEC_EXIT_RECORDED if process.exec_id else Failpoint.CONTAINER_EXIT_RECORDED)
        process.end.set(status)
        if process.record is not None and process.record.started:
            event = events.TaskExit(
                container_id=process.container_id,
                id=process.exec_id or process.container_id,
                pid=process.pid,
                exit_status=status.code,
            )
            event.exited_at.CopyFrom(_timestamp(status))
            self._events.publish("/tasks/exit", event)
        if not process.exec_id:
            log.info(
                "container.exited",
                sandbox_id=self.sandbox_id,
                container_id=process.container_id,
                exit_code=status.code,
            )

    # -- records -------------------------------------------------------------------------------------

    def _register(self, container: GuestContainer) -> StreamNames:
        """Write the record of a container of which nothing is made yet; return the names of its streams."""
        init = container.init
        if isinstance(init.record, ContainerRecord):
            return self._names_of(init)
        names = StreamNames.new(init.stdio, self._store)
        init.record = ContainerRecord(
            container_id=container.id,
            bundle=container.bundle,
            pid=init.pid,
            terminal=init.stdio.terminal,
            stdin=init.stdio.stdin,
            stdout=init.stdio.stdout,
            stderr=init.stdio.stderr,
            streams=list(names),
            disks=[],
            ended=[],
        )
        os.makedirs(self._record_directory(container.id), 0o700, exist_ok=True)
        self._write(init)
        return names

    def _register_exec(self, process: GuestProcess) -> StreamNames:
        if isinstance(process.record, ExecRecord):
            return self._names_of(process)
        names = StreamNames.new(process.stdio, self._store)
        process.record = ExecRecord(
            exec_id=process.exec_id,
            pid=process.pid,
            terminal=process.stdio.terminal,
            stdin=process.stdio.stdin,
            stdout=process.stdio.stdout,
            stderr=process.stdio.stderr,
            streams=list(names),
            ended=[],
        )
        os.makedirs(f"{self._record_directory(process.container_id)}/{EXECS}", 0o700, exist_ok=True)
        self._write(process)
        return names

    def _names_of(self, process: GuestProcess) -> StreamNames:
        """Return the names on record, or others if the streams of these were lost: the guest may have seen them."""
        assert process.record is not None
        if process.lost_streams is not None:
            names = StreamNames.new(process.stdio, self._store)
            process.record = dataclasses.replace(process.record, streams=list(names))
            self._write(process)
        return StreamNames(*process.record.streams)

    def _write(self, process: GuestProcess) -> None:
        assert process.record is not None
        directory = self._record_directory(process.container_id)
        name = f"{EXECS}/{process.exec_id}.json" if process.exec_id else RECORD_FILE
        write_record(f"{directory}/{name}", process.record)

    def _save(self, process: GuestProcess, **changes: Any) -> None:
        """Write into the record what must not fail for want of space: what has happened has happened."""
        if process.record is None:
            return
        process.record = dataclasses.replace(process.record, **changes)
        try:
            self._write(process)
        except OSError as error:
            log.error("container.record_not_written", container_id=process.container_id, error=error)

    def _note_disk(self, container: GuestContainer) -> Any:
        def note(device_id: str) -> None:
            assert isinstance(container.init.record, ContainerRecord)
            record = container.init.record
            container.init.record = dataclasses.replace(record, disks=[*record.disks, device_id])
            self._write(container.init)

        return note

    async def _release_prepared(self, container: GuestContainer) -> None:
        record = container.init.record
        disks = record.disks if isinstance(record, ContainerRecord) else []
        await self._preparer.release(container.id, disks)

    def _record_directory(self, container_id: str) -> str:
        return f"{self.directory}/{container_id}"

    def _forget(self, container: GuestContainer) -> None:
        self.containers.pop(container.id, None)
        directory = self._record_directory(container.id)
        for path in _files_below(directory):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        for name in (f"{directory}/{EXECS}", directory):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(name)

    def _forget_exec(self, container: GuestContainer, process: GuestProcess) -> None:
        self._end_streams(process)
        if container.execs is not None:
            container.execs.pop(process.exec_id, None)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._record_directory(container.id)}/{EXECS}/{process.exec_id}.json")

    @staticmethod
    def _end_streams(process: GuestProcess) -> None:
        if process.streams is not None:
            process.streams.close()
        if process.lost_streams is not None:
            process.lost_streams.forget()


def _files_below(directory: str) -> Iterator[str]:
    for path, _, files in os.walk(directory):
        yield from (f"{path}/{file}" for file in files)


def _timestamp(status: ExitStatus) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromNanoseconds(status.exited_at_ns)
    return timestamp


def _exit_answer(status: ExitStatus) -> api.WaitResponse:
    return api.WaitResponse(exit_status=status.code, exited_at=_timestamp(status))


_T = GuestTasks
_HANDED_ON = {
    "Start": RelayedMethod(api.StartRequest, _T.known, _T.started, _T.without_guest),
    "State": RelayedMethod(api.StateRequest, _T.state_of_ended, _T.state, _T.state_of_ended),
    "Wait": RelayedMethod(api.WaitRequest, _T.wait_for_ended, _T.waited, _T.wait_for_ended),
    "Kill": RelayedMethod(api.KillRequest, _T.killable, _T.empty, _T.kill_without_guest),
    "ResizePty": RelayedMethod(api.ResizePtyRequest, _T.known, _T.empty, _T.without_guest),
    "Pause": RelayedMethod(api.PauseRequest, _T.known, _T.empty, _T.without_guest),
    "Resume": RelayedMethod(api.ResumeRequest, _T.known, _T.empty, _T.without_guest),
    "Update": RelayedMethod(api.UpdateTaskRequest, _T.known, _T.empty, _T.without_guest),
    "Stats": RelayedMethod(api.StatsRequest, _T.known, _T.stats, _T.stats_without_guest),
}

GUEST_TASK_METHODS: Mapping[str, Method | RelayedMethod] = MappingProxyType(
    {
        "Create": Method(api.CreateTaskRequest, GuestTasks.create, journaled=True, repeatable=True),
        "Exec": Method(api.ExecProcessRequest, GuestTasks.exec, journaled=True, repeatable=True),
        "Delete": Method(api.DeleteRequest, GuestTasks.delete, journaled=True, repeatable=True),
        "Connect": Method(api.ConnectRequest, GuestTasks.connect),
        "Pids": Method(api.PidsRequest, GuestTasks.pids),
        "CloseIO": Method(api.CloseIORequest, GuestTasks.close_io),
        "Checkpoint": Method(api.CheckpointTaskRequest, GuestTasks.checkpoint),
        "Shutdown": Method(api.ShutdownRequest, GuestTasks.shutdown),
        **_HANDED_ON,
    }
)
"""Every method of the service, by name; as in `common.task.service` one table serves v2 and v3."""
