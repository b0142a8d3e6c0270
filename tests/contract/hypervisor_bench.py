"""Machines of a hypervisor for its contract: what they boot, what is attached to them, and what they must leave."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from common.cgroup import Hierarchies
from common.failpoints import VARIABLE, Failpoint, arm
from common.process.exits import ExitWatcher
from common.transport import transport_of
from tests.children import children
from tests.node import BOOTS, SLOWER
from vmm.hypervisors.hypervisor import GuestExit, Hypervisor, VirtualMachine
from vmm.hypervisors.machine import BootConfig, Device, Place, Vsock

PORT = 1025


CHECKOUT = Path(__file__).parents[2]


# Emulated, on a machine that does something else as well.
BOOT_LIMIT_S = 120


LIMIT_S = 30 * SLOWER


SEEN_SOON_S = 20


MAC = "52:54:00:12:34:56"


STARTING = [point for point in Failpoint if point.value.startswith("machine.") and "stop" not in point.value]


ATTACHING = [Failpoint.DEVICE_RECORDED, Failpoint.DEVICE_BACKED, Failpoint.DEVICE_ATTACHED]


class Driver(Protocol):
    """A module that makes hypervisors of one kind, for tests here and for daemons of theirs that are killed."""

    def new_hypervisor(self, exits: ExitWatcher) -> Hypervisor: ...

    def boot_config(self) -> BootConfig: ...


class Guest:
    """The guest's side of a machine: asked over the connection that it has made."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def accept(cls, listener: socket.socket) -> Guest:
        sock, _ = await asyncio.get_running_loop().sock_accept(listener)
        return cls(*await asyncio.open_connection(sock=sock))

    async def ask(self, do: str, **arguments: Any) -> Any:
        """Return the guest's answer; RuntimeError with its words if it could not do that."""
        self.tell(do, **arguments)
        async with asyncio.timeout(LIMIT_S):
            answer = json.loads(await self._reader.readline())
        if "error" in answer:
            raise RuntimeError(f"{do}: {answer['error']}")
        return answer["value"]

    def tell(self, do: str, **arguments: Any) -> None:
        """Ask for something after which there may be nobody to answer."""
        self._writer.write(json.dumps({"do": do, **arguments}).encode() + b"\n")

    async def until(self, do: str, is_so: Callable[[Any], bool], **arguments: Any) -> Any:
        """Ask until the answer is as it should be: a guest sees what is attached a moment later."""
        answer: Any = None
        for _ in range(SEEN_SOON_S * 20):
            with contextlib.suppress(RuntimeError):
                answer = await self.ask(do, **arguments)
                if is_so(answer):
                    return answer
            await asyncio.sleep(0.05)
        raise AssertionError(f"{do} {arguments} is still {answer!r}")

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class Bench:
    """A daemon's view of a host: a hypervisor, and machines that are gone when the test ends."""

    def __init__(self, driver: Driver) -> None:
        self._children = children()
        self.driver = driver
        self.boot = driver.boot_config()
        self.exits = ExitWatcher()
        self.hypervisor = driver.new_hypervisor(self.exits)
        # Short: sockets are in there.
        self.root = Path(tempfile.mkdtemp(prefix="vm-"))
        self.machines: list[VirtualMachine] = []
        self.ends: list[GuestExit] = []
        self._listeners: dict[str, socket.socket] = {}
        self._closing = contextlib.AsyncExitStack()

    def directory(self, name: str, **files: str) -> Path:
        """Make a directory with these files in it."""
        path = self.root / name
        path.mkdir(mode=0o700)
        for file, text in files.items():
            (path / file).write_text(text)
        return path

    def disk(self, name: str) -> Path:
        path = self.root / name
        path.write_bytes(b"".ljust(1 << 20, b"."))
        return path

    def tap(self) -> tuple[str, int]:
        """Make a tap device, which is gone when nobody has it open; return its name and a descriptor."""
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        self._closing.callback(os.close, fd)
        # TUNSETIFF with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
        answer = fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"vmtest%d", 0x0002 | 0x1000 | 0x4000))
        name = answer[:16].rstrip(b"\0").decode()
        run_program("ip", "link", "set", name, "up")
        return name, fd

    def machine(self, name: str = "m", **place: Any) -> VirtualMachine:
        """Return a new machine with a directory of its own."""
        if not (self.root / name).exists():
            self.directory(name)
        machine = self.hypervisor.machine(Place(str(self.root / name), **place))
        self.machines.append(machine)
        return machine

    async def start(self, machine: VirtualMachine, *devices: Device, **boot: Any) -> None:
        await machine.start(replace(self.boot, **boot), devices, self.ends.append)

    def listen(self, machine: VirtualMachine) -> socket.socket:
        """Return where the machine's guest connects to: a host's own vsock has one place for all guests."""
        address = "vsock" if machine.vsock.startswith("vsock:") else machine.vsock
        if address not in self._listeners:
            self._listeners[address] = transport_of(machine.vsock).listen(PORT)
            self._closing.callback(self._listeners[address].close)
        return self._listeners[address]

    async def accept(self, machine: VirtualMachine, listener: socket.socket) -> Guest:
        """Return the guest when it has connected; if it does not, or its machine ends, tell what is known of it."""
        connecting = asyncio.ensure_future(Guest.accept(listener))
        ending = asyncio.ensure_future(machine.wait())
        either = asyncio.FIRST_COMPLETED
        done, pending = await asyncio.wait([connecting, ending], timeout=BOOT_LIMIT_S, return_when=either)
        for task in pending:
            task.cancel()
        if connecting not in done:
            console = Path(machine.console_path).read_text(errors="replace")
            pytest.fail(f"the guest does not connect: {machine.exit or machine.pids()}\n{console[-2000:]}")
        guest = connecting.result()
        self._closing.push_async_callback(guest.close)
        return guest

    async def booted(self, *devices: Device, **boot: Any) -> tuple[VirtualMachine, Guest]:
        """Start a machine with vsock and these devices, and wait until its guest answers."""
        for left in reversed(range(BOOTS)):
            machine = self.machine()
            listener = self.listen(machine)
            await self.start(machine, Vsock(), *devices, **boot)
            try:
                guest = await self.accept(machine, listener)
                break
            except pytest.fail.Exception as failure:
                if not left:
                    raise
                print(f"booted again: {failure}")
                await machine.stop(0)
                shutil.rmtree(self.root / "m")
                self.ends.clear()
        return machine, guest

    def processes(self) -> list[str]:
        """The command lines that name something of the bench, whoever started them."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(self.root) in line and int(pid) != os.getpid():
                    found.append(f"{pid} {line[:120]}")
        return found

    def left(self, name: str = "m") -> list[str]:
        """What is in a machine's directory."""
        return sorted(os.listdir(self.root / name))

    async def close(self) -> None:
        for machine in self.machines:
            await machine.stop(0)
            machine.close()
        await self._closing.aclose()
        self.hypervisor.close()
        # What was a child of a child is reaped by our own watcher, as a daemon's is.
        with contextlib.suppress(AssertionError):
            await until(lambda: not self.processes() and children() <= self._children)
        left = self.processes()
        self.exits.close()
        shutil.rmtree(self.root)
        assert left == []


def run_program(*command: str) -> None:
    subprocess.run(command, check=True)


def plain(device: Device) -> dict[str, Any]:
    fields = {name: getattr(device, name) for name in device.__dataclass_fields__}
    return {"kind": type(device).__name__, **fields}


@contextlib.contextmanager
def armed(failpoints: str) -> Iterator[None]:
    arm({VARIABLE: failpoints})
    try:
        yield
    finally:
        arm({})


@contextlib.contextmanager
def network_namespace() -> Iterator[str]:
    with subprocess.Popen(["unshare", "--net", "sleep", "600"]) as holder:
        try:
            own = os.readlink("/proc/self/ns/net")
            while os.readlink(path := f"/proc/{holder.pid}/ns/net") == own:
                pass
            yield path
        finally:
            holder.kill()


@contextlib.contextmanager
def cgroups_named(name: str) -> Iterator[tuple[str, ...]]:
    hierarchies = Hierarchies.read()
    names = [""] if hierarchies.unified else ["memory", "pids"]
    found = [hierarchies.directory(controller, f"/{name}-{os.getpid()}") for controller in names]
    directories = [directory for directory in found if directory]
    for directory in directories:
        os.mkdir(directory)
    try:
        yield tuple(directories)
    finally:
        for directory in directories:
            for _ in range(SEEN_SOON_S * 50):
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
                    break
                time.sleep(0.02)  # until its last process is reaped


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended and was reaped."""
    return not Path(f"/proc/{pid}").exists()


async def until(is_so: Callable[[], bool], limit_s: float = SEEN_SOON_S) -> None:
    for _ in range(int(limit_s * 50)):
        if is_so():
            return
        await asyncio.sleep(0.02)
    assert is_so()
