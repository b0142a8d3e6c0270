"""The agent as PID 1 of a guest: the suite, and what only a machine has."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from common.errors import Unavailable
from common.process.exits import ExitWatcher
from common.transport import transport_of
from common.transport.streams import connect_unix
from common.ttrpc import StatusCode
from proto.gen.containerd.task.v3 import shim_pb2 as task
from proto.gen.sandboxd.agent.v1 import agent_pb2 as api
from tests.bench.census import cpu_ns
from tests.contract.agent import AgentContract
from tests.contract.guest import TAG, TIMEOUT_S, Guest, configuration, refused, shell
from tests.guest_image import guest_image
from tests.vm.qemu import new_hypervisor
from tests.vm.tap import Tap
from vmm.guest.reception import Announcement
from vmm.hypervisors.hypervisor import ExitReason, GuestExit, VirtualMachine
from vmm.hypervisors.machine import BootConfig, Device, Disk, NetworkInterface, Place, Share, Vsock
from vmm.image import manifest
from vmm.protocol import TASK_PORT

MEMORY_MIB = 256
BOOT_TIMEOUT_S = 120.0
ENGINE_TIMEOUT_S = 10.0
"""Containerd's for all that it does about the end of a container (internal/cri/server/events.go)."""
MAC = "52:54:00:12:34:56"
GATEWAY_MAC = "52:54:00:00:00:01"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


class MachineGuest(Guest):
    """A guest in a machine of its own."""

    machine: VirtualMachine
    announcement: Announcement
    directory: Path


async def _idle(pid: int) -> None:
    """Wait until a process has done nothing for half a second."""
    before_ns = -1
    while (now_ns := cpu_ns(pid)) != before_ns:
        before_ns = now_ns
        await asyncio.sleep(0.5)


@contextlib.contextmanager
def _stopped_share(guest: MachineGuest) -> Iterator[None]:
    """Meanwhile the host does not answer for its files."""
    parent = guest.machine.pids()[f"share-{TAG}"]
    children = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    for pid in children:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in children:
            os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def booted(devices: Sequence[Device] = (), **changes: Any) -> AsyncIterator[MachineGuest]:
    """A guest that was told what it is."""
    image = manifest.load(guest_image())
    directory = Path(tempfile.mkdtemp(prefix="sandboxd-vm-"))
    share = directory / "share"
    share.mkdir()
    exits = ExitWatcher()
    hypervisor = new_hypervisor(exits)
    machine = hypervisor.machine(Place(str(directory)))
    guest = MachineGuest(transport_of(machine.vsock), share)
    guest.machine, guest.directory = machine, directory

    def on_exit(status: GuestExit) -> None:
        guest.reception.lose(Unavailable(status.message))
        guest.client.lose(status.message)

    boot = BootConfig(
        kernel=str(image.kernel),
        root_image=str(image.root),
        initrd=str(image.ramdisk or ""),
        kernel_arguments=image.command_line(["quiet"]),
        memory_mib=MEMORY_MIB,
    )
    try:
        await machine.start(boot, [Vsock(), Share(TAG, str(share)), *devices], on_exit)
        guest.announcement = await guest.reception.announcement(BOOT_TIMEOUT_S)
        shares = [api.MountShareRequest(tag=TAG)]
        await guest.client.configure(configuration(shares=shares, **changes), TIMEOUT_S)
        await guest.tasks()
        yield guest
    finally:
        print(Path(machine.console_path).read_text(errors="replace")[-4000:])
        await machine.stop(0)
        guest.close()
        hypervisor.close()
        exits.close()
        shutil.rmtree(directory)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest() -> AsyncIterator[MachineGuest]:
    """One machine for all tests here that leave it as it was."""
    async with booted() as guest:
        yield guest


class TestAgent(AgentContract):
    """The suite."""


@pytest.mark.asyncio(loop_scope="module")
class TestMachine:
    """What a plain process cannot be asked for."""

    async def test_it_says_what_it_runs_on(self, guest: MachineGuest) -> None:
        told = guest.announcement
        assert told.kernel_release == manifest.load(guest_image()).manifest.kernel_release
        assert (told.cpus, told.clock_source) == (1, "host")
        assert 0 < told.exec_ns < told.ready_ns
        assert MEMORY_MIB // 2 << 20 < told.memory_bytes <= MEMORY_MIB << 20

    async def test_a_host_that_gives_up_connecting_does_no_harm(self, guest: MachineGuest) -> None:
        for _ in range(20):
            with contextlib.suppress(TimeoutError):
                (await guest.client.transport.connect(TASK_PORT, 0.0)).close()
        await guest.client.stats(TIMEOUT_S)
        (await guest.client.transport.connect(TASK_PORT, TIMEOUT_S)).close()
        await _idle(guest.machine.pids()["vsock"])

    async def test_a_container_whose_files_are_stuck_holds_up_nobody_and_is_deleted(
        self, guest: MachineGuest
    ) -> None:
        count = "cd /guest/1/task; while read _; do set -- *; echo $#; done"
        proc = {"type": "bind", "source": "/proc", "destination": "/guest", "options": ["bind", "ro"]}
        async with (
            await guest.container(*shell(count), streams=("stdin", "stdout"), mounts=[proc]) as counter,
            await guest.container("echo", "out") as container,
        ):

            async def threads() -> bytes:
                await counter.write(b"\n", end=False)
                return await counter.read("stdout", 2)

            await counter.start()
            await container.start()
            assert await container.wait() == 0
            assert await threads() == b"1\n"
            with _stopped_share(guest):
                async with asyncio.timeout(ENGINE_TIMEOUT_S):
                    deleting = asyncio.ensure_future(container.delete())
                    while await threads() == b"1\n":
                        assert not deleting.done()
                    await guest.client.stats(TIMEOUT_S)
                    assert not deleting.done()
                    await deleting
                assert await threads() == b"2\n"
                again = task.CreateTaskRequest(id=container.id, bundle=f"{guest.bundles}/{container.id}")
                async with refused(StatusCode.FAILED_PRECONDITION, "are still open"):
                    await guest.call("Create", again, task.CreateTaskResponse)
            while await threads() == b"2\n":
                pass

    async def test_a_sleeping_container_leaves_the_guest_most_of_its_memory(
        self, guest: MachineGuest
    ) -> None:
        async with await guest.container("sleep", "1000") as container:
            await container.start()
            stats = await guest.client.stats(TIMEOUT_S)
            assert stats.memory_total_bytes - stats.memory_available_bytes < 64 << 20

    async def test_a_disk_that_is_plugged_in_is_found_by_its_serial(self, guest: MachineGuest) -> None:
        image = guest.directory / "disk"
        image.write_bytes(b"on the disk".ljust(1 << 20, b"\0"))
        finding = asyncio.ensure_future(guest.client.find_disk("volume-1", TIMEOUT_S))
        await guest.machine.attach(Disk("volume-1", str(image)))
        disk = await finding
        assert disk.path.startswith("/dev/vd")
        node = {"path": "/dev/data", "type": "b", "major": disk.major, "minor": disk.minor}
        allowed = [{"allow": True, "access": "rwm"}]
        status, output = await guest.output(
            "head", "-c", "11", "/dev/data", devices=[node], resources={"devices": allowed}
        )
        assert (status, output) == (0, b"on the disk")
        await guest.machine.detach("volume-1")

    async def test_a_share_that_is_plugged_in_is_found_by_its_tag(self, guest: MachineGuest) -> None:
        directory = guest.directory / "second"
        directory.mkdir()
        (directory / "file").write_text("in the second share")
        await guest.machine.attach(Share("second", str(directory)))
        daemon = guest.machine.pids()["share-second"]
        path = await guest.client.mount_share("second", TIMEOUT_S)
        bind = {"destination": "/second", "type": "bind", "source": path, "options": ["bind", "ro"]}
        assert await guest.output("cat", "/second/file", mounts=[bind]) == (0, b"in the second share")
        await guest.client.unmount_share("second", TIMEOUT_S)
        await guest.client.unmount_share("second", TIMEOUT_S)
        await guest.machine.detach("second")
        # Its daemon was killed: the loop must run to see the end of it.
        async with asyncio.timeout(TIMEOUT_S):
            while os.path.exists(f"/proc/{daemon}"):  # noqa: ASYNC110 - it is not ours to wait for
                await asyncio.sleep(0.01)

    async def test_an_interface_that_is_plugged_in_has_what_the_host_says(self, guest: MachineGuest) -> None:
        with Tap() as tap:
            adding = asyncio.ensure_future(guest.client.add_interface(interface(), TIMEOUT_S))
            await guest.machine.attach(NetworkInterface("net0", MAC, tap.fd))
            await adding
            await guest.client.add_interface(interface(), TIMEOUT_S)
            status, output = await guest.output(*shell("ip -o addr show eth0; ip route; ip -6 route"))
            assert status == 0
            words = output.decode()
            for expected in (
                "10.1.2.3/24",
                "fd00::3/64",
                "default via 10.1.2.1 dev eth0",
                "default via fd00::1",
            ):
                assert expected in words
            # The neighbour is known: nothing asks for its address before the packet is sent.
            async with await guest.container("nc", "10.1.2.1", "9") as container:
                await container.start()
                frame = await tap.frame(lambda frame: frame[12:14] == b"\x08\x00")
                assert frame[:12] == bytes.fromhex(GATEWAY_MAC.replace(":", "") + MAC.replace(":", ""))
            await guest.client.remove_interface(MAC, TIMEOUT_S)
            await guest.machine.detach("net0")

    async def test_what_is_there_is_online(self, guest: MachineGuest) -> None:
        assert (await guest.client.online(1, 0, TIMEOUT_S)).cpus == 1


def interface() -> api.Interface:
    """What a host says of a device."""
    return api.Interface(
        mac=MAC,
        name="eth0",
        mtu=1400,
        addresses=["10.1.2.3/24", "fd00::3/64"],
        routes=[
            api.Route(destination="0.0.0.0/0", gateway="10.1.2.1"),
            api.Route(destination="::/0", gateway="fd00::1"),
        ],
        neighbours=[api.Neighbour(address="10.1.2.1", mac=GATEWAY_MAC)],
    )


async def test_a_clock_that_has_stood_still_is_set() -> None:
    # A machine to itself: its vsock daemon does not survive what is on its way when the machine stops
    # (`QemuMachine.pause`), and connections that others have closed are on their way for seconds.
    async with booted() as guest:
        await guest.client.set_clock(TIMEOUT_S)
        await _idle(guest.machine.pids()["vsock"])
        await guest.machine.pause()
        await asyncio.sleep(1)
        await guest.machine.resume()
        behind = await guest.client.set_clock(TIMEOUT_S)
        assert behind.drift_ns < -900_000_000
        after = await guest.client.set_clock(TIMEOUT_S)
        assert abs(after.drift_ns) < 10_000_000 + after.uncertainty_ns + behind.uncertainty_ns


async def test_shutdown_ends_the_machine() -> None:
    async with booted() as guest:
        async with asyncio.timeout(TIMEOUT_S):
            await guest.client.shutdown(TIMEOUT_S)
            assert (await guest.machine.wait()).reason is ExitReason.GUEST_ENDED


async def test_a_panic_ends_the_machine_and_every_call_at_once() -> None:
    async with booted() as guest:
        container = await guest.container(*shell("echo c >/proc/sysrq-trigger"), streams=())
        waiting = asyncio.ensure_future(guest.client.find_disk("never", TIMEOUT_S))
        starting = asyncio.ensure_future(container.start())
        async with asyncio.timeout(TIMEOUT_S):
            ended = await guest.machine.wait()
            assert ended.reason in (ExitReason.GUEST_PANICKED, ExitReason.GUEST_ENDED)
            with pytest.raises(Unavailable):
                await waiting
        guest.close()
        # It was answered before or was not: either way nobody waits any more.
        await asyncio.wait([starting], timeout=TIMEOUT_S)
        assert starting.done()
        starting.exception()


async def test_a_vsock_daemon_whose_worker_panics_ends_the_machine() -> None:
    async with booted() as guest:
        path = guest.machine.vsock.removeprefix("hvsock://")
        qemu = guest.machine.pids()["qemu"]
        # It asks a guest that stands still, and the host hangs up meanwhile.
        os.kill(qemu, signal.SIGSTOP)
        with await connect_unix(path, TIMEOUT_S) as asking:
            asking.send(f"CONNECT {TASK_PORT}\n".encode())
            await _idle(guest.machine.pids()["vsock"])
        os.kill(qemu, signal.SIGCONT)
        async with asyncio.timeout(TIMEOUT_S):
            ended = await guest.machine.wait()
        assert ended.reason is ExitReason.VSOCK_DAEMON_ENDED
        assert "panicked at" in ended.message
