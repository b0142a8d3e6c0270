"""A guest as its host sees it, for the contract of agents: containers, streams, events and calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from common.readiness import wait_readable
from common.transport import Transport
from common.ttrpc import Client, StatusCode, StatusError
from proto.gen.containerd.task.v3 import shim_pb2 as task
from proto.gen.sandboxd.agent.v1 import agent_pb2 as api
from vmm.guest.client import GuestClient
from vmm.guest.reception import GuestEvent, Reception
from vmm.protocol import share_path, stream_uri

TIMEOUT_S = 60.0


TASK = "containerd.task.v3.Task"


TAG = "pod"


HOSTNAME = "a-pod"


Answer = TypeVar("Answer", bound=Message)


_serial = count(1)


_FIELDS = ("stdin", "stdout", "stderr")


def configuration(**changes: Any) -> api.ConfigureRequest:
    """What a host says first."""
    request = api.ConfigureRequest(
        sandbox_id="sandbox",
        hostname=HOSTNAME,
        hosts="127.0.0.1 localhost\n",
        resolv_conf="nameserver 192.0.2.1\n",
        shm_size_bytes=16 << 20,
        entropy=os.urandom(64),
    )
    for name, value in changes.items():
        if isinstance(value, list):
            getattr(request, name).extend(value)
        else:
            setattr(request, name, value)
    return request


class Guest:
    """One agent as its host sees it: the connections, the share, and the events in their order.

    `share` is the directory of the host that the guest has as the share `TAG`, `bundles` its path in the guest.
    """

    def __init__(self, transport: Transport, share: Path, bundles: str = share_path(TAG)) -> None:
        self.client = GuestClient(transport)
        self.reception = Reception(transport, self._on_event)
        self.share = share
        self.bundles = bundles
        self.events: list[GuestEvent] = []
        self._tasks: Client | None = None

    async def _on_event(self, event: GuestEvent) -> None:
        self.events.append(event)

    async def tasks(self) -> Client:
        """The connection for calls that a relay would pass on."""
        if self._tasks is None:
            self._tasks = Client(await self.client.open_tasks(TIMEOUT_S))
        return self._tasks

    async def call(self, method: str, request: Message, answer: type[Answer]) -> Answer:
        """Call the Task service."""
        return await (await self.tasks()).call(TASK, method, request, answer, timeout_s=TIMEOUT_S)

    async def event(self, kind: type[Message], **fields: Any) -> int:
        """Return the place in `events` of one with these fields, as soon as it is there."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                for index, event in enumerate(self.events):
                    if type(event) is kind and all(getattr(event, n) == v for n, v in fields.items()):
                        return index
                await asyncio.sleep(0.005)

    def bundle(
        self, container_id: str, args: Sequence[str], mounts: Sequence[dict[str, Any]] = (), **linux: Any
    ) -> str:
        """Make a bundle in the share, as the host's preparer does, and return its path in the guest."""
        directory = self.share / container_id
        root = directory / "rootfs"
        for name in ("bin", "proc", "dev", "etc", "tmp", "sys"):
            (root / name).mkdir(parents=True)
        shutil.copy2("/bin/busybox", root / "bin/busybox")
        for applet in (
            "sh",
            "cat",
            "echo",
            "sleep",
            "head",
            "tail",
            "hostname",
            "stty",
            "nc",
            "test",
            "dd",
            "yes",
            "ps",
            "ip",
        ):
            (root / "bin" / applet).symlink_to("busybox")
        spec = {
            "ociVersion": "1.0.2",
            "process": process(args),
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["newinstance", "ptmxmode=0666", "mode=0620"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"},
                *mounts,
            ],
            "linux": {
                "namespaces": [
                    {"type": "mount"},
                    {"type": "pid"},
                    *({"type": kind, "path": f"/proc/4711/ns/{name}"}
                      for kind, name in (("network", "net"), ("ipc", "ipc"), ("uts", "uts"))),
                ],
                "cgroupsPath": "/the/hosts/own",
                "resources": {"memory": {"limit": 64 << 20}, "cpu": {"shares": 100, "cpus": "900-901"}},
                **linux,
            },
        }  # fmt: skip
        (directory / "config.json").write_text(json.dumps(spec))
        return f"{self.bundles}/{container_id}"

    async def container(
        self, *args: str, streams: Sequence[str] = ("stdout", "stderr"), terminal: bool = False, **linux: Any
    ) -> Container:
        """Create a container that runs a command of its busybox."""
        container_id = f"c{next(_serial)}"
        made = Container(self, container_id)
        if terminal:
            linux["terminal"] = True
        is_terminal = linux.pop("terminal", False)
        bundle = self.bundle(container_id, args, **linux)
        if is_terminal:
            config = self.share / container_id / "config.json"
            spec = json.loads(config.read_text())
            spec["process"]["terminal"] = True
            config.write_text(json.dumps(spec))
        request = task.CreateTaskRequest(id=container_id, bundle=bundle, terminal=is_terminal)
        await made.open(streams, request)
        made.pid = (await self.call("Create", request, task.CreateTaskResponse)).pid
        return made

    async def output(self, *args: str, **linux: Any) -> tuple[int, bytes]:
        """Run a container to its end and return its exit code and what it wrote."""
        async with await self.container(*args, **linux) as container:
            await container.start()
            status = await container.wait()
            return status, await container.read_all("stdout")

    def close(self) -> None:
        """Drop the connections."""
        if self._tasks is not None:
            self._tasks.close()
        self.client.close()
        self.reception.close()


class Container:
    """A process of a container as a relay has it: its streams, and calls about it. `async with` deletes it."""

    def __init__(self, guest: Guest, container_id: str, exec_id: str = "") -> None:
        self.guest = guest
        self.id = container_id
        self.exec_id = exec_id
        self.pid = 0
        self.streams: dict[str, socket.socket] = {}

    def stream_id(self, name: str) -> str:
        """The id of one of its streams."""
        return f"{self.id}-{self.exec_id or 'init'}-{name}"

    async def open(
        self, names: Sequence[str], request: task.CreateTaskRequest | task.ExecProcessRequest
    ) -> None:
        """Open streams and name them in the request for the process."""
        for name in names:
            self.streams[name] = await self.guest.client.open_stream(self.stream_id(name), TIMEOUT_S)
            setattr(request, name, stream_uri(self.stream_id(name)))

    async def start(self) -> None:
        await self.guest.call(
            "Start", task.StartRequest(id=self.id, exec_id=self.exec_id), task.StartResponse
        )

    async def wait(self) -> int:
        request = task.WaitRequest(id=self.id, exec_id=self.exec_id)
        return (await self.guest.call("Wait", request, task.WaitResponse)).exit_status

    async def state(self) -> task.StateResponse:
        request = task.StateRequest(id=self.id, exec_id=self.exec_id)
        return await self.guest.call("State", request, task.StateResponse)

    async def kill(self, number: int = signal.SIGKILL) -> None:
        request = task.KillRequest(id=self.id, exec_id=self.exec_id, signal=number)
        await self.guest.call("Kill", request, Empty)

    async def delete(self) -> None:
        request = task.DeleteRequest(id=self.id, exec_id=self.exec_id)
        await self.guest.call("Delete", request, task.DeleteResponse)

    async def exec(
        self, *args: str, streams: Sequence[str] = ("stdout",), terminal: bool = False
    ) -> Container:
        """Register and start one more process."""
        added = Container(self.guest, self.id, f"e{next(_serial)}")
        request = task.ExecProcessRequest(id=self.id, exec_id=added.exec_id, terminal=terminal)
        await added.open(streams, request)
        request.spec.CopyFrom(AnyMessage(value=json.dumps({**process(args), "terminal": terminal}).encode()))
        await self.guest.call("Exec", request, Empty)
        await added.start()
        return added

    async def write(self, data: bytes, *, end: bool = True) -> None:
        """Write to its input; with `end` say that this was all."""
        await asyncio.get_running_loop().sock_sendall(self.streams["stdin"], data)
        if end:
            await self.guest.client.end_stream(self.stream_id("stdin"), len(data), TIMEOUT_S)

    async def read(self, name: str, size: int) -> bytes:
        """Read so many bytes of an output."""
        data = bytearray()
        async with asyncio.timeout(TIMEOUT_S):
            while len(data) < size:
                await wait_readable(self.streams[name])
                chunk = self.streams[name].recv(min(65536, size - len(data)))
                assert chunk, f"{name} ended after {len(data)} of {size} bytes"
                data += chunk
        return bytes(data)

    async def read_all(self, name: str) -> bytes:
        """Read an output up to the end that the guest tells."""
        place = await self.guest.event(api.StreamEnd, id=self.stream_id(name))
        end = self.guest.events[place]
        assert isinstance(end, api.StreamEnd)
        return await self.read(name, end.length)

    def close(self) -> None:
        """Close the streams, as the one who has read them does."""
        for stream in self.streams.values():
            stream.close()

    async def __aenter__(self) -> Container:
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(StatusError):
            await self.kill()
        with contextlib.suppress(StatusError):
            await self.wait()
            await self.delete()
        self.close()
        shutil.rmtree(self.guest.share / self.id, ignore_errors=True)


def process(args: Sequence[str]) -> dict[str, Any]:
    """An OCI process."""
    return {"args": list(args), "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}


def shell(script: str) -> tuple[str, ...]:
    """The arguments that run a script."""
    return ("sh", "-c", script)


@contextlib.asynccontextmanager
async def refused(code: StatusCode, words: str) -> AsyncIterator[None]:
    """The call in here is answered with this code and these words."""
    with pytest.raises(StatusError, match=words) as raised:
        yield
    assert raised.value.code == code
