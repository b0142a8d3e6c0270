"""The Task service of a VM pod as its engine sees it: the relay to the agent in the guest.

Calls go to the guest as they came but for Create and Exec, which get a bundle and streams of the guest's; Delete, after
which what the host holds for the container is released; and what the host answers by itself because it knows (pids,
states, ends). Nothing that names something comes from the guest: pids, paths, ids and times in answers are the host's.

When the machine has ended every call is answered without it, so that an engine learns of the end and can clean up.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal as signals
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from common.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
)
from common.failpoints import Failpoint, failpoint
from common.identifiers import check_identifier
from common.linux.mounts import MountSpec
from common.log import get_logger
from common.oci.spec import parse_process
from common.operations import Action
from common.task.calls import as_operation, created_event, deleted, deleted_event, state_of, waited_for
from common.task.states import ProcessState
from common.task.stdio import StdioSpec
from common.ttrpc import CallContext, ConnectionLost, Method, RelayedMethod
from common.ttrpc.relay import RelayContext
from proto.gen.containerd.events import task_pb2 as task_events
from proto.gen.containerd.task.v3 import shim_pb2 as api
from proto.gen.containerd.types import task_pb2 as types
from sandboxers.vm.containers import (
    ContainerRecord,
    GuestContainer,
    GuestProcess,
)
from sandboxers.vm.guest_pod import GuestPod
from sandboxers.vm.preparer import guest_bundle

_STATS_V2: Final = "io.containerd.cgroups.v2.Metrics"
_STATS_TYPES: Final = frozenset({_STATS_V2, "io.containerd.cgroups.v1.Metrics"})
_STATUSES: Final = frozenset({types.CREATED, types.RUNNING, types.STOPPED, types.PAUSED, types.PAUSING})
# Of these the host would hear that they have changed: it is who starts, and it is told of ends.
_KNOWN: Final[Mapping[ProcessState | None, types.Status]] = MappingProxyType(
    {ProcessState.CREATED: types.CREATED, ProcessState.RUNNING: types.RUNNING}
)

M = TypeVar("M", bound=Message)

log = get_logger()


class GuestTasks(GuestPod):
    """The Task service of one VM pod."""

    __slots__ = ()

    def process(self, request: Any) -> GuestProcess:
        """Return the process that a request names with its `id` and `exec_id`, where it has one."""
        return self.container(request.id).process(getattr(request, "exec_id", ""))

    # -- create, exec, start, delete: what the host has to do with it -----------------------------------

    @as_operation(Action.CONTAINER_CREATE)
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
        self.events.publish("/tasks/create", created_event(request, pid))
        return api.CreateTaskResponse(pid=pid)

    async def _create(
        self, request: api.CreateTaskRequest, context: RelayContext, begun: GuestContainer | None
    ) -> GuestContainer:
        stdio = StdioSpec(request.terminal, request.stdin, request.stdout, request.stderr)
        container = begun or GuestContainer(
            request.id, request.bundle, GuestProcess(request.id, "", self.pid_source.new(), stdio)
        )
        init = container.init
        self.containers[container.id] = container
        async with contextlib.AsyncExitStack() as undo:
            undo.callback(self.forget, container)
            names = self.register(init, container.bundle)
            failpoint(Failpoint.CONTAINER_RECORDED)
            rootfs = [MountSpec(m.type, m.source, tuple(m.options), m.target) for m in request.rootfs]
            undo.push_async_callback(self.release_prepared, container)
            assert isinstance(init.record, ContainerRecord)
            # An earlier daemon may have handed the call on already: then what it has prepared is in use.
            if not init.record.prepared:
                await self.preparer.prepare(container.id, request.bundle, rootfs, self.note_disk(container))
                self.save(init, prepared=True)
            failpoint(Failpoint.CONTAINER_SPEC_WRITTEN)
            await self.open_streams(init, names)
            undo.callback(self.end_streams, init)
            failpoint(Failpoint.CONTAINER_STREAMS_OPENED)
            stdin, stdout, stderr = names.uris()
            changed = api.CreateTaskRequest(
                id=container.id,
                bundle=guest_bundle(container.id),
                terminal=stdio.terminal,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
            )
            try:
                await self._forward(context, changed, api.CreateTaskResponse)
            except asyncio.CancelledError:
                # The guest may have made it all the same.
                undo.push_async_callback(self.unmake, container.id)
                raise
            undo.push_async_callback(self.unmake, container.id)
            if self.containers.get(container.id) is not container:
                raise NotFound(f"container {container.id} was deleted while it was created")
            failpoint(Failpoint.CONTAINER_MADE)
            container.made = True
            init.state = ProcessState.CREATED
            self.save(init, made=True)
            undo.pop_all()
        failpoint(Failpoint.CONTAINER_CREATED)
        return container

    @as_operation(Action.EXEC_CREATE)
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
            process = GuestProcess(container.id, exec_id, self.pid_source.new(), stdio)
            if container.execs is None:
                container.execs = {}
            container.execs[exec_id] = process
        with contextlib.ExitStack() as undo:
            undo.callback(self.forget_exec, container, process)
            names = self.register(process)
            failpoint(Failpoint.EXEC_RECORDED)
            await self.open_streams(process, names)
            failpoint(Failpoint.EXEC_STREAMS_OPENED)
            changed = api.ExecProcessRequest()
            changed.CopyFrom(request)
            changed.stdin, changed.stdout, changed.stderr = names.uris()
            await self._forward(context, changed, Empty)
            process.state = ProcessState.CREATED
            self.save(process, made=True)
            undo.pop_all()
        self.events.publish(
            "/tasks/exec-added", task_events.TaskExecAdded(container_id=container.id, exec_id=exec_id)
        )
        return Empty()

    @as_operation(Action.CONTAINER_START, Action.EXEC_START)
    async def start(self, request: api.StartRequest, context: CallContext) -> api.StartResponse:
        """Let the agent start the first process, or an exec."""
        assert isinstance(context, RelayContext)
        process = self.process(request)
        self._require_life(request.id)
        if process.state is ProcessState.CREATED:
            process.state = ProcessState.STARTING
        if not request.exec_id:
            failpoint(Failpoint.CONTAINER_STARTING)
        await self._forward(context, request, api.StartResponse)
        # Else it was paused meanwhile, or had an earlier daemon.
        if process.state is ProcessState.STARTING:
            process.state = ProcessState.RUNNING
        failpoint(Failpoint.EXEC_RUNNING if request.exec_id else Failpoint.CONTAINER_RUNNING)
        self.note_start(process)
        failpoint(Failpoint.EXEC_STARTED if request.exec_id else Failpoint.CONTAINER_STARTED)
        return api.StartResponse(pid=process.pid)

    @as_operation(Action.CONTAINER_DELETE, Action.EXEC_DELETE)
    async def delete(self, request: api.DeleteRequest, context: CallContext) -> api.DeleteResponse:
        """Let the agent forget an exec or remove a container, then release what the host holds for it."""
        assert isinstance(context, RelayContext)
        container = self.container(request.id)
        process = container.process(request.exec_id)
        if container.made or request.exec_id:
            with contextlib.suppress(NotFound):
                answer = await self._forward(context, request, api.DeleteResponse, api.DeleteResponse())
                if answer.HasField("exited_at"):
                    self.note_exit(process, answer.exit_status, answer.exited_at)
        if request.exec_id:
            self.forget_exec(container, process)
            failpoint(Failpoint.EXEC_DELETED)
        else:
            await self.release(container)
        response = deleted(process)
        if not request.exec_id:
            self.events.publish("/tasks/delete", deleted_event(container.id, response))
        return response

    async def _forward(
        self, context: RelayContext, request: Message, answer: type[M], bereaved: M | None = None
    ) -> M:
        try:
            return await context.forward(request, answer)
        except ConnectionLost as error:
            if bereaved is not None and self.ended:
                return bereaved
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
                self.save(process, stdin_closed=True)
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

    def pausing(self, request: api.PauseRequest | api.ResumeRequest) -> None:
        """From now on the guest alone knows whether a container is frozen."""
        self.process(request).state = None

    def empty(self, _: Any, payload: bytes) -> Empty:
        """An empty answer."""
        Empty.FromString(payload)
        return Empty()

    def without_guest(self, request: Any) -> Message:
        """Say that the machine has ended."""
        process = self.process(request)
        raise FailedPrecondition(f"{process}: the pod's machine has ended: {self.ended}")

    def state_as_known(self, request: api.StateRequest) -> api.StateResponse | None:
        """Answer State for a process that has ended, or of which the host knows as much as the guest."""
        process = self.process(request)
        status = _KNOWN.get(process.state) if process.exit is None else types.STOPPED
        return None if status is None else self._state(process, status)

    def state(self, request: api.StateRequest, payload: bytes) -> api.StateResponse:
        """Take the state alone from the agent's answer."""
        answer = api.StateResponse.FromString(payload)
        if answer.status not in _STATUSES:
            raise ValueError(f"{answer.status} is no state of a process")
        process = self.process(request)
        if answer.status == types.STOPPED:
            self.note_exit(process, answer.exit_status, answer.exited_at)
        return self._state(process, answer.status)

    def _state(self, process: GuestProcess, status: types.Status) -> api.StateResponse:
        return state_of(process, self.container(process.container_id).bundle, status)

    def wait_for_ended(self, request: api.WaitRequest) -> api.WaitResponse | None:
        """Answer Wait for a process that has ended."""
        status = self.process(request).exit
        return None if status is None else waited_for(status)

    def waited(self, request: api.WaitRequest, payload: bytes) -> api.WaitResponse:
        """A process has ended."""
        answer = api.WaitResponse.FromString(payload)
        return waited_for(self.note_exit(self.process(request), answer.exit_status, answer.exited_at))

    def killable(self, request: api.KillRequest) -> None:
        """Refuse to signal what has ended, or with what is no signal."""
        process = self.process(request)
        if not 0 <= request.signal <= 64:
            raise InvalidArgument(f"{request.signal} is not a signal")
        if request.signal == signals.SIGKILL:
            self.expect_end(process)
        if process.exit is not None:
            raise NotFound(f"{process} has already finished")

    def kill_without_guest(self, request: api.KillRequest) -> Message:
        """All have ended with the machine."""
        raise NotFound(f"{self.process(request)} has already finished")

    def measurable(self, request: api.StatsRequest) -> None:
        """Refuse to measure what is not of this pod."""
        self.process(request)
        self.expect_figures()

    def stats(self, request: api.StatsRequest, payload: bytes) -> api.StatsResponse:
        """Pass figures on, if they are of a kind that engines know."""
        self.note_figures()
        answer = api.StatsResponse.FromString(payload)
        if answer.stats.type_url not in _STATS_TYPES:
            raise ValueError("the figures are of no known kind")
        if self.stats_as_v1 and answer.stats.type_url == _STATS_V2:
            from common.cgroup.stats_as_v1 import as_v1  # late: only some engines want it
            from proto.gen.cgroups.v2.metrics_pb2 import Metrics

            told = as_v1(Metrics.FromString(answer.stats.value))
            answer.stats.type_url, answer.stats.value = told.DESCRIPTOR.full_name, told.SerializeToString()
        return api.StatsResponse(stats=answer.stats)

    def stats_without_guest(self, request: api.StatsRequest) -> Message:
        """Nothing is left to measure, which engines skip."""
        raise NotFound(f"container {self.container(request.id).id} has no cgroup to measure")


_T = GuestTasks
_HANDED_ON = {
    "State": RelayedMethod(api.StateRequest, _T.state_as_known, _T.state, _T.state_as_known),
    "Wait": RelayedMethod(api.WaitRequest, _T.wait_for_ended, _T.waited, _T.wait_for_ended),
    "Kill": RelayedMethod(api.KillRequest, _T.killable, _T.empty, _T.kill_without_guest),
    "ResizePty": RelayedMethod(api.ResizePtyRequest, _T.known, _T.empty, _T.without_guest),
    "Pause": RelayedMethod(api.PauseRequest, _T.pausing, _T.empty, _T.without_guest),
    "Resume": RelayedMethod(api.ResumeRequest, _T.pausing, _T.empty, _T.without_guest),
    "Update": RelayedMethod(api.UpdateTaskRequest, _T.known, _T.empty, _T.without_guest),
    "Stats": RelayedMethod(api.StatsRequest, _T.measurable, _T.stats, _T.stats_without_guest),
}

GUEST_TASK_METHODS: Mapping[str, Method | RelayedMethod] = MappingProxyType(
    {
        "Create": Method(api.CreateTaskRequest, GuestTasks.create, journaled=True, repeatable=True),
        "Exec": Method(api.ExecProcessRequest, GuestTasks.exec, journaled=True, repeatable=True),
        "Start": Method(api.StartRequest, GuestTasks.start, journaled=True, repeatable=True),
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
