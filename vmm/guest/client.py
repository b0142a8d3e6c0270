"""Calling the agent of one guest: the control connection, streams, and connections for the relay.

Each call races the answer, its deadline, and the death of the VM, which whoever watches the VM tells by `lose`.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Coroutine
from typing import Any, Final, NamedTuple, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from common.errors import DeadlineExceeded, SandboxdError, Unavailable, error_of
from common.transport import Transport
from common.transport.streams import receive_line
from common.ttrpc import Client, ConnectionLost, StatusError
from proto.gen.sandboxd.agent.v1 import agent_pb2 as api
from vmm.guest.reception import printable
from vmm.protocol import (
    ACCEPTED,
    OPENING_LIMIT_BYTES,
    SANDBOX_SERVICE,
    STREAM_PORT,
    TASK_PORT,
    TASK_SERVICE,
    open_port_line,
    open_stream_line,
    share_path,
)

CLOCK_TOLERANCE_NS: Final = 5_000_000
_CLOCK_ATTEMPTS = 5

Answer = TypeVar("Answer", bound=Message)
Result = TypeVar("Result")


class ClockReading(NamedTuple):
    """How far a guest's clock was off before it was set, and how far it may be off now."""

    drift_ns: int
    uncertainty_ns: int
    source: str


class GuestClient:
    """One guest's agent. Connects when it is first needed, and again when the connection was lost."""

    __slots__ = ("_connecting", "_control", "_lost", "_opening", "transport")

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._control: Client | None = None
        self._connecting: asyncio.Lock | None = None
        self._lost: SandboxdError | None = None
        self._opening: set[asyncio.Task[Any]] | None = None

    # -- the VM's death ----------------------------------------------------------------------------

    def lose(self, reason: str) -> None:
        """The VM is dead: every call in progress, and every later one, raises Unavailable with this reason."""
        if self._lost is None:
            self._lost = Unavailable(reason)
        self.close()

    def close(self) -> None:
        """Drop the control connection, and give up what is being connected. Idempotent."""
        for task in self._opening or ():
            task.cancel()
        if self._control is not None:
            self._control.close()
            self._control = None

    # -- connections -------------------------------------------------------------------------------

    async def open_tasks(self, timeout_s: float) -> socket.socket:
        """Return a new connection to the guest's Task service, for frames that are passed on as they are."""
        return await self._race(self.transport.connect(TASK_PORT, timeout_s), timeout_s)

    async def open_stream(self, stream_id: str, timeout_s: float) -> socket.socket:
        """Return the connection of a stream that a Create or Exec will name (`stream_uri`)."""
        return await self._race(self._open(open_stream_line(stream_id), timeout_s), timeout_s)

    async def open_port(self, port: int, timeout_s: float) -> socket.socket:
        """Return a connection to a TCP port of the pod."""
        return await self._race(self._open(open_port_line(port), timeout_s), timeout_s)

    async def _open(self, line: bytes, timeout_s: float) -> socket.socket:
        sock = await self.transport.connect(STREAM_PORT, timeout_s)
        try:
            sock.send(line)
            answer = await receive_line(sock, OPENING_LIMIT_BYTES)
            if answer + b"\n" != ACCEPTED:
                raise Unavailable(
                    f"the guest refuses {line.decode().strip()}: {printable(answer.decode('latin-1'))}"
                )
        except BaseException:
            sock.close()
            raise
        return sock

    async def _race(self, coroutine: Coroutine[Any, Any, Result], timeout_s: float) -> Result:
        """Await what connects, until the deadline or the VM's death."""
        if self._lost is not None:
            coroutine.close()
            raise self._lost
        task = asyncio.ensure_future(coroutine)
        if self._opening is None:
            self._opening = set()
        self._opening.add(task)
        try:
            async with asyncio.timeout(timeout_s):
                return await task
        except TimeoutError as error:
            text = str(error) or f"the guest does not answer within {timeout_s:g} s"
            raise DeadlineExceeded(text) from None
        except asyncio.CancelledError:
            if self._lost is not None:
                raise self._lost from None
            raise
        except OSError as error:
            raise self._failure(f"cannot connect to the guest's agent: {error}") from None
        finally:
            task.cancel()
            self._opening.discard(task)

    # -- calls -------------------------------------------------------------------------------------

    async def configure(self, request: api.ConfigureRequest, timeout_s: float) -> None:
        """Make the guest the pod's: host name, files, network, shares, and roughly the clock."""
        request.clock_ns = time.time_ns()
        await self._call("Configure", request, Empty, timeout_s)

    async def set_clock(self, timeout_s: float) -> ClockReading:
        """Set the guest's clock to this host's, and tell by how much it was off.

        Repeated until an answer comes fast enough to vouch for `CLOCK_TOLERANCE_NS`; the best of a few otherwise.
        """
        first_drift_ns: int | None = None
        best_ns = -1
        for _ in range(_CLOCK_ATTEMPTS):
            sent_ns = time.monotonic_ns()
            request = api.SetClockRequest(clock_ns=time.time_ns())
            answer = await self._call("SetClock", request, api.SetClockResponse, timeout_s)
            took_ns = time.monotonic_ns() - sent_ns
            if first_drift_ns is None:
                first_drift_ns = answer.drift_ns
            best_ns = took_ns
            if took_ns <= CLOCK_TOLERANCE_NS or answer.source != "host":
                break
        return ClockReading(first_drift_ns or 0, best_ns, printable(answer.source))

    async def add_interface(self, interface: api.Interface, timeout_s: float) -> None:
        """Set up a network device, which may be on its way still."""
        await self._call("AddInterface", interface, Empty, timeout_s)

    async def remove_interface(self, mac: str, timeout_s: float) -> None:
        """Let go of a network device that is about to be unplugged."""
        await self._call("RemoveInterface", api.RemoveInterfaceRequest(mac=mac), Empty, timeout_s)

    async def mount_share(self, tag: str, timeout_s: float, *, read_only: bool = False) -> str:
        """Mount a virtiofs share and return its path in the guest."""
        await self._call("MountShare", api.MountShareRequest(tag=tag, read_only=read_only), Empty, timeout_s)
        return share_path(tag)

    async def unmount_share(self, tag: str, timeout_s: float) -> None:
        """Unmount a share."""
        await self._call("UnmountShare", api.UnmountShareRequest(tag=tag), Empty, timeout_s)

    async def find_disk(self, serial: str, timeout_s: float) -> api.FindDiskResponse:
        """Return the node and the device numbers of a disk, which may be on its way still."""
        return await self._call(
            "FindDisk", api.FindDiskRequest(serial=serial), api.FindDiskResponse, timeout_s
        )

    async def online(self, cpus: int, memory_bytes: int, timeout_s: float) -> api.OnlineResponse:
        """Use what was plugged in; 0: whatever there is."""
        request = api.OnlineRequest(cpus=cpus, memory_bytes=memory_bytes)
        return await self._call("Online", request, api.OnlineResponse, timeout_s)

    async def stats(self, timeout_s: float) -> api.StatsResponse:
        """Return the guest's own figures."""
        return await self._call("Stats", Empty(), api.StatsResponse, timeout_s)

    async def end_stream(self, stream_id: str, length: int, timeout_s: float) -> None:
        """Say that a stream to the guest ends after so many bytes."""
        await self._call("EndStream", api.StreamEnd(id=stream_id, length=length), Empty, timeout_s)

    async def shutdown(self, timeout_s: float) -> None:
        """Ask the guest to end; returns when it has answered, or is gone."""
        try:
            await self._call("Shutdown", Empty(), Empty, timeout_s)
        except Unavailable:
            return

    async def call_task(
        self, method: str, request: Message, answer: type[Answer], timeout_s: float
    ) -> Answer:
        """Call a method of the guest's Task service for the host itself."""
        return await self._call(method, request, answer, timeout_s, TASK_SERVICE)

    async def _call(
        self,
        method: str,
        request: Message,
        answer: type[Answer],
        timeout_s: float,
        service: str = SANDBOX_SERVICE,
    ) -> Answer:
        control = await self._connect(timeout_s)
        try:
            return await control.call(service, method, request, answer, timeout_s=timeout_s)
        except ConnectionLost as error:
            raise self._failure(f"the guest's agent is gone during {method}: {error}") from None
        except StatusError as error:
            text = f"the guest's agent on {method}: {printable(error.message)}"
            raise error_of(error.code, text) from None

    def _failure(self, text: str) -> SandboxdError:
        return self._lost or Unavailable(text)

    async def _connect(self, timeout_s: float) -> Client:
        if self._lost is not None:
            raise self._lost
        if self._connecting is None:
            self._connecting = asyncio.Lock()
        async with self._connecting:
            if self._control is None or self._control.closed:
                self._control = Client(await self.open_tasks(timeout_s))
            return self._control
