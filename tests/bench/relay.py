"""The two ways to a container in a virtual machine: through the sandboxer's relay, and straight to the agent."""

import asyncio
import itertools
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from common.records import read_record
from common.transport import transport_of
from common.transport.hybrid import HybridTransport
from common.ttrpc import Client
from proto.gen.containerd.task.v3 import shim_pb2 as api
from tests.engine.engine import Engine
from tests.engine.qemu import machine_directory
from vmm.guest.client import GuestClient
from vmm.hypervisors.record import RECORD_FILE, MachineRecord
from vmm.protocol import TASK_SERVICE, stream_uri

VOLUME_BYTES = 100 << 20
WRITE = f"dd if=/dev/zero bs=32k count={VOLUME_BYTES >> 15} 2>/dev/null"
TIMEOUT_S = 300.0
_HYBRID = "hvsock://"


class Ways:
    """Both ways to one container; `ways_to` makes it."""

    def __init__(self, container: str, relay: Client, agent: Client, guest: GuestClient) -> None:
        self._container = container
        self._relay = relay
        self._agent = agent
        self._guest = guest
        self._serial = itertools.count(1)

    async def state_s(self, rounds: int) -> tuple[float, float]:
        """The median time of State on each way."""
        return await self._call_s("State", api.StateRequest(id=self._container), api.StateResponse, rounds)

    async def handed_on_s(self, rounds: int) -> tuple[float, float]:
        """The median time, on each way, of a call that only the guest can answer: whether the container lives."""
        return await self._call_s("Kill", api.KillRequest(id=self._container, signal=0), Empty, rounds)

    async def _call_s(
        self, method: str, request: Message, answer: type[Message], rounds: int
    ) -> tuple[float, float]:
        took: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):
            # They take turns.
            for times, client in zip(took, (self._relay, self._agent), strict=True):
                began = time.perf_counter()
                await client.call(TASK_SERVICE, method, request, answer, TIMEOUT_S)
                times.append(time.perf_counter() - began)
        return statistics.median(took[0]), statistics.median(took[1])

    async def into_fifo_s(self) -> float:
        """How long it takes until a FIFO has brought `VOLUME_BYTES` of a process in the container."""
        exec_id = f"fifo{next(self._serial)}"
        with tempfile.TemporaryDirectory() as directory:
            path = f"{directory}/stdout"
            os.mkfifo(path)
            reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                return await self._run(self._relay, exec_id, path, lambda: _read_all(reader))
            finally:
                os.close(reader)

    async def through_stream_s(self) -> float:
        """The same over the agent's own stream."""
        exec_id = f"raw{next(self._serial)}"
        with await self._guest.open_stream(exec_id, TIMEOUT_S) as sock:
            return await self._run(self._agent, exec_id, stream_uri(exec_id), lambda: _receive_all(sock))

    async def _run(self, client: Client, exec_id: str, stdout: str, read: Callable[[], None]) -> float:
        process = {
            "args": ["sh", "-c", WRITE],
            "cwd": "/",
            "env": ["PATH=/bin:/usr/bin"],
            "user": {"uid": 0, "gid": 0},
        }
        container = self._container
        request = api.ExecProcessRequest(id=container, exec_id=exec_id, stdout=stdout)
        request.spec.value = json.dumps(process).encode()
        await client.call(TASK_SERVICE, "Exec", request, Empty, TIMEOUT_S)
        began = time.perf_counter()
        start = api.StartRequest(id=container, exec_id=exec_id)
        await client.call(TASK_SERVICE, "Start", start, api.StartResponse, TIMEOUT_S)
        await asyncio.to_thread(read)
        took_s = time.perf_counter() - began
        wait = api.WaitRequest(id=container, exec_id=exec_id)
        await client.call(TASK_SERVICE, "Wait", wait, api.WaitResponse, TIMEOUT_S)
        delete = api.DeleteRequest(id=container, exec_id=exec_id)
        await client.call(TASK_SERVICE, "Delete", delete, api.DeleteResponse, TIMEOUT_S)
        return took_s


@asynccontextmanager
async def ways_to(engine: Engine, pod_id: str, container: str) -> AsyncIterator[Ways]:
    """Connect to a container on both ways."""
    machine = machine_directory(engine, pod_id)
    record, _ = read_record(str(machine / RECORD_FILE), MachineRecord)
    address = record.vsock
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        # The addresses of sockets have to be short.
        pod = Path(directory, "pod")
        pod.symlink_to(machine.parent)
        near = f"{pod}/machine/{Path(address).name}"
        guest = GuestClient(HybridTransport(near) if address.startswith(_HYBRID) else transport_of(address))
        async with (
            await Client.connect(f"{pod}/task.sock", TIMEOUT_S) as relay,
            Client(await guest.open_tasks(TIMEOUT_S)) as agent,
        ):
            yield Ways(container, relay, agent, guest)
        guest.close()


def _read_all(fd: int) -> None:
    os.set_blocking(fd, True)
    while os.read(fd, 1 << 20):
        pass


def _receive_all(sock: socket.socket) -> None:
    sock.setblocking(True)
    left = VOLUME_BYTES
    while left:
        received = len(sock.recv(1 << 20))
        if not received:
            raise ConnectionResetError(f"the stream has ended {left} bytes early")
        left -= received
