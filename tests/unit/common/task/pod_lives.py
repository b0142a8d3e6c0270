"""A pod's Task service with plain processes behind it, and the engine's side of it over real ttrpc."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from common.cgroup import Hierarchies, OomWatcher
from common.descriptors.store import DescriptorStore
from common.errors import Code, status_of
from common.oci.spec import PodView
from common.process.exit_log import ExitLog
from common.process.exits import ExitWatcher
from common.task.backend import TaskParts
from common.task.host_preparer import HostPreparer
from common.task.service import TASK_METHODS, TASK_SERVICE_NAMES, TaskService
from common.ttrpc import Client, Server, Service, StatusError
from proto.gen.containerd.task.v3 import shim_pb2 as api
from sandboxers.host.shared_memory import HostSharedMemory
from tests.contract.fake_backend import FakeBackend, RecordingSink

RESPONSES: dict[str, Any] = {
    "Create": api.CreateTaskResponse, "Start": api.StartResponse, "State": api.StateResponse,
    "Wait": api.WaitResponse, "Connect": api.ConnectResponse, "Delete": api.DeleteResponse,
    "Pids": api.PidsResponse, "Stats": api.StatsResponse,
}  # fmt: skip
REQUESTS: dict[str, Any] = {name: method.request for name, method in TASK_METHODS.items()}


class Life:
    """One life of a pod's Task service: parts, service, socket; a second one over the same directory recovers."""

    def __init__(
        self, directory: Path, store: DescriptorStore | None = None, log: ExitLog | None = None
    ) -> None:
        self.directory = directory
        self.backend = FakeBackend()
        self.sink = RecordingSink()
        # No cgroup hierarchy at all: these processes have no cgroups of their own that could be killed.
        self.parts = TaskParts(
            self.backend, ExitWatcher(log), self.sink, OomWatcher(), Hierarchies({}), store
        )
        self.service = TaskService("pod", self.parts, self.preparer(may_raise_limits=True), str(directory))
        self.path = directory / "task.sock"
        service = Service(TASK_METHODS, self.service)
        self.server = Server(dict.fromkeys(TASK_SERVICE_NAMES, service), status_of=status_of, authorize=None)

    def preparer(self, *, may_raise_limits: bool) -> HostPreparer:
        view = PodView({}, {}, "/dev/shm")
        return HostPreparer(
            lambda: view,
            HostSharedMemory(),
            f"{self.directory}/tasks",
            self.parts.hierarchies,
            may_raise_limits,
        )

    async def listen(self) -> Client:
        self.path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        sock.bind(str(self.path))
        sock.listen()
        self.server.listen(sock)
        return await Client.connect(str(self.path), timeout_s=20)

    def close(self) -> None:
        self.server.close()
        for container in self.service.containers.values():
            container.init.close()
            for process in (container.execs or {}).values():
                process.close()
        self.parts.ooms.close()
        self.parts.primer.close()
        self.parts.exits.close()


class Pod:
    """The engine's side of a pod."""

    def __init__(self, life: Life, client: Client, directory: Path) -> None:
        self.life = life
        self.client = client
        self.directory = directory
        self.outputs: list[int] = []

    async def call(self, method: str, service: str = TASK_SERVICE_NAMES[0], **fields: Any) -> Any:
        request = REQUESTS[method](**fields)
        return await self.client.call(service, method, request, RESPONSES.get(method, Empty), timeout_s=10)

    def bundle(self, container_id: str, args: list[str], **spec: Any) -> str:
        bundle = self.directory / "bundles" / container_id
        (bundle / "rootfs").mkdir(parents=True)
        process = {"args": args, "cwd": "/", "user": {"uid": os.getuid(), "gid": os.getgid()}}
        document = {
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": process,
            "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]},
            **spec,
        }
        (bundle / "config.json").write_text(json.dumps(document))
        return str(bundle)

    def fifo(self, name: str) -> str:
        path = str(self.directory / name)
        if not os.path.exists(path):
            os.mkfifo(path)
            self.outputs.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        return path

    async def create(self, container_id: str, *args: str, **fields: Any) -> Any:
        bundle = self.bundle(container_id, list(args))
        return await self.call("Create", id=container_id, bundle=bundle, **fields)

    async def run(self, container_id: str, *args: str, **fields: Any) -> int:
        await self.create(container_id, *args, **fields)
        return int((await self.call("Start", id=container_id)).pid)

    async def add_exec(self, container_id: str, exec_id: str, *args: str, **fields: Any) -> None:
        await self.call("Exec", id=container_id, exec_id=exec_id, spec=process(*args), **fields)

    async def refused(self, code: Code, method: str, text: str = "", **fields: Any) -> None:
        with pytest.raises(StatusError) as raised:
            await self.call(method, **fields)
        assert raised.value.code == code, raised.value.message
        assert text in raised.value.message


def process(*args: str) -> Any:
    spec = json.dumps({"args": list(args), "cwd": "/", "user": {"uid": os.getuid(), "gid": os.getgid()}})
    return AnyMessage(
        type_url="types.containerd.io/opencontainers/runtime-spec/1/Process", value=spec.encode()
    )


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Pod]:
    directory = tmp_path / "p"
    directory.mkdir()
    life = Life(directory)
    pod = Pod(life, await life.listen(), tmp_path)
    yield pod
    pod.client.close()
    pod.life.backend.failures.clear()
    await pod.life.service.delete_all()
    await asyncio.sleep(0.12)  # until the last processes are reaped
    pod.life.close()
    await asyncio.sleep(0)
    for fd in pod.outputs:
        os.close(fd)
