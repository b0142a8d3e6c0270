"""What iSulad does to a sandboxer and its tasks, call by call, and nothing that it does not (iSulad contract, 4.1)."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import string
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage

from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2 as sandbox_api
from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2_grpc as sandbox_api_grpc
from proto.gen.runtime.v1 import api_pb2 as cri
from tests.integration.daemon.client import Task
from tests.integration.daemon.lab import BASE, IMAGE, Daemon
from tests.integration.daemon.specs import container_spec, pod_config, process_spec
from tests.integration.daemon.streams import Output

RUNTIME = "io.containerd.sandboxd.v1"
GRAPH = f"{BASE}/isulad/lib"
STATE = f"{BASE}/isulad/run"
_EXEC_ID = string.ascii_letters + string.digits
_END_OF_OUTPUT_S = 2.0
# iSulad sets no deadlines; an emulated machine on a busy host takes its time.
_GUARD_S = 100.0


class Connection(Task):
    """The connection of one container: to the older name of the service, without metadata."""

    service = "containerd.task.v2.Task"

    async def __call__(self, method: str, *, timeout_s: float = _GUARD_S, **fields: Any) -> Any:
        return await super().__call__(method, timeout_s=timeout_s, **fields)


class Isulad:
    """The engine: one channel per sandboxer, and one call at a time but for Wait. `image` is a directory in the lab."""

    def __init__(self, daemon: Daemon, image: str) -> None:
        self.daemon = daemon
        self.image = image
        self._turn = asyncio.Lock()
        self._channel = grpc.aio.insecure_channel(
            f"unix:{daemon.socket}",
            options=[
                ("grpc.default_authority", "[::]"),
                ("grpc.max_reconnect_backoff_ms", 100),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._stub = sandbox_api_grpc.ControllerStub(self._channel)

    async def __call__(self, method: str, sandbox_id: str, **fields: Any) -> Any:
        request = getattr(sandbox_api, f"Controller{method}Request")(
            sandbox_id=sandbox_id, sandboxer=self.daemon.name, **fields
        )
        async with self._turn:
            return await getattr(self._stub, method)(request, timeout=_GUARD_S)

    async def until_platform(self, sandbox_id: str) -> None:
        """Ask for the platform again and again, as it does until a sandboxer is back, if not every 5 s."""
        async with asyncio.timeout(_GUARD_S):
            while True:
                try:
                    await self("Platform", sandbox_id)
                    return
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.05)

    def wait(self, sandbox_id: str) -> Any:
        """A Wait in progress."""
        request = sandbox_api.ControllerWaitRequest(sandbox_id=sandbox_id, sandboxer=self.daemon.name)
        return self._stub.Wait(request)

    async def close(self) -> None:
        await self._channel.close(grace=None)


class Sandbox:
    """A pod. `netns` is the name of a network namespace that exists; the pod's network is the host's without one."""

    def __init__(self, engine: Isulad, netns: str = "", *, pid: cri.NamespaceMode = cri.CONTAINER) -> None:
        self.engine = engine
        self.lab = engine.daemon.lab
        self.id = secrets.token_hex(32)
        self.netns_path = f"/var/run/netns/{netns}" if netns else ""
        self.pid = 0
        self.address = ""
        self.tasks: list[dict[str, Any]] = []
        self.containers: list[Container] = []
        self.directory = f"{GRAPH}/sandbox/{self.id}"
        self.config = pod_config(self.id[:12], network=cri.POD if netns else cri.NODE, pid=pid)
        self.config.hostname = "" if not netns else self.id
        self.config.labels.update({"cri.isulad.type": "podsandbox", "io.kubernetes.container.name": "POD"})
        self.config.annotations.update(
            {"io.kubernetes.cri.container-type": "sandbox", "cri.sandbox.isulad.checkpoint": "{}"}
        )
        self.config.linux.resources.cpu_shares = 2
        self.config.linux.resources.oom_score_adj = -998

    async def create(self) -> None:
        """Make what the pod's containers bind, and send Create: options without a type, no sandbox."""
        shm = f"{self.directory}/mounts/shm"
        self.lab.path(shm).mkdir(parents=True)
        self.lab.run("mount", "-t", "tmpfs", "-o", "mode=1777,size=64m", "shm", shm)
        for name, text in (("hostname", self.id), ("hosts", "127.0.0.1 localhost"), ("resolv.conf", "")):
            self.lab.path(f"{self.directory}/{name}").write_text(f"{text}\n")
        options = AnyMessage(type_url="", value=self.config.SerializeToString())
        await self.engine("Create", self.id, options=options, netns_path=self.netns_path)

    async def start(self) -> Any:
        answer = await self.engine("Start", self.id)
        assert answer.pid > 0
        self.pid, self.address = answer.pid, answer.address
        return answer

    async def update(self) -> None:
        """Send the list of all tasks, as pretty-printed JSON."""
        text = json.dumps({"tasks": self.tasks}, indent=4)
        sandbox: dict[str, Any] = {
            "sandbox_id": self.id,
            "sandboxer": self.engine.daemon.name,
            "runtime": {"name": RUNTIME},
            "labels": {"name": f"k8s_POD_{self.id[:12]}_default_uid_0"},
            "extensions": {
                "tasks": AnyMessage(type_url="github.com/containerd/containerd/Tasks", value=text.encode())
            },
        }
        await self.engine("Update", self.id, sandbox=sandbox, fields=["extensions.tasks"])

    async def running(self, *args: str) -> Container:
        """A container that was created and started."""
        container = Container(self, *args)
        await container.create()
        await container.start()
        return container

    async def remove(self) -> None:
        """Remove the pod and what is the engine's own. Idempotent."""
        await self.engine("Shutdown", self.id)
        for container in self.containers:
            container.discard()
        if self.lab.path(self.directory).exists():
            self.lab.run("umount", f"{self.directory}/mounts/shm")
            self.lab.run("rm", "-r", self.directory)


class Container:
    """A container of a pod: a bundle of the engine's, and a root that it mounts itself."""

    task: Connection

    def __init__(self, sandbox: Sandbox, *args: str) -> None:
        self.sandbox = sandbox
        self.lab = sandbox.lab
        self.id = secrets.token_hex(32)
        self.pid = 0
        self.bundle = f"{GRAPH}/engines/{RUNTIME}/{self.id}"
        self.directory = f"{GRAPH}/storage/overlay/{self.id}"
        self.root = f"{self.directory}/merged"
        self.io = f"{STATE}/{RUNTIME}/{self.id}"
        self.spec = container_spec(sandbox, self.id, args, linux={})
        self.spec["root"]["path"] = self.root
        self.spec["mounts"] = [m for m in self.spec["mounts"] if m["destination"] != "/dev/shm"]
        files = ("hostname", "hosts", "resolv.conf")
        binds = {f"/etc/{name}": f"{sandbox.directory}/{name}" for name in files}
        binds["/dev/shm"] = f"{sandbox.directory}/mounts/shm"
        self.spec["mounts"] += [
            {"destination": to, "type": "bind", "source": source, "options": ["rbind", "rprivate", "rw"]}
            for to, source in binds.items()
        ]
        self._connected = False
        self._serial = 0
        sandbox.containers.append(self)

    async def create(self) -> None:
        """Mount the root, write the bundle, announce the container, connect, and send Create."""
        for name in (self.bundle, self.io, *(f"{self.directory}/{n}" for n in ("upper", "work", "merged"))):
            self.lab.path(name).mkdir(parents=True)
        layers = f"lowerdir={self.sandbox.engine.image},upperdir={self.directory}/upper"
        options = f"index=off,{layers},workdir={self.directory}/work"
        self.lab.run("mount", "-t", "overlay", "-o", options, "overlay", self.root)
        self.lab.path(f"{self.bundle}/config.json").write_text(json.dumps(self.spec))
        self.sandbox.tasks.append(
            {
                "task_id": self.id,
                "spec": self.spec,
                "rootfs": [{"type": "bind", "source": self.root}],
                "stdin": "",
                "stdout": "",
                "stderr": "",
            }
        )
        await self.sandbox.update()
        await self.connect()
        answer = await self.task("Create", id=self.id, bundle=self.bundle)
        self.pid = answer.pid

    async def connect(self) -> None:
        """Open a connection of the container's own, again where the last one was lost."""
        self.disconnect()
        self.task = await Connection.connect(self.lab, self.sandbox.address)
        self._connected = True

    async def start(self) -> int:
        return int((await self.task("Start", id=self.id)).pid)

    def wait(self) -> asyncio.Task[Any]:
        """A Wait in progress."""
        return asyncio.create_task(self.task("Wait", id=self.id))

    async def kill(self, signum: int) -> None:
        await self.task("Kill", id=self.id, signal=signum)

    async def end(self) -> None:
        """Do what is done about a container that has ended."""
        await self.task("Delete", id=self.id)
        await self.task("Shutdown", id=self.id)
        self.unmount()

    async def purge(self) -> None:
        """Leave the container out of the list from now on."""
        self.sandbox.tasks[:] = [task for task in self.sandbox.tasks if task["task_id"] != self.id]
        await self.sandbox.update()

    async def begin_exec(self, *args: str) -> Exec:
        """Announce a process, register it and start it."""
        self._serial += 1
        execution = Exec(self, f"{self.io}/exec/{self._serial}", args)
        await execution.begin()
        return execution

    async def exec_sync(self, *args: str) -> tuple[int, bytes, bytes]:
        """Run a process to its end: code, output, errors. Nothing is ever deleted, nor is any stream closed."""
        execution = await self.begin_exec(*args)
        try:
            code = await execution.wait()
            await execution.purge()
            return code, *await execution.outputs()
        finally:
            execution.close()

    @property
    def entry(self) -> dict[str, Any]:
        """What the list says of it."""
        (entry,) = (task for task in self.sandbox.tasks if task["task_id"] == self.id)
        return entry

    def unmount(self) -> None:
        """Unmount the root. Idempotent."""
        if self.lab.is_mounted(self.root):
            self.lab.run("umount", self.root)

    def disconnect(self) -> None:
        if self._connected:
            self.task.client.close()
            self._connected = False

    def discard(self) -> None:
        """Take away the engine's own. Idempotent."""
        self.disconnect()
        self.unmount()
        self.lab.run("rm", "-rf", self.bundle, self.directory, self.io)


class Exec:
    """A process that is added to a container, with FIFOs for its outputs."""

    def __init__(self, container: Container, directory: str, args: tuple[str, ...]) -> None:
        self.container = container
        self.id = "".join(secrets.choice(_EXEC_ID) for _ in range(64))
        self.paths = {name: f"{directory}/{name[3:]}-fifo" for name in ("stdout", "stderr")}
        self.spec = process_spec(args)
        self._outputs = {name: Output() for name in self.paths}

    async def begin(self) -> None:
        """Make the FIFOs and open their ends, then Update, Exec and Start."""
        container = self.container
        for name, path in self.paths.items():
            inside = container.lab.path(path)
            inside.parent.mkdir(parents=True, exist_ok=True)
            os.mkfifo(inside, 0o600)
            self._outputs[name].open(inside)
        entry = {"exec_id": self.id, "spec": self.spec, "stdin": "", **self.paths}
        container.entry.setdefault("processes", []).append(entry)
        await container.sandbox.update()
        spec = AnyMessage(
            type_url="types.containerd.io/opencontainers/runtime-spec/1/Process",
            value=json.dumps(self.spec).encode(),
        )
        fields: dict[str, Any] = {"exec_id": self.id, "spec": spec, **self.paths}
        await container.task("Exec", id=container.id, **fields)
        await container.task("Start", id=container.id, exec_id=self.id)

    async def wait(self) -> int:
        answer = await self.container.task("Wait", id=self.container.id, exec_id=self.id)
        return int(answer.exit_status)

    async def purge(self) -> None:
        """Leave the process out of the list from now on."""
        left = [process for process in self.container.entry["processes"] if process["exec_id"] != self.id]
        self.container.entry["processes"] = left
        if not left:
            del self.container.entry["processes"]
        await self.container.sandbox.update()

    async def outputs(self) -> tuple[bytes, bytes]:
        """What came through both FIFOs until their ends, for which the engine would wait for ever."""
        stdout, stderr = [await output.end(_END_OF_OUTPUT_S) for output in self._outputs.values()]
        return stdout, stderr

    def close(self) -> None:
        for name, output in self._outputs.items():
            output.close()
            self.container.lab.path(self.paths[name]).unlink()


@asynccontextmanager
async def engine_of(
    daemon: Daemon, image: str = IMAGE, first: Sequence[str] = ("true",)
) -> AsyncIterator[Isulad]:
    """iSulad with a sandboxer that is configured for it; a first container has left what belongs to the sandboxer."""
    await daemon.start()
    isulad = Isulad(daemon, image)
    async with started(isulad) as sandbox:
        await sandbox.running(*first)
    yield isulad
    await isulad.close()
    assert daemon.stop() == 0
    daemon.remove()


@asynccontextmanager
async def pod_of(isulad: Isulad, **options: Any) -> AsyncIterator[Sandbox]:
    """A pod as of `started`, of which nothing may be left."""
    before = isulad.daemon.inventory()
    async with started(isulad, **options) as sandbox:
        yield sandbox
    await isulad.daemon.expect_nothing_more_than(before)


@asynccontextmanager
async def started(
    isulad: Isulad,
    *,
    pid: cri.NamespaceMode = cri.CONTAINER,
    set_up_network: Callable[[Sandbox], None] = lambda _: None,
) -> AsyncIterator[Sandbox]:
    """A pod in a network namespace that has its loopback device before Start, unless more is set up."""
    name = f"isulacni-{secrets.token_hex(8)}"
    with isulad.daemon.lab.network(name):
        sandbox = Sandbox(isulad, name, pid=pid)
        try:
            await sandbox.create()
            set_up_network(sandbox)
            await sandbox.start()
            yield sandbox
        finally:
            await sandbox.remove()
