"""A pod's relay in front of an agent that answers as it likes: all in one process."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from common.descriptors.store import NoStore
from common.errors import status_of
from common.journal import ConnectionJournal
from common.task.service import TASK_SERVICE_NAMES
from common.ttrpc import CallContext, Client, Method, Server, Service, StatusCode, StatusError
from common.ttrpc.relay import RelayServer
from proto.gen.containerd.task.v3 import shim_pb2 as api
from proto.gen.containerd.types import task_pb2 as types
from sandboxers.vm.containers import PidSource
from sandboxers.vm.tasks import GUEST_TASK_METHODS, GuestTasks
from tests.unit.common.ttrpc.mortal_relay import connect_to
from tests.unit.sandboxers.vm.guest import Guest

SERVICE = TASK_SERVICE_NAMES[0]


TIMEOUT_S = 20.0


LATER = 4_000_000_000  # a time that has not come


class LyingAgent:
    """Says of everything what no agent should, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Message]] = []
        self.refusing = ""
        self.silent_on = ""
        self.go_on = asyncio.Event()
        self.figures = AnyMessage(type_url="google.protobuf.Any")
        self.ended = asyncio.Event()

    @property
    def methods(self) -> list[str]:
        return [method for method, _ in self.asked]

    async def answer(self, request: Message, context: CallContext) -> Message:
        self.asked.append((context.method, request))
        if context.method == self.refusing:
            raise StatusError(StatusCode.FAILED_PRECONDITION, "refused by the guest")
        answer: Message
        if context.method == self.silent_on:
            await self.go_on.wait()
        if context.method == "State":
            answer = api.StateResponse(
                id="another", bundle="/etc", pid=1, status=types.RUNNING, stdin="/etc/passwd", stdout="/etc/shadow",
                stderr="/etc/hosts", terminal=True, exec_id="another",
            )  # fmt: skip
        elif context.method == "Wait":
            await self.ended.wait()
            answer = api.WaitResponse(exit_status=0x100 + 7)
            answer.exited_at.seconds = LATER
        elif context.method in ("Create", "Start"):
            answer = api.CreateTaskResponse(pid=1)
        elif context.method == "Stats":
            answer = api.StatsResponse(stats=self.figures)
        elif context.method == "Delete":
            answer = api.DeleteResponse(pid=1, exit_status=0x100 + 7)
            answer.exited_at.seconds = LATER
        else:
            answer = Empty()
        return answer


AGENT_METHODS = {
    name: Method(method.request, LyingAgent.answer) for name, method in GUEST_TASK_METHODS.items()
}


class Preparer:
    """Prepares nothing, and remembers for whom."""

    def __init__(self) -> None:
        self.prepared: list[str] = []
        self.released: list[str] = []

    async def prepare(self, container_id: str, *_: object) -> None:
        self.prepared.append(container_id)

    async def release(self, container_id: str, disks: object) -> None:
        self.released.append(container_id)


class Sink:
    """An engine's ears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def publish(self, topic: str, event: Message) -> None:
        self.heard.append(topic)

    async def flush(self, timeout_s: float) -> None:
        pass

    def close(self) -> None:
        pass


class Pod:
    """A pod's Task service, its agent, and a client in the engine's place."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.guest, self.preparer, self.agent = Guest(), Preparer(), LyingAgent()
        self.sink = Sink()
        self.frozen: list[str] = []
        self.lost: list[str] = []
        self.outputs: list[int] = []
        self.tasks = self.new_tasks()
        self.far = Server({SERVICE: Service(AGENT_METHODS, self.agent)}, drops_repeats=True)
        self.relay = RelayServer(
            {SERVICE: Service(GUEST_TASK_METHODS, self.tasks)},
            links=ConnectionJournal(f"{directory}/journal", NoStore()),
            connect=lambda: connect_to(f"{directory}/far"),
            on_lost=self.lost.append,
            status_of=status_of,
        )
        for server, name in ((self.far, "far"), (self.relay, "near")):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(f"{directory}/{name}")
            listener.listen(8)
            server.listen(listener)

    def new_tasks(self) -> GuestTasks:
        return GuestTasks(
            "pod", f"{self.directory}/containers", self.guest, self.preparer, self.sink, NoStore(), PidSource(),  # type: ignore[arg-type]
            self.frozen.append,
        )  # fmt: skip

    async def connect(self) -> Client:
        return await Client.connect(f"{self.directory}/near", timeout_s=20)

    def end(self, reason: str = "the machine is gone") -> None:
        self.tasks.end(reason, time.time_ns())
        self.relay.bereave(reason)

    async def close(self) -> None:
        for server in (self.relay, self.far):
            server.close()
            await server.wait_closed()
        for container in self.tasks.containers.values():
            for process in container.processes():
                if process.streams is not None:
                    process.streams.close()
        self.guest.close()
        for fd in self.outputs:
            os.close(fd)


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Pod]:
    pod = Pod(tmp_path)
    yield pod
    await pod.close()


@pytest.fixture
async def engine(pod: Pod) -> AsyncIterator[Client]:
    async with await pod.connect() as client:
        yield client
