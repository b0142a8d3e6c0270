"""What every driver of a hypervisor must do: real machines, whose guest does what a test asks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from common.errors import (
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from common.failpoints import VARIABLE, Failpoint
from common.log_files import LIMIT_BYTES
from common.process.spawn import CAPTURE, run
from tests.contract.hypervisor_bench import (
    ATTACHING,
    BOOT_LIMIT_S,
    CHECKOUT,
    LIMIT_S,
    MAC,
    PORT,
    STARTING,
    Bench,
    Driver,
    armed,
    cgroups_named,
    is_gone,
    network_namespace,
    plain,
    run_program,
    until,
)
from vmm.hypervisors.hypervisor import ExitReason
from vmm.hypervisors.machine import Device, Disk, NetworkInterface, Share, Vsock


class HypervisorContract:
    """The suite. A subclass brings the fixture `driver`: a module (`Driver`)."""

    @pytest.fixture
    async def bench(self, driver: Driver, subreaper: None) -> AsyncIterator[Bench]:
        bench = Bench(driver)
        yield bench
        await bench.close()

    # -- devices ---------------------------------------------------------------------------------------

    async def test_a_machine_has_the_devices_that_it_is_started_with(self, bench: Bench) -> None:
        share, disk, (tap, tap_fd) = bench.directory("share", hello="hi"), bench.disk("disk"), bench.tap()
        machine, guest = await bench.booted(
            Share("files", str(share)),
            Disk("vol1", str(disk), read_only=True),
            NetworkInterface("net0", MAC, tap_fd, mtu=1400),
        )
        seen = await guest.ask("see")
        assert seen["disks"] == ["vol1"]
        assert seen["interfaces"] == {MAC: 1400}
        assert seen["root_is_read_only"]
        await guest.ask("mount_share", tag="files", target="/tmp/files")
        assert await guest.ask("read_file", path="/tmp/files/hello") == "hi"
        await guest.ask("write_file", path="/tmp/files/answer", text="ho")
        assert (share / "answer").read_text() == "ho"
        with pytest.raises(RuntimeError, match=r"PermissionError|OSError"):
            await guest.ask("write_disk", serial="vol1", text="x")
        await guest.ask("bring_up", mac=MAC)
        received = Path(f"/sys/class/net/{tap}/statistics/rx_packets")
        await until(lambda: int(received.read_text()) > 0)
        assert machine.devices() == {"vsock", "files", "vol1", "net0"}
        assert "guest: running" in Path(machine.console_path).read_text()

    async def test_devices_come_and_go_while_it_runs(self, bench: Bench) -> None:
        machine, guest = await bench.booted()
        disk, (tap, tap_fd) = bench.disk("disk"), bench.tap()
        for round_ in range(2):
            share = bench.directory(f"share{round_}", hello=f"hi {round_}")
            await machine.attach(Disk("vol1", str(disk)))
            await machine.attach(Share("files", str(share)))
            await machine.attach(NetworkInterface("net0", MAC, tap_fd))
            await guest.until("see", lambda seen: seen["disks"] == ["vol1"] and MAC in seen["interfaces"])
            await guest.ask("write_disk", serial="vol1", text=f"written {round_}")
            assert disk.read_bytes().startswith(f"written {round_}".encode())
            await guest.until("mount_share", lambda _: True, tag="files", target="/tmp/files")
            assert await guest.ask("read_file", path="/tmp/files/hello") == f"hi {round_}"
            await guest.ask("unmount", target="/tmp/files")
            assert machine.devices() == {"vsock", "vol1", "files", "net0"}
            for device_id in ("vol1", "files", "net0"):
                await machine.detach(device_id)
            await guest.until("see", lambda seen: not seen["disks"] and not seen["interfaces"])
            assert machine.devices() == {"vsock"}
            await until(lambda: not [role for role in machine.pids() if "files" in role])
        assert Path(f"/sys/class/net/{tap}").exists(), "the tap is its owner's"
        assert bench.ends == []

    async def test_vsock_may_come_later(self, bench: Bench) -> None:
        machine = bench.machine()
        await bench.start(machine)
        listener = bench.listen(machine)
        # Into a kernel that runs, as into one that was restored from a template.
        await until(lambda: "guest: running" in Path(machine.console_path).read_text(), BOOT_LIMIT_S)
        await machine.attach(Vsock())
        guest = await bench.accept(machine, listener)
        assert (await guest.ask("see"))["disks"] == []

    async def test_a_mount_below_a_share_appears_in_the_guest(self, bench: Bench) -> None:
        share = bench.directory("share")
        (share / "volume").mkdir()
        run_program("mount", "--bind", str(share), str(share))
        try:
            run_program("mount", "--make-shared", str(share))
            _, guest = await bench.booted(Share("files", str(share)))
            await guest.ask("mount_share", tag="files", target="/tmp/files")
            assert await guest.ask("list_directory", path="/tmp/files/volume") == []
            run_program("mount", "-t", "tmpfs", "tmpfs", str(share / "volume"))
            (share / "volume/late").write_text("seen")
            await guest.until("list_directory", lambda names: names == ["late"], path="/tmp/files/volume")
            own, other = [
                await guest.ask("device_of", path=path) for path in ("/tmp/files", "/tmp/files/volume")
            ]
            assert own != other, "two file systems, or two files could have one inode number"
        finally:
            # Lazily: virtiofsd holds what the guest has looked at, in a mount that hangs on this one.
            for point in (share / "volume", share):
                subprocess.run(["umount", "--lazy", str(point)], stderr=subprocess.DEVNULL, check=False)

    async def test_what_cannot_be_attached_changes_nothing(self, bench: Bench) -> None:
        machine = bench.machine()
        await bench.start(machine, slots=1)
        disk = Disk("vol1", str(bench.disk("disk")))
        with pytest.raises(InvalidArgument, match="nonesuch"):
            await machine.attach(Disk("vol1", f"{bench.root}/nonesuch"))
        with pytest.raises(Internal, match="virtiofsd of 'files' has ended"):
            await machine.attach(Share("files", f"{bench.root}/nonesuch"))
        assert bench.ends == [], "it goes on"
        await machine.attach(disk)
        with pytest.raises(AlreadyExists, match="vol1"):
            await machine.attach(disk)
        with pytest.raises(ResourceExhausted, match="slot"):
            await machine.attach(Disk("vol2", disk.path))
        with pytest.raises(NotFound, match="vol3"):
            await machine.detach("vol3")
        assert machine.devices() == {"vol1"}
        await machine.stop(0)
        for refused in (machine.attach(Disk("vol2", disk.path)), machine.detach("vol1"), machine.pause()):
            with pytest.raises(FailedPrecondition):
                await refused

    # -- a life ----------------------------------------------------------------------------------------

    async def test_pause_stops_the_guest_and_resume_lets_it_go_on(self, bench: Bench) -> None:
        if not bench.hypervisor.capabilities.pausable:
            pytest.skip("it says that it cannot")
        machine, guest = await bench.booted()
        console = Path(machine.console_path)
        await guest.ask("tick")
        await until(lambda: "tick" in console.read_text())
        # Not while it is paused: what is sent to a guest then may be lost together with its connection.
        await machine.pause()
        await machine.pause()
        before = console.stat().st_size
        await asyncio.sleep(0.5)
        assert console.stat().st_size == before
        await machine.resume()
        await machine.resume()
        await until(lambda: console.stat().st_size > before)
        assert (await guest.ask("see"))["root_is_read_only"]
        assert bench.ends == []

    @pytest.mark.parametrize(
        ("how", "reason"),
        [
            ("off", ExitReason.GUEST_ENDED),
            ("reset", ExitReason.GUEST_ENDED),
            ("panic", ExitReason.GUEST_PANICKED),
        ],
    )
    async def test_a_guest_that_ends_ends_its_machine(
        self, bench: Bench, how: str, reason: ExitReason
    ) -> None:
        machine, guest = await bench.booted(Share("files", str(bench.directory("share"))))
        guest.tell("end", how=how)
        async with asyncio.timeout(LIMIT_S):
            end = await machine.wait()
        assert end.reason is reason
        assert bench.ends == [end]
        assert machine.exit == end
        assert machine.pids() == {}
        if how == "panic":
            assert "sysrq" in end.message
        assert all(name.endswith((".log", ".json")) for name in bench.left() if name != f"vsock_{PORT}")

    async def test_whichever_process_dies_the_machine_ends_and_says_so(self, bench: Bench) -> None:
        share = str(bench.directory("share"))
        first = bench.machine("roles")
        await bench.start(first, Vsock(), Share("files", share))
        roles = set(first.pids())
        await first.stop(0)
        for role in sorted(roles):
            bench.ends.clear()
            machine = bench.machine(role)
            await bench.start(machine, Vsock(), Share("files", share))
            os.kill(machine.pids()[role], signal.SIGKILL)
            async with asyncio.timeout(LIMIT_S):
                end = await machine.wait()
            expected = {"vsock": ExitReason.VSOCK_DAEMON_ENDED, "share-files": ExitReason.SHARE_DAEMON_ENDED}
            assert end.reason is expected.get(role, ExitReason.HYPERVISOR_ENDED)
            assert "signal 9" in end.message
            assert bench.ends == [end]
            assert machine.pids() == {}

    async def test_stop_waits_for_a_guest_that_ends_by_itself(self, bench: Bench) -> None:
        machine, guest = await bench.booted()
        guest.tell("end", how="off", after_s=0.3)
        await machine.stop(LIMIT_S)
        assert machine.exit is not None
        assert machine.exit.reason is ExitReason.STOPPED
        assert "Power down" in Path(machine.console_path).read_text(), "it was not killed"

    async def test_stop_ends_a_frozen_machine_within_its_limit(self, bench: Bench) -> None:
        machine = bench.machine()
        await bench.start(machine, Vsock())
        for pid in machine.pids().values():
            os.kill(pid, signal.SIGSTOP)
        started = asyncio.get_running_loop().time()
        await machine.stop(0.5)
        assert asyncio.get_running_loop().time() - started < LIMIT_S
        assert machine.pids() == {}

    async def test_stop_may_be_repeated_and_come_early(self, bench: Bench) -> None:
        machine = bench.machine()
        await machine.stop(0)
        assert bench.left() == []
        other = bench.machine("other")
        await bench.start(other, Vsock())
        for _ in range(3):
            await other.stop(0)
        assert [end.reason for end in bench.ends] == [ExitReason.STOPPED]
        with pytest.raises(FailedPrecondition):
            await bench.start(other)

    async def test_machines_are_told_apart(self, bench: Bench) -> None:
        first, second = bench.machine("first"), bench.machine("second")
        assert first.vsock != second.vsock
        await bench.start(first, Vsock())
        await bench.start(second, Vsock())
        await first.stop(0)
        assert second.exit is None
        assert bench.hypervisor.capabilities.attachable

    async def test_the_console_cannot_fill_the_host(self, bench: Bench) -> None:
        machine, guest = await bench.booted()
        for part in range(4):
            await guest.ask("write_console", text=f"{part}" * 1023 + "\n", times=LIMIT_BYTES // 2048)
        await guest.ask("write_console", text="the last words\n", times=1)
        console = Path(machine.console_path)
        await until(lambda: console.stat().st_size <= LIMIT_BYTES)
        await until(lambda: "the last words" in console.read_text())

    # -- failures --------------------------------------------------------------------------------------

    @pytest.mark.parametrize("part", ["kernel", "root_image"])
    async def test_a_missing_file_is_named_with_what_to_do(self, bench: Bench, part: str) -> None:
        machine = bench.machine()
        with pytest.raises(FailedPrecondition, match=r"/nonesuch is missing: .*vmm\.image build"):
            await bench.start(machine, **{part: "/nonesuch"})
        assert bench.left() == []

    async def test_a_program_that_fails_is_quoted_and_nothing_is_left(self, bench: Bench) -> None:
        kernel = bench.root / "kernel"
        kernel.write_bytes(b"not a kernel" * 1000)
        machine = bench.machine()
        with pytest.raises(Internal, match=r"ended with code 1: .*kernel"):
            await bench.start(
                machine, Vsock(), Share("files", str(bench.directory("share"))), kernel=str(kernel)
            )
        assert bench.left() == []
        assert machine.pids() == {}
        assert bench.ends == []

    async def test_a_share_that_cannot_be_served_fails_the_start(self, bench: Bench) -> None:
        machine = bench.machine()
        with pytest.raises(Internal, match="virtiofsd of 'files'"):
            await bench.start(machine, Vsock(), Share("files", f"{bench.root}/nonesuch"))
        assert bench.left() == []

    @pytest.mark.parametrize("point", STARTING, ids=str)
    async def test_a_start_that_fails_at_any_step_leaves_nothing(
        self, bench: Bench, point: Failpoint
    ) -> None:
        machine = bench.machine()
        with armed(f"{point}=raise"), pytest.raises(Internal, match="failpoint"):
            await bench.start(machine, Vsock(), Share("files", str(bench.directory("share"))))
        assert bench.left() == []
        await until(lambda: bench.processes() == [])
        assert bench.ends == []

    async def test_an_attachment_that_fails_at_any_step_leaves_nothing(self, bench: Bench) -> None:
        share = Share("files", str(bench.directory("share")))
        machine = bench.machine()
        await bench.start(machine)
        pids, files = machine.pids(), bench.left()
        for point in ATTACHING[:-1]:
            with armed(f"{point}=raise"), pytest.raises(Internal, match="failpoint"):
                await machine.attach(share)
            assert machine.devices() == set()
            await until(lambda: machine.pids() == pids)
            assert [name for name in bench.left() if name not in files and not name.endswith(".log")] == []
        await machine.attach(share)
        assert bench.ends == []

    # -- restarts --------------------------------------------------------------------------------------

    async def test_a_new_daemon_takes_a_machine_up(self, bench: Bench) -> None:
        share = bench.directory("share", hello="hi")
        await self.die(bench, f"{Failpoint.MACHINE_STARTED}=kill", Vsock(), Share("files", str(share)))
        machine = bench.machine()
        assert await machine.recover(bench.ends.append)
        listener = bench.listen(machine)
        guest = await bench.accept(machine, listener)
        assert machine.devices() == {"vsock", "files"}
        await machine.attach(Disk("vol1", str(bench.disk("disk"))))
        await guest.until("see", lambda seen: seen["disks"] == ["vol1"])
        await guest.ask("mount_share", tag="files", target="/tmp/files")
        await guest.ask("unmount", target="/tmp/files")
        await machine.detach("files")
        os.kill(machine.pids()["vsock" if "vsock" in machine.pids() else "qemu"], signal.SIGKILL)
        async with asyncio.timeout(LIMIT_S):
            end = await machine.wait()
        assert end.reason in (ExitReason.VSOCK_DAEMON_ENDED, ExitReason.HYPERVISOR_ENDED)
        assert bench.ends == [end]

    @pytest.mark.parametrize("point", STARTING, ids=str)
    async def test_a_daemon_may_die_at_any_step_of_a_start(self, bench: Bench, point: Failpoint) -> None:
        await self.die(bench, f"{point}=kill", Vsock(), Share("files", str(bench.directory("share"))))
        machine = bench.machine()
        taken_up = await machine.recover(bench.ends.append)
        assert taken_up == (point is Failpoint.MACHINE_STARTED)
        if not taken_up:
            await until(lambda: bench.processes() == [])
            assert bench.left() == []
            assert machine.exit is not None

    @pytest.mark.parametrize("point", ATTACHING, ids=str)
    async def test_a_daemon_may_die_at_any_step_of_an_attachment(
        self, bench: Bench, point: Failpoint
    ) -> None:
        share = Share("files", str(bench.directory("share")))
        await self.die(bench, f"{point}=kill", attached=[share])
        machine = bench.machine()
        assert await machine.recover(bench.ends.append)
        assert machine.devices() == ({"files"} if point is Failpoint.DEVICE_ATTACHED else set())
        if point is not Failpoint.DEVICE_ATTACHED:
            await machine.attach(share)
        assert set(machine.pids()) >= {"share-files"}
        assert bench.ends == []

    async def test_a_machine_that_ended_meanwhile_is_not_taken_up(self, bench: Bench) -> None:
        await self.die(bench, f"{Failpoint.MACHINE_STARTED}=kill", Vsock())
        for line in bench.processes():
            if "console" in line or "qemu" in line.split()[1]:
                pid = int(line.split()[0])
                os.kill(pid, signal.SIGKILL)
                # What it had of KVM goes before it does.
                await until(partial(is_gone, pid), LIMIT_S)
        machine = bench.machine()
        assert not await machine.recover(bench.ends.append)
        assert machine.exit is not None
        assert machine.exit.reason is ExitReason.HYPERVISOR_ENDED
        assert machine.pids() == {}
        assert "console.log" in bench.left(), "people may want to know why"
        assert bench.ends == []

    async def test_an_end_that_was_seen_is_told_to_a_new_daemon(self, bench: Bench) -> None:
        machine = bench.machine()
        await bench.start(machine)
        await machine.stop(0)
        machine.close()
        again = bench.machine()
        assert not await again.recover(bench.ends.append)
        assert again.exit == machine.exit
        assert bench.ends == [machine.exit]

    async def test_a_paused_machine_is_taken_up_paused(self, bench: Bench) -> None:
        machine = bench.machine()
        await bench.start(machine)
        await machine.pause()
        machine.close()
        again = bench.machine()
        assert await again.recover(bench.ends.append)
        with pytest.raises(FailedPrecondition, match="paused"):
            await again.attach(Disk("vol1", str(bench.disk("disk"))))
        await again.resume()

    async def test_a_frozen_machine_does_not_delay_a_new_daemon(self, bench: Bench) -> None:
        machine = bench.machine()
        await bench.start(machine)
        hypervisor = next(pid for role, pid in machine.pids().items() if role not in ("vsock", "share-files"))
        machine.close()
        os.kill(hypervisor, signal.SIGSTOP)
        again = bench.machine()
        async with asyncio.timeout(LIMIT_S):
            assert await again.recover(bench.ends.append)
        os.kill(hypervisor, signal.SIGCONT)
        await again.pause()
        await again.resume()

    async def die(
        self, bench: Bench, failpoints: str, *devices: Device, attached: Sequence[Device] = ()
    ) -> None:
        """Let another daemon start a machine and attach devices, and die of it."""
        bench.directory("m")
        request = {
            "driver": bench.driver.__name__,  # type: ignore[attr-defined]
            "directory": str(bench.root / "m"),
            "devices": [plain(device) for device in devices],
            "attached": [plain(device) for device in attached],
        }
        done = await run(
            [sys.executable, "-m", "tests.contract.mortal_hypervisor_daemon", json.dumps(request)],
            watcher=bench.exits,
            timeout_s=BOOT_LIMIT_S,
            stderr=CAPTURE,
            env={**os.environ, VARIABLE: failpoints},
            cwd=str(CHECKOUT),
        )
        assert done.status.code == 128 + signal.SIGKILL, done.stderr.decode()

    # -- confinement -----------------------------------------------------------------------------------

    async def test_its_processes_are_confined(self, bench: Bench) -> None:
        with network_namespace() as netns, cgroups_named("vmtest") as cgroups:
            machine = bench.machine(netns_path=netns, cgroups=cgroups)
            await bench.start(machine, Vsock(), Share("files", str(bench.directory("share"))))
            for role, pid in machine.pids().items():
                proc = Path(f"/proc/{pid}")
                assert os.readlink(proc / "cwd") == "/"
                environment = (proc / "environ").read_bytes()
                assert {line.split(b"=")[0] for line in environment.split(b"\0") if line} <= {
                    b"PATH", b"LANG", b"PWD", b"_",
                }  # fmt: skip
                members = [Path(f"{cgroup}/cgroup.procs").read_text().split() for cgroup in cgroups]
                assert all(str(pid) in pids for pids in members), role
                opened = [os.readlink(link) for link in (proc / "fd").iterdir()]
                assert not [path for path in opened if "pytest" in path], opened
                status = (proc / "status").read_text()
                if role not in ("share-files", "vsock"):
                    assert os.readlink(proc / "ns/net") == os.readlink(netns)
                    assert "Seccomp:\t2" in status
                if role != "share-files":
                    assert "CapEff:\t0000000000000000" in status
                    assert "CapBnd:\t0000000000000000" in status
                    assert "NoNewPrivs:\t1" in status
            await machine.stop(0)

    async def test_nothing_on_the_command_line_tells_one_guest_from_another(self, bench: Bench) -> None:
        arguments = []
        for name in ("first", "second"):
            machine = bench.machine(name)
            listener = bench.listen(machine)
            await bench.start(machine, Vsock())
            guest = await bench.accept(machine, listener)
            arguments.append((await guest.ask("see"))["arguments"])
            await machine.stop(0)
        assert arguments[0] == arguments[1]
