"""containerd.task.v3.Task: the one implementation, for every place where containers run.

What each call must do, and what the engine makes of the answers: engine contract sections 2.3 to 2.12 and 3.
One object serves one pod. State, Wait, Connect, Kill and Pids answer from memory and never wait for a
container that is busy; calls that change a container check its state table first.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType

from google.protobuf.empty_pb2 import Empty

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
from common.operations import Action
from common.task.backend import ContainerRequest
from common.task.calls import as_operation, created_event, deleted, deleted_event, state_of, waited_for
from common.task.container import Container
from common.task.pod import TaskPod
from common.task.states import DELETABLE, ContainerState, ProcessState, ProcessTrigger
from common.task.stdio import StdioSpec
from common.ttrpc import CallContext, Method
from proto.gen.containerd.events import task_pb2 as events
from proto.gen.containerd.task.v3 import shim_pb2 as api
from proto.gen.containerd.types import task_pb2 as types

_STATUS = MappingProxyType(
    {
        ProcessState.CREATED: types.CREATED,
        ProcessState.STARTING: types.CREATED,
        ProcessState.RUNNING: types.RUNNING,
        ProcessState.PAUSED: types.PAUSED,
        ProcessState.STOPPED: types.STOPPED,
    }
)

_NOT_STARTED = frozenset({ProcessState.CREATED, ProcessState.STARTING})


class TaskService(TaskPod):
    """The Task service of one pod."""

    __slots__ = ()

    @as_operation(Action.CONTAINER_CREATE)
    async def create(self, request: api.CreateTaskRequest, context: CallContext) -> api.CreateTaskResponse:
        """Prepare a container and make it; its first process waits for start. All or nothing."""
        container_id = check_identifier("container", request.id)
        if container_id in self.containers:
            made = self.containers[container_id]
            if context.replayed and made.state is ContainerState.READY and made.bundle == request.bundle:
                return api.CreateTaskResponse(pid=made.init.pid)
            raise AlreadyExists(f"container {container_id} exists already in this pod")
        if request.checkpoint:
            raise InvalidArgument(
                f"container {container_id} cannot be restored from a checkpoint: not supported"
            )
        stdio_spec = StdioSpec(request.terminal, request.stdin, request.stdout, request.stderr)
        rootfs = tuple(
            MountSpec(mount.type, mount.source, tuple(mount.options), mount.target)
            for mount in request.rootfs
        )
        container = await self.create_container(
            ContainerRequest(container_id, request.bundle, rootfs, stdio_spec)
        )
        self.parts.events.publish("/tasks/create", created_event(request, container.init.pid))
        return api.CreateTaskResponse(pid=container.init.pid)

    @as_operation(Action.CONTAINER_START, Action.EXEC_START)
    async def start(self, request: api.StartRequest, context: CallContext) -> api.StartResponse:
        """Start the first process, or an exec."""
        container = self.container(request.id)
        process = container.process(request.exec_id)
        prepared = container.ready()
        if context.replayed and process.pid and process.state not in _NOT_STARTED:
            if process.exit is not None and not process.exit.known:
                raise Unavailable(
                    f"{process} has run and ended while sandboxd was away: its exit code is lost"
                )
            return api.StartResponse(pid=process.pid)
        if request.exec_id:
            _require_thawed(container)
        process.advance(ProcessTrigger.START)
        try:
            if request.exec_id:
                await self.start_exec(container, process)
                self.parts.events.publish(
                    "/tasks/exec-started",
                    events.TaskExecStarted(
                        container_id=container.id, exec_id=request.exec_id, pid=process.pid
                    ),
                )
            else:
                self.save(container, starting=True)
                failpoint(Failpoint.CONTAINER_STARTING)
                await self.parts.backend.start(container.id, prepared)
                failpoint(Failpoint.CONTAINER_RUNNING)
                self.parts.events.publish(
                    "/tasks/start", events.TaskStart(container_id=container.id, pid=process.pid)
                )
        except BaseException:
            if process.state is ProcessState.STARTING:
                process.advance(ProcessTrigger.FAIL)
            raise
        finally:
            if process.exit is not None:
                self.publish_exit(process, process.exit)
        if process.state is ProcessState.STARTING:
            process.advance(ProcessTrigger.STARTED)
        if not request.exec_id:
            self.save_change(container, process, started=True)
            failpoint(Failpoint.CONTAINER_STARTED)
        return api.StartResponse(pid=process.pid)

    async def state(self, request: api.StateRequest, _: CallContext) -> api.StateResponse:
        """Tell all about a process; its stdio strings exactly as they came."""
        container = self.container(request.id)
        process = container.process(request.exec_id)
        return state_of(process, container.bundle, _STATUS[process.state])

    async def wait(self, request: api.WaitRequest, _: CallContext) -> api.WaitResponse:
        """Answer when the process has ended."""
        status = await self.container(request.id).process(request.exec_id).end.wait()
        return waited_for(status)

    async def connect(self, request: api.ConnectRequest, _: CallContext) -> api.ConnectResponse:
        """Tell the pid of a container; 0 for an unknown one, which is how the engine probes a task server."""
        container = self.containers.get(request.id)
        pid = container.init.pid if container is not None else 0
        return api.ConnectResponse(shim_pid=os.getpid(), task_pid=pid, version="3")

    async def kill(self, request: api.KillRequest, context: CallContext) -> Empty:
        """Send a signal to a process, or to all processes of a container; with 0 only ask whether it lives."""
        container = self.container(request.id)
        process = container.process(request.exec_id)
        if not 0 <= request.signal <= 64:
            raise InvalidArgument(f"{request.signal} is not a signal")
        try:
            everything = request.all and not request.exec_id
            await self.signal(container, process, request.signal, everything=everything)
        except NotFound:
            if not context.replayed:
                raise  # else the signal may be what has ended it
        failpoint(Failpoint.CONTAINER_SIGNALLED)
        return Empty()

    @as_operation(Action.CONTAINER_DELETE, Action.EXEC_DELETE)
    async def delete(self, request: api.DeleteRequest, _: CallContext) -> api.DeleteResponse:
        """Forget an exec, or take a container and all that was made for it away."""
        container = self.container(request.id)
        process = container.process(request.exec_id)
        if process.state not in DELETABLE:
            raise FailedPrecondition(f"cannot delete {process}: it is {process.state.value}; kill it first")
        if request.exec_id:
            self.forget_exec(container, process)
        else:
            await self.delete_container(container)
        response = deleted(process)
        if not request.exec_id:
            self.parts.events.publish("/tasks/delete", deleted_event(container.id, response))
        return response

    @as_operation(Action.EXEC_CREATE)
    async def exec(self, request: api.ExecProcessRequest, context: CallContext) -> Empty:
        """Register one more process; start runs it."""
        container = self.container(request.id)
        exec_id = check_identifier("exec", request.exec_id)
        self.parts.primer.prime()
        container.ready()
        if container.init.state is ProcessState.STOPPED:
            raise FailedPrecondition(f"cannot exec in container {container.id}: it has stopped")
        _require_thawed(container)
        if container.execs is not None and exec_id in container.execs:
            if context.replayed:
                return Empty()
            raise AlreadyExists(f"exec {exec_id} exists already in container {container.id}")
        stdio_spec = StdioSpec(request.terminal, request.stdin, request.stdout, request.stderr)
        self.add_exec(container, exec_id, stdio_spec, request.spec.value)
        self.parts.events.publish(
            "/tasks/exec-added", events.TaskExecAdded(container_id=container.id, exec_id=exec_id)
        )
        return Empty()

    async def resize_pty(self, request: api.ResizePtyRequest, _: CallContext) -> Empty:
        """Set the window size of a terminal, now or as soon as the process has one."""
        process = self.container(request.id).process(request.exec_id)
        if not process.stdio_spec.terminal:
            raise FailedPrecondition(f"{process} has no terminal")
        process.window = (request.width, request.height)
        if process.stdio is not None and process.stdio.terminal is not None:
            process.stdio.terminal.resize(*process.window)
        return Empty()

    async def close_io(self, request: api.CloseIORequest, _: CallContext) -> Empty:
        """Let the process read end-of-file after what the engine has written."""
        container = self.container(request.id)
        process = container.process(request.exec_id)
        if request.stdin:
            process.stdin_closed = True
            if process.exit is None:
                self.save_change(container, process, stdin_closed=True)
            if process.stdio is not None:
                process.stdio.close_stdin()
        return Empty()

    async def pids(self, request: api.PidsRequest, _: CallContext) -> api.PidsResponse:
        """List the processes of a container: never none, or a restarted engine would take it for leaked."""
        container = self.container(request.id)
        pids = self.pids_of(container) or [container.init.pid]
        return api.PidsResponse(processes=[types.ProcessInfo(pid=pid) for pid in pids])

    async def pause(self, request: api.PauseRequest, context: CallContext) -> Empty:
        """Freeze a running container."""
        container = self.container(request.id)
        if context.replayed and container.init.state is ProcessState.PAUSED:
            return Empty()
        container.init.require(ProcessTrigger.PAUSE)
        await self.parts.backend.pause(container.id, container.ready())
        if container.init.state is ProcessState.RUNNING:
            container.init.advance(ProcessTrigger.PAUSE)
            self.save_change(container, container.init, paused=True)
        self.parts.events.publish("/tasks/paused", events.TaskPaused(container_id=container.id))
        return Empty()

    async def resume(self, request: api.ResumeRequest, context: CallContext) -> Empty:
        """Thaw a paused container."""
        container = self.container(request.id)
        if context.replayed and container.init.state is ProcessState.RUNNING:
            return Empty()
        container.init.require(ProcessTrigger.RESUME)
        await self.parts.backend.resume(container.id, container.ready())
        if container.init.state is ProcessState.PAUSED:
            container.init.advance(ProcessTrigger.RESUME)
            self.save_change(container, container.init, paused=False)
        self.parts.events.publish("/tasks/resumed", events.TaskResumed(container_id=container.id))
        return Empty()

    async def stats(self, request: api.StatsRequest, _: CallContext) -> api.StatsResponse:
        """Measure a container's cgroup; NOT_FOUND where there is nothing to measure, which engines skip."""
        container = self.container(request.id)
        metrics = self.metrics_of(container)
        response = api.StatsResponse()
        response.stats.type_url = metrics.DESCRIPTOR.full_name
        response.stats.value = metrics.SerializeToString()
        return response

    async def update(self, request: api.UpdateTaskRequest, _: CallContext) -> Empty:
        """Apply new limits to a container."""
        container = self.container(request.id)
        prepared = container.ready()
        if not request.resources.value:
            raise InvalidArgument(f"the update of container {container.id} names no resources")
        await self.parts.backend.update(container.id, prepared, request.resources.value)
        return Empty()

    async def checkpoint(self, request: api.CheckpointTaskRequest, _: CallContext) -> Empty:
        """Not offered."""
        raise Unimplemented(f"container {request.id} cannot be checkpointed: not supported by this sandboxer")

    async def shutdown(self, request: api.ShutdownRequest, _: CallContext) -> Empty:
        """Do nothing: engines send it after deletes and failed creates, but the pod's life is the Controller's."""
        return Empty()


def _require_thawed(container: Container) -> None:
    """Raise FailedPrecondition where a process that joins the container would be frozen on its way."""
    if container.init.state is ProcessState.PAUSED:
        raise FailedPrecondition(f"cannot exec in container {container.id}: it is paused; resume it first")


TASK_METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "Create": Method(api.CreateTaskRequest, TaskService.create, journaled=True),
        "Start": Method(api.StartRequest, TaskService.start, journaled=True),
        "State": Method(api.StateRequest, TaskService.state),
        "Wait": Method(api.WaitRequest, TaskService.wait, journaled=True, repeatable=True),
        "Connect": Method(api.ConnectRequest, TaskService.connect),
        "Kill": Method(api.KillRequest, TaskService.kill, journaled=True),
        "Delete": Method(api.DeleteRequest, TaskService.delete, journaled=True),
        "Exec": Method(api.ExecProcessRequest, TaskService.exec, journaled=True),
        "ResizePty": Method(api.ResizePtyRequest, TaskService.resize_pty, journaled=True),
        "CloseIO": Method(api.CloseIORequest, TaskService.close_io, journaled=True),
        "Pids": Method(api.PidsRequest, TaskService.pids),
        "Pause": Method(api.PauseRequest, TaskService.pause, journaled=True),
        "Resume": Method(api.ResumeRequest, TaskService.resume, journaled=True),
        "Stats": Method(api.StatsRequest, TaskService.stats),
        "Update": Method(api.UpdateTaskRequest, TaskService.update, journaled=True),
        "Checkpoint": Method(api.CheckpointTaskRequest, TaskService.checkpoint),
        "Shutdown": Method(api.ShutdownRequest, TaskService.shutdown),
    }
)
"""Every method of the service. The messages of v2 are field by field those of v3, so one table serves both names."""

TASK_SERVICE_NAMES = ("containerd.task.v3.Task", "containerd.task.v2.Task")
