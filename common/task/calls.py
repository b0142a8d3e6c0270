"""What all Task services have in common, wherever the containers run: calls that change something are operations, seen
while they run and told of when they have ended; and what answers and events say of a process.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Protocol, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from common.operations import Action, operation
from common.process.exits import ExitStatus
from common.task.container import AnyProcess
from common.ttrpc import CallContext
from proto.gen.containerd.events import task_pb2 as events
from proto.gen.containerd.task.v3 import shim_pb2 as api
from proto.gen.containerd.types import task_pb2 as types

_LONGEST_ID = 100


class _OfPod(Protocol):
    sandbox_id: str


ServiceT = TypeVar("ServiceT", bound=_OfPod)
RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")
Handler = Callable[[ServiceT, RequestT, CallContext], Coroutine[Any, Any, ResponseT]]


def as_operation(
    action: Action, of_exec: Action | None = None
) -> Callable[[Handler[ServiceT, RequestT, ResponseT]], Handler[ServiceT, RequestT, ResponseT]]:
    """Let a handler of a pod's Task service be an operation; another one where its request names an exec."""

    def decorate(handler: Handler[ServiceT, RequestT, ResponseT]) -> Handler[ServiceT, RequestT, ResponseT]:
        @wraps(handler)
        async def call(self: ServiceT, request: RequestT, context: CallContext) -> ResponseT:
            named: Any = request
            exec_id = getattr(named, "exec_id", "")
            with operation(
                of_exec if exec_id and of_exec else action,
                self.sandbox_id,
                # Not checked yet: whatever the caller has sent.
                named.id[:_LONGEST_ID],
                exec_id[:_LONGEST_ID],
                metadata=context.metadata,
            ):
                return await handler(self, request, context)

        return call

    return decorate


def state_of(process: AnyProcess, bundle: str, status: types.Status) -> api.StateResponse:
    """Answer State: all about a process of a container with this bundle, its stdio strings exactly as they came."""
    stdio = process.stdio_spec
    response = api.StateResponse(
        id=process.container_id,
        exec_id=process.exec_id,
        bundle=bundle,
        pid=process.pid,
        status=status,
        stdin=stdio.stdin,
        stdout=stdio.stdout,
        stderr=stdio.stderr,
        terminal=stdio.terminal,
    )
    if process.exit is not None:
        response.exit_status = process.exit.code
        response.exited_at.FromNanoseconds(process.exit.exited_at_ns)
    return response


def waited_for(status: ExitStatus) -> api.WaitResponse:
    """Answer Wait."""
    return api.WaitResponse(exit_status=status.code, exited_at=_timestamp(status))


def deleted(process: AnyProcess) -> api.DeleteResponse:
    """Answer Delete, also of a process that was never started."""
    if process.exit is None:
        return api.DeleteResponse(pid=process.pid)
    return api.DeleteResponse(
        pid=process.pid, exit_status=process.exit.code, exited_at=_timestamp(process.exit)
    )


def created_event(request: api.CreateTaskRequest, pid: int) -> events.TaskCreate:
    """Return what the engine is told of a container that it has had made."""
    event = events.TaskCreate(container_id=request.id, bundle=request.bundle, rootfs=request.rootfs, pid=pid)
    event.io.CopyFrom(
        events.TaskIO(
            stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, terminal=request.terminal
        )
    )
    return event


def exit_event(process: AnyProcess, status: ExitStatus) -> events.TaskExit:
    """Return what the engine is told of an end."""
    return events.TaskExit(
        container_id=process.container_id,
        id=process.exec_id or process.container_id,
        pid=process.pid,
        exit_status=status.code,
        exited_at=_timestamp(status),
    )


def deleted_event(container_id: str, answer: api.DeleteResponse) -> events.TaskDelete:
    """Return what the engine is told of a container that it has had deleted, with this answer."""
    event = events.TaskDelete(container_id=container_id, pid=answer.pid, exit_status=answer.exit_status)
    event.exited_at.CopyFrom(answer.exited_at)
    return event


def _timestamp(status: ExitStatus) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromNanoseconds(status.exited_at_ns)
    return timestamp
