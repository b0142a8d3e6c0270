"""containerd.services.sandbox.v1.Controller over gRPC: the engine's protocol on top of `SandboxRegistry`.

What each call must do and what engines make of the answers: engine contract section 2. The only place that
turns errors into gRPC codes.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from common.errors import Code, FailedPrecondition, InvalidArgument, Unavailable, status_of
from common.log import bound, get_logger
from common.oci.platform import architecture
from common.operations import Action, in_progress, operation
from common.ttrpc import CallObserver
from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2 as api
from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2_grpc as api_grpc
from proto.gen.grpc.health.v1.health_pb2_grpc import add_HealthServicer_to_server
from sandboxers.config import EngineKind
from sandboxers.garbage import Garbage
from sandboxers.health import Health
from sandboxers.pod_config import parse_create_request
from sandboxers.refusals import log_refusal
from sandboxers.registry import SandboxEntry, SandboxRegistry
from sandboxers.states import SandboxState
from sandboxers.task_list import TASKS_FIELD, parse_task_list

MAX_MESSAGE_BYTES = 16 << 20
_SERVICE = "containerd.services.sandbox.v1.Controller"
_TASK_API_VERSION = 3
_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}

log = get_logger()


class _SandboxRequest(Protocol):
    @property
    def sandbox_id(self) -> str: ...


RequestT = TypeVar("RequestT", bound=_SandboxRequest)
ResponseT = TypeVar("ResponseT")
Context = grpc.aio.ServicerContext[Any, Any]


def _at_the_edge(
    handler: Callable[[Controller, RequestT, Context], Awaitable[ResponseT]],
) -> Callable[[Controller, RequestT, Context], Coroutine[Any, Any, ResponseT]]:
    """Answer errors with their code and text, never a traceback."""

    @wraps(handler)
    async def answer(self: Controller, request: RequestT, context: Context) -> ResponseT:
        begun = time.monotonic()
        code = Code.CANCELLED
        try:
            self.require_open()
            response = await handler(self, request, context)
            code = Code.OK
            return response
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:
            code, text = status_of(error)
            if code is Code.INTERNAL:
                log.error("call.failed", sandbox_id=request.sandbox_id, method=handler.__name__, error=error)
            else:
                self.note_refusal(request.sandbox_id, code, text)
            await context.abort(_STATUS_CODES[code], text)
            raise
        finally:
            self.note_call(handler.__name__, code, time.monotonic() - begun)

    return answer


class Controller(api_grpc.ControllerServicer):
    """The Sandbox API of one daemon."""

    def __init__(
        self,
        registry: SandboxRegistry,
        garbage: Garbage | None = None,
        observer: CallObserver | None = None,
        engine: EngineKind = EngineKind.CONTAINERD,
    ) -> None:
        """:param observer: told of every call that was answered. :param engine: whose calls are expected."""
        self._registry = registry
        self._garbage = garbage
        self._observer = observer
        self._engine = engine
        self._closed = False

    def close(self) -> None:
        """Answer all parked Wait calls with UNAVAILABLE: any other end would tell the engine that its pods died."""
        self._closed = True
        self._registry.interrupt_waits(Unavailable("sandboxd is stopping: its pods go on, wait again"))

    def require_open(self) -> None:
        """Raise Unavailable, upon which engines try again, once the daemon is stopping."""
        if self._closed:
            raise Unavailable("sandboxd is stopping: try again")

    def note_refusal(self, sandbox_id: str, code: Code, text: str) -> None:
        """Write down what was refused, if the engine does not pass it on."""
        if self._engine is EngineKind.ISULAD:
            with bound(sandbox_id=sandbox_id):
                log_refusal(code, text)

    def note_call(self, method: str, code: Code, seconds: float) -> None:
        """Tell the observer, if there is one."""
        if self._observer is not None:
            self._observer(_SERVICE, method, code, seconds)

    def _require_engine(self, request: api.ControllerCreateRequest) -> None:
        """Refuse iSulad, which sends options without a type, where another engine is asked what it has forgotten."""
        if self._engine is not EngineKind.ISULAD and request.options.value and not request.options.type_url:
            error = "the engine is iSulad: set 'engine.kind' to isulad"
            log.error("engine.unexpected", sandbox_id=request.sandbox_id, error=error)
            raise FailedPrecondition(f"sandbox {request.sandbox_id}: {error}")

    @_at_the_edge
    async def Create(
        self, request: api.ControllerCreateRequest, context: Context
    ) -> api.ControllerCreateResponse:
        """Register a pod; its network exists already, nothing else does."""
        self._require_engine(request)
        pod = parse_create_request(request)
        with _operation(Action.SANDBOX_CREATE, request, context, pod=f"{pod.namespace}/{pod.name}"):
            await self._registry.create(pod)
        return api.ControllerCreateResponse(sandbox_id=request.sandbox_id)

    @_at_the_edge
    async def Start(
        self, request: api.ControllerStartRequest, context: Context
    ) -> api.ControllerStartResponse:
        """Make the pod and tell where its Task service listens."""
        with _operation(Action.SANDBOX_START, request, context):
            entry = await self._registry.start(request.sandbox_id)
        response = api.ControllerStartResponse(
            sandbox_id=entry.id,
            pid=entry.endpoint.pid,
            address=entry.endpoint.address,
            version=_TASK_API_VERSION,
        )
        response.created_at.FromNanoseconds(entry.created_at_ns)
        return response

    @_at_the_edge
    async def Platform(self, _: api.ControllerPlatformRequest, __: Context) -> api.ControllerPlatformResponse:
        """Tell the node's platform, whatever pod it is asked for: an engine may ask to see whether we are back."""
        response = api.ControllerPlatformResponse()
        response.platform.os = "linux"
        response.platform.architecture = architecture()
        return response

    @_at_the_edge
    async def Stop(self, request: api.ControllerStopRequest, context: Context) -> api.ControllerStopResponse:
        """Stop the pod; when this returns nobody holds its network namespace."""
        with _operation(Action.SANDBOX_STOP, request, context):
            await self._registry.stop(request.sandbox_id, request.timeout_secs)
        return api.ControllerStopResponse()

    @_at_the_edge
    async def Wait(self, request: api.ControllerWaitRequest, context: Context) -> api.ControllerWaitResponse:
        """Answer when the pod has ended."""
        entry = self._registry.entry(request.sandbox_id)
        await entry.end.wait()
        response = api.ControllerWaitResponse(exit_status=entry.exit_code)
        response.exited_at.FromNanoseconds(entry.exited_at_ns)
        return response

    @_at_the_edge
    async def Status(self, request: api.ControllerStatusRequest, _: Context) -> api.ControllerStatusResponse:
        """Tell all about the pod, from memory."""
        entry = self._registry.entry(request.sandbox_id)
        response = api.ControllerStatusResponse(
            sandbox_id=entry.id,
            pid=entry.endpoint.pid if entry.state is SandboxState.READY else 0,
            state="SANDBOX_READY" if entry.state is SandboxState.READY else "SANDBOX_NOTREADY",
            address=entry.endpoint.address,
            version=_TASK_API_VERSION,
        )
        response.created_at.FromNanoseconds(entry.created_at_ns)
        if entry.exit_code >= 0:
            response.exited_at.FromNanoseconds(entry.exited_at_ns)
        if request.verbose:
            details = _details(entry)
            if self._garbage is not None:
                details["garbage"] = self._garbage.figures
            response.info["info"] = json.dumps(details)
        return response

    @_at_the_edge
    async def Shutdown(
        self, request: api.ControllerShutdownRequest, context: Context
    ) -> api.ControllerShutdownResponse:
        """Remove the pod and all that was made for it; an unknown one is removed already."""
        with _operation(Action.SANDBOX_REMOVE, request, context):
            await self._registry.shutdown(request.sandbox_id)
        return api.ControllerShutdownResponse()

    @_at_the_edge
    async def Metrics(
        self, request: api.ControllerMetricsRequest, _: Context
    ) -> api.ControllerMetricsResponse:
        """Measure the pod's cgroup."""
        entry = self._registry.entry(request.sandbox_id)
        figures = entry.sandbox.metrics()
        response = api.ControllerMetricsResponse()
        response.metrics.id = entry.id
        response.metrics.timestamp.FromNanoseconds(time.time_ns())
        if figures is not None:
            response.metrics.data.type_url = figures.DESCRIPTOR.full_name
            response.metrics.data.value = figures.SerializeToString()
        return response

    @_at_the_edge
    async def Update(self, request: api.ControllerUpdateRequest, _: Context) -> api.ControllerUpdateResponse:
        """Accept changed pod resources and labels: the cgroups that enforce them are the kubelet's and the tasks'.

        A list of tasks tells which execs may be forgotten. Containers that are not in it stay: each gets its Delete,
        and an engine that has lost its list would kill them all.
        """
        entry = self._registry.entry(request.sandbox_id)
        for field in request.fields:
            if field.split(".", 1)[0] not in ("extensions", "labels"):
                raise InvalidArgument(f"sandbox {request.sandbox_id}: the field {field!r} cannot be updated")
        if TASKS_FIELD in request.fields:
            await entry.sandbox.forget_unlisted_execs(parse_task_list(request))
        return api.ControllerUpdateResponse()


def _operation(
    action: Action, request: _SandboxRequest, context: Context, pod: str = ""
) -> AbstractContextManager[None]:
    metadata = context.invocation_metadata() or ()
    return operation(action, request.sandbox_id, pod=pod, metadata=metadata)


def _details(entry: SandboxEntry) -> dict[str, Any]:
    pod = entry.pod
    return {
        "id": entry.id,
        "state": entry.state.value,
        "directory": entry.directory,
        "address": entry.endpoint.address,
        "pid": entry.endpoint.pid,
        "netNamespace": pod.netns_path,
        "cgroupParent": pod.cgroup_parent,
        "pod": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
        "operations": [each.as_data() for each in in_progress(entry.id)],
        **entry.sandbox.details(),
    }


async def serve(controller: Controller, socket_path: str, health: Health | None = None) -> grpc.aio.Server:
    """Listen on a unix socket that only root may use, and return the running server.

    A socket that an earlier daemon has left is replaced; the caller holds the lock of the type.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
        ]
    )
    api_grpc.add_ControllerServicer_to_server(controller, server)
    if health is not None:
        add_HealthServicer_to_server(health, server)
    if os.path.lexists(socket_path):
        os.unlink(socket_path)
    old_mask = os.umask(0o177)
    try:
        try:
            server.add_insecure_port(f"unix:{socket_path}")
        except RuntimeError as error:
            raise FailedPrecondition(f"cannot listen on {socket_path}: {error}") from error
        await server.start()
    finally:
        os.umask(old_mask)
    return server
