"""The Task service of one pod as its client sees it: what runs in the pod's containers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, Final, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from common.errors import FailedPrecondition, Unavailable, error_of
from common.ttrpc import Client, ConnectionLost, StatusError
from proto.gen.containerd.task.v3 import shim_pb2 as api
from sandboxctl.pods import Pod

CALL_TIMEOUT_S: Final = 10.0
_SERVICE: Final = "containerd.task.v3.Task"
_PROCESS_TYPE: Final = "types.containerd.io/opencontainers/runtime-spec/1/Process"
_SCHEME: Final = "ttrpc+unix://"

AnswerT = TypeVar("AnswerT", bound=Message)


class Tasks:
    """A connection to the Task service of a pod."""

    def __init__(self, client: Client, pod: Pod) -> None:
        self._client = client
        self._pod = pod

    def process(self, container_id: str, exec_id: str = "") -> Process:
        """Return a container's first process, or an exec."""
        return Process(self, container_id, exec_id)

    async def call(
        self, method: str, request: Message, answer: type[AnswerT], timeout_s: float | None = CALL_TIMEOUT_S
    ) -> AnswerT:
        """Make a call; errors of the service come out as errors of the project.

        :raise Unavailable: the connection is lost.
        """
        try:
            return await self._client.call(_SERVICE, method, request, answer, timeout_s=timeout_s)
        except StatusError as error:
            raise error_of(error.code, error.message) from None
        except ConnectionLost as error:
            raise Unavailable(f"the connection to pod {self._pod.id} is lost: {error}") from None


class Process:
    """A process in a pod; every method raises as `Tasks.call` does."""

    def __init__(self, tasks: Tasks, container_id: str, exec_id: str) -> None:
        self._tasks = tasks
        self._ids: dict[str, Any] = {"id": container_id, "exec_id": exec_id}

    async def add(self, spec: dict[str, Any], streams: dict[str, str]) -> None:
        """Register an exec: its OCI `process`, and the FIFOs by the name of the stream."""
        value = AnyMessage(type_url=_PROCESS_TYPE, value=json.dumps(spec).encode())
        terminal = bool(spec["terminal"])
        request = api.ExecProcessRequest(**self._ids, terminal=terminal, spec=value, **streams)
        await self._tasks.call("Exec", request, Empty)

    async def start(self) -> int:
        """Start it, and return its pid."""
        return (await self._tasks.call("Start", api.StartRequest(**self._ids), api.StartResponse)).pid

    async def wait(self) -> int:
        """Return its exit code when it has ended."""
        answer = await self._tasks.call(
            "Wait", api.WaitRequest(**self._ids), api.WaitResponse, timeout_s=None
        )
        return answer.exit_status

    async def kill(self, signum: int) -> None:
        """Send it a signal; NotFound when it has ended."""
        await self._tasks.call("Kill", api.KillRequest(**self._ids, signal=signum), Empty)

    async def delete(self) -> None:
        """Forget it, with all that was made for it; FailedPrecondition while it runs."""
        await self._tasks.call("Delete", api.DeleteRequest(**self._ids), api.DeleteResponse)

    async def resize(self, width: int, height: int) -> None:
        """Set the size of its terminal, in characters."""
        await self._tasks.call(
            "ResizePty", api.ResizePtyRequest(**self._ids, width=width, height=height), Empty
        )

    async def close_stdin(self) -> None:
        """Let it read the end of its input after what was written."""
        await self._tasks.call("CloseIO", api.CloseIORequest(**self._ids, stdin=True), Empty)


@contextlib.asynccontextmanager
async def tasks_of(pod: Pod) -> AsyncIterator[Tasks]:
    """Connect to the Task service of a pod.

    :raise FailedPrecondition: the pod has none, since it does not run.
    :raise Unavailable: nobody listens, or we may not connect.
    """
    address = pod.record.address if pod.record else ""
    if not address.startswith(_SCHEME):
        raise FailedPrecondition(f"pod {pod.id} has no Task service: it is {pod.state}")
    path = address.removeprefix(_SCHEME)
    try:
        client = await Client.connect(path, CALL_TIMEOUT_S)
    except OSError as error:
        pod.daemon.require_reachable()
        raise Unavailable(
            f"pod {pod.id}, which is {pod.state}: cannot connect to {path}: {error.strerror}"
        ) from None
    async with client:
        yield Tasks(client, pod)
