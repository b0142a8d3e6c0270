"""The contract of hypervisors over QEMU without hardware virtualization, and what is QEMU's alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.log_files import LogFiles
from common.process.exits import ExitWatcher
from tests.contract.hypervisor import HypervisorContract
from tests.contract.hypervisor_bench import Driver
from tests.vm import qemu
from vmm.hypervisors.hypervisor import Accelerator
from vmm.hypervisors.machine import Place
from vmm.hypervisors.processes import DriverParts
from vmm.hypervisors.qemu.backends import Equipment
from vmm.hypervisors.qemu.kvm_probe import probe_kvm
from vmm.hypervisors.qemu.prerequisites import Programs
from vmm.hypervisors.qemu.virtual_machine import QemuMachine

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no QEMU: run scripts/setup test"),
    pytest.mark.skipif(not qemu.HELPERS.exists(), reason="no virtiofsd: run scripts/fetch-vm-helpers"),
]


@pytest.mark.slow
class TestQemuUnderTcg(HypervisorContract):
    """Emulated."""

    @pytest.fixture
    def driver(self) -> Driver:
        return qemu


class TestTheProbe:
    """Whether guests run under an accelerator, found out by booting one; tried here with emulation, which works."""

    @pytest.fixture
    async def parts(self, subreaper: None) -> AsyncIterator[DriverParts]:
        parts = DriverParts(ExitWatcher(), LogFiles())
        yield parts
        parts.logs.close()
        parts.exits.close()

    @pytest.fixture
    def equipment(self) -> Equipment:
        return Equipment(qemu.PROGRAMS, Accelerator.TCG, vhost_vsock=False, vhost_net=False)

    async def test_a_guest_that_runs_is_believed_and_remembered(
        self, parts: DriverParts, equipment: Equipment, tmp_path: Path
    ) -> None:
        kernel = qemu.boot_config().kernel
        found = await probe_kvm(equipment, "1.0", kernel, str(tmp_path), parts)
        assert found.reason == ""
        assert [path.name for path in tmp_path.iterdir()] == ["kvm-probe.json"], "nothing else is left"
        broken = equipment._replace(programs=Programs("/nonesuch"))
        assert await probe_kvm(broken, "1.0", kernel, str(tmp_path), parts) == found
        other = await probe_kvm(broken, "2.0", kernel, str(tmp_path), parts)
        assert "not installed" in other.reason, "what is known is known of one version"

    async def test_a_guest_that_does_not_come_up_is_told_why(
        self, parts: DriverParts, equipment: Equipment, tmp_path: Path
    ) -> None:
        (tmp_path / "kernel").write_bytes(b"no kernel" * 1000)
        found = await probe_kvm(equipment, "1.0", str(tmp_path / "kernel"), str(tmp_path), parts)
        assert "ended with code 1" in found.reason

    async def test_the_guest_of_a_daemon_that_died_while_it_found_out_is_ended(
        self, parts: DriverParts, equipment: Equipment, tmp_path: Path
    ) -> None:
        left = tmp_path / ".kvm-probe"
        left.mkdir(mode=0o700)
        died = QemuMachine(equipment, Place(str(left)), parts)
        await died.start(qemu.boot_config(), (), lambda _exit: None)
        pid = died.pids()["qemu"]
        died.close()
        found = await probe_kvm(equipment, "1.0", qemu.boot_config().kernel, str(tmp_path), parts)
        assert found.reason == ""
        assert [path.name for path in tmp_path.iterdir()] == ["kvm-probe.json"]
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    async def test_a_host_is_reported_with_what_it_decided_for(self, tmp_path: Path) -> None:
        exits = ExitWatcher()
        hypervisor = qemu.new_hypervisor(exits)
        boot = qemu.boot_config()
        await hypervisor.prepare(boot.kernel)
        report = {each.name: each for each in await hypervisor.prerequisites(boot)}
        hypervisor.close()
        exits.close()
        assert all(each.is_met for each in report.values()), report
        assert report["KVM"].found == "", "it was told not to"
        assert hypervisor.capabilities.accelerator is Accelerator.TCG
