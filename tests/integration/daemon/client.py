"""What an engine does to a daemon: the Sandbox API over gRPC, the Task API over ttrpc, FIFOs and bundles."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from common.errors import Code
from common.ttrpc import Client, StatusError
from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2 as sandbox_api
from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2_grpc as sandbox_api_grpc
from proto.gen.containerd.task.v3 import shim_pb2 as api
from proto.gen.containerd.types import task_pb2 as types
from proto.gen.runtime.v1 import api_pb2 as cri
from tests.integration.daemon.lab import BASE, IMAGE, Daemon, Lab
from tests.integration.daemon.specs import container_spec, process_spec
from tests.integration.daemon.streams import Output, open_writer

TASK = "containerd.task.v3.Task"
CALL_TIMEOUT_S = 30.0

_ANSWERS: dict[str, tuple[type[Message], type[Message]]] = {
    "State": (api.StateRequest, api.StateResponse),
    "Create": (api.CreateTaskRequest, api.CreateTaskResponse),
    "Start": (api.StartRequest, api.StartResponse),
    "Delete": (api.DeleteRequest, api.DeleteResponse),
    "Pids": (api.PidsRequest, api.PidsResponse),
    "Pause": (api.PauseRequest, Empty),
    "Resume": (api.ResumeRequest, Empty),
    "Checkpoint": (api.CheckpointTaskRequest, Empty),
    "Kill": (api.KillRequest, Empty),
    "Exec": (api.ExecProcessRequest, Empty),
    "ResizePty": (api.ResizePtyRequest, Empty),
    "CloseIO": (api.CloseIORequest, Empty),
    "Update": (api.UpdateTaskRequest, Empty),
    "Wait": (api.WaitRequest, api.WaitResponse),
    "Stats": (api.StatsRequest, api.StatsResponse),
    "Connect": (api.ConnectRequest, api.ConnectResponse),
    "Shutdown": (api.ShutdownRequest, Empty),
}
TASK_METHODS = tuple(_ANSWERS)

STATES = {
    types.CREATED: "created",
    types.RUNNING: "running",
    types.STOPPED: "stopped",
    types.PAUSED: "paused",
}


@contextlib.contextmanager
def refused(code: Code, *said: str) -> Iterator[None]:
    """Expect a call to fail with a code, and with a text that contains every one of `said`."""
    try:
        yield
    except StatusError as error:
        number, text = error.code, error.message
    except grpc.aio.AioRpcError as error:
        number, text = error.code().value[0], error.details() or ""
    else:
        raise AssertionError(f"expected {code.name}, but the call succeeded")
    assert (Code(number).name, [part for part in said if part not in text]) == (code.name, []), text


class Controller:
    """The Sandbox API of a daemon on one channel, as an engine uses it."""

    def __init__(self, daemon: Daemon) -> None:
        self._channel = grpc.aio.insecure_channel(
            f"unix:{daemon.socket}",
            options=[
                ("grpc.max_send_message_length", 64 << 20),
                ("grpc.max_reconnect_backoff_ms", 100),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._stub = sandbox_api_grpc.ControllerStub(self._channel)

    async def __call__(self, method: str, sandbox_id: str, **fields: Any) -> Any:
        request = getattr(sandbox_api, f"Controller{method}Request")(sandbox_id=sandbox_id, **fields)
        return await getattr(self._stub, method)(request, timeout=CALL_TIMEOUT_S)

    def begin(self, method: str, sandbox_id: str) -> Any:
        """A call in progress, without a deadline."""
        request = getattr(sandbox_api, f"Controller{method}Request")(sandbox_id=sandbox_id)
        return getattr(self._stub, method)(request)

    async def close(self) -> None:
        await self._channel.close(grace=None)


class Task:
    """One connection to the Task service of a pod, as an engine opens it per container."""

    service = TASK

    def __init__(self, client: Client) -> None:
        self.client = client

    @classmethod
    async def connect(cls, lab: Lab, address: str) -> Self:
        path = lab.path(address.removeprefix("ttrpc+unix://"))
        # Through a descriptor: seen from here the path can be longer than a socket's may be.
        directory = os.open(path.parent, os.O_PATH)
        try:
            return cls(await Client.connect(f"/proc/self/fd/{directory}/{path.name}", timeout_s=20))
        finally:
            os.close(directory)

    async def __call__(self, method: str, *, timeout_s: float = CALL_TIMEOUT_S, **fields: Any) -> Any:
        request, answer = _ANSWERS[method]
        return await self.client.call(self.service, method, request(**fields), answer, timeout_s=timeout_s)


class Process:
    """A container's first process, or an exec: what an engine sees and does."""

    def __init__(self, task: Task, container_id: str, exec_id: str = "") -> None:
        self.task = task
        self.ids: dict[str, Any] = {"id": container_id, "exec_id": exec_id}
        self.stdout = Output()
        self.stderr = Output()
        self.stdin_path = ""
        self.stdin = -1

    async def start(self) -> int:
        """Start it, open the engine's end of stdin, return the pid."""
        self.read_again()
        answer = await self.task("Start", **self.ids)
        self.open_stdin()
        return int(answer.pid)

    def read_again(self) -> None:
        """Open the outputs again that an attempt before has ended."""
        self.stdout.open_again()
        self.stderr.open_again()

    def open_stdin(self) -> None:
        if self.stdin_path and self.stdin < 0:
            self.stdin = open_writer(self.stdin_path)

    def write(self, data: bytes) -> None:
        """Write to stdin what fits into its buffer."""
        self.open_stdin()
        assert os.write(self.stdin, data) == len(data)

    def close_stdin(self) -> None:
        """Close the engine's end of stdin; the daemon has one of its own until CloseIO."""
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1

    async def wait(self, timeout_s: float = CALL_TIMEOUT_S) -> int:
        """The exit status, once there is one."""
        answer = await self.task("Wait", timeout_s=timeout_s, **self.ids)
        assert answer.exited_at.seconds > 1_500_000_000
        return int(answer.exit_status)

    async def state(self) -> str:
        return STATES[(await self.task("State", **self.ids)).status]

    async def kill(self, signum: int, *, everything: bool = False) -> None:
        await self.task("Kill", **self.ids, signal=signum, all=everything)

    async def delete(self) -> Any:
        return await self.task("Delete", **self.ids)

    async def run(self) -> tuple[int, str]:
        """Start it; its exit status and everything on stdout."""
        await self.start()
        code = await self.wait()
        return code, (await self.stdout.end()).decode()

    def close(self) -> None:
        self.close_stdin()
        self.stdout.close()
        self.stderr.close()


class Container(Process):
    """A container with a bundle made here. `create` is up to the test, `remove` is done for it."""

    def __init__(self, pod: Pod, container_id: str, spec: dict[str, Any], streams: Sequence[str]) -> None:
        super().__init__(pod.task, container_id)
        self.pod = pod
        self.id = container_id
        self.pid = 0
        self.spec = spec
        self.directory = f"{BASE}/containers/{pod.id}/{container_id}"
        self.bundle = f"{self.directory}/bundle"
        self.upper = f"{self.directory}/upper"
        self._lab = pod.daemon.lab
        self._streams = streams
        self._serial = 0
        self.processes: list[Process] = [self]
        for name in ("bundle/rootfs", "upper", "work", "io"):
            self._lab.path(f"{self.directory}/{name}").mkdir(parents=True)
        self.write_spec()
        self.io = self._open_streams(self, "", streams)

    def path(self, inside: str) -> str:
        """Where a file of the container's root file system is in the upper layer, as seen from here."""
        return str(self._lab.path(f"{self.upper}/{inside.lstrip('/')}"))

    def write_spec(self) -> None:
        self._lab.path(f"{self.bundle}/config.json").write_text(json.dumps(self.spec))

    @property
    def rootfs(self) -> list[dict[str, Any]]:
        options = [
            "index=off",
            f"workdir={self.directory}/work",
            f"upperdir={self.upper}",
            f"lowerdir={IMAGE}",
        ]
        for kind in ("uid", "gid"):
            options += (
                f"{kind}map={entry['containerID']}:{entry['hostID']}:{entry['size']}"
                for entry in self.spec["linux"].get(f"{kind}Mappings", ())
            )
        return [{"type": "overlay", "source": "overlay", "options": options}]

    async def create(self, **changes: Any) -> int:
        """Send Create; the pid."""
        self.read_again()
        terminal = "terminal" in self._streams
        fields: dict[str, Any] = {"bundle": self.bundle, "rootfs": self.rootfs, "terminal": terminal}
        answer = await self.task("Create", id=self.id, **{**fields, **self.io, **changes})
        self.pid = int(answer.pid)
        return self.pid

    async def exec(
        self, *args: str, streams: Sequence[str] = ("stdout", "stderr"), register: bool = True, **process: Any
    ) -> Process:
        """Register one more process."""
        self._serial += 1
        exec_id = f"exec{self._serial}"
        new = Process(self.task, self.id, exec_id)
        self.processes.append(new)
        terminal = "terminal" in streams
        fields = self._open_streams(new, exec_id, streams)
        spec = AnyMessage(
            type_url="types.containerd.io/opencontainers/runtime-spec/1/Process",
            value=json.dumps(process_spec(args, terminal=terminal, **process)).encode(),
        )
        if register:
            await self.task("Exec", **new.ids, terminal=terminal, spec=spec, **fields)
        return new

    async def run_exec(self, *args: str, **process: Any) -> tuple[int, str]:
        """Run a command in the container: exit status and output; it is deleted again."""
        new = await self.exec(*args, **process)
        result = await new.run()
        await new.delete()
        return result

    async def remove(self) -> None:
        """Kill and delete it if it exists, and take the bundle away."""
        with contextlib.suppress(StatusError):
            await self.kill(9, everything=True)
        with contextlib.suppress(StatusError):
            await self.wait(timeout_s=20)
        with contextlib.suppress(StatusError):
            await self.delete()
        self.discard()

    def discard(self) -> None:
        """Close the streams and remove the files."""
        for process in self.processes:
            process.close()
        shutil.rmtree(self._lab.path(self.directory), ignore_errors=True)

    def _open_streams(self, process: Process, name: str, streams: Sequence[str]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for stream in streams:
            if stream == "terminal":
                continue
            path = f"{self.directory}/io/{name or self.id}-{stream}"
            fields[stream] = path
            os.mkfifo(self._lab.path(path), 0o700)
            if stream == "stdin":
                process.stdin_path = str(self._lab.path(path))
            else:
                getattr(process, stream).open(self._lab.path(path))
        return fields


class Pod:
    """A pod on a daemon. `containers` are removed with it."""

    task: Task

    def __init__(
        self,
        daemon: Daemon,
        controller: Controller,
        sandbox_id: str,
        config: cri.PodSandboxConfig,
        netns_path: str,
    ) -> None:
        self.daemon = daemon
        self.controller = controller
        self.id = sandbox_id
        self.config = config
        self.netns_path = netns_path
        self.pid = 0
        self.address = ""
        self.containers: list[Container] = []
        self._serial = 0
        self._connected = False

    @property
    def directory(self) -> str:
        """Where the daemon keeps it, as seen inside."""
        return f"{self.daemon.state_dir}/{self.id}"

    def file(self, name: str) -> Any:
        """A file in its directory, as seen from here."""
        return self.daemon.lab.path(f"{self.directory}/{name}")

    async def create(self) -> None:
        options = AnyMessage(type_url="runtime.v1.PodSandboxConfig", value=self.config.SerializeToString())
        await self.controller("Create", self.id, options=options, netns_path=self.netns_path)

    async def start(self) -> None:
        answer = await self.controller("Start", self.id)
        assert answer.version == 3
        self.pid, self.address = answer.pid, answer.address
        await self.connect()

    async def connect(self) -> None:
        """Open the connection to the Task service (again)."""
        if self._connected:
            self.task.client.close()
        self.task = await Task.connect(self.daemon.lab, self.address)
        self._connected = True
        for container in self.containers:
            for process in container.processes:
                process.task = self.task
        # So that it is accepted, not only queued.
        await self.task("Connect")

    def container(
        self,
        *args: str,
        streams: Sequence[str] = ("stdout", "stderr"),
        name: str = "",
        target: Container | None = None,
        changes: Mapping[str, Any] | None = None,
        **process: Any,
    ) -> Container:
        """A container that runs `args`, by default one that ends; nothing is sent yet.

        `changes` go into the linux part of its specification; `process` are keys of `process_spec`.
        """
        self._serial += 1
        container_id = name or f"{self.id}-c{self._serial}"
        spec = container_spec(
            self,
            container_id,
            args or ("true",),
            terminal="terminal" in streams,
            linux=changes or {},
            **process,
        )
        if target is not None:
            self._aim(spec, target)
        container = Container(self, container_id, spec, streams)
        self.containers.append(container)
        return container

    async def running(self, *args: str, **options: Any) -> Container:
        """A container that runs `args`, by default one that sleeps."""
        container = self.container(*(args or ("sleep", "1000")), **options)
        await container.create()
        await container.start()
        return container

    async def run(self, *args: str, **options: Any) -> tuple[int, str]:
        """Run `args` in a container of their own to the end: exit status and output."""
        container = self.container(*args, **options)
        await container.create()
        result = await container.run()
        await container.remove()
        self.containers.remove(container)
        return result

    async def remove(self) -> None:
        """Remove the containers and shut the pod down."""
        if self._connected and not self.task.client.closed:
            await asyncio.gather(*(container.remove() for container in self.containers))
        for container in self.containers:
            container.discard()
        await self.controller("Shutdown", self.id)
        self.disconnect()

    def disconnect(self) -> None:
        if self._connected:
            self.task.client.close()

    @staticmethod
    def _aim(spec: dict[str, Any], target: Container) -> None:
        for namespace in spec["linux"]["namespaces"]:
            if namespace["type"] == "pid":
                namespace["path"] = f"/proc/{target.pid}/ns/pid"
