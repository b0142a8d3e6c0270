"""The contract of hypervisors over QEMU under KVM, with vsock by the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.process.exits import ExitWatcher
from tests.contract.hypervisor import HypervisorContract
from tests.contract.hypervisor_bench import Bench, Driver
from tests.node.inside import qemu_under_kvm
from vmm.hypervisors.hypervisor import Accelerator
from vmm.hypervisors.machine import Vsock


class TestQemuUnderKvm(HypervisorContract):
    """On a processor that is emulated, and virtualizes."""

    @pytest.fixture
    def driver(self) -> Driver:
        return qemu_under_kvm

    async def test_vsock_is_the_matter_of_the_kernel(self, bench: Bench) -> None:
        machine, _ = await bench.booted()
        assert machine.vsock.startswith("vsock://")
        assert set(machine.pids()) == {"qemu"}

    async def test_a_cid_that_is_taken_is_refused_by_the_kernel(self, bench: Bench) -> None:
        first, second = bench.machine("first"), bench.machine("second")
        await bench.start(first, Vsock())
        second._vsock = first.vsock  # type: ignore[attr-defined]
        with pytest.raises(Exception, match="cid"):
            await bench.start(second, Vsock())
        assert first.exit is None


async def test_kvm_is_chosen_where_guests_run_under_it(tmp_path: Path) -> None:
    exits = ExitWatcher()
    hypervisor = qemu_under_kvm.new_hypervisor(exits, Accelerator.AUTO)
    boot = qemu_under_kvm.boot_config()
    await hypervisor.prepare(boot.kernel)
    report = {each.name: each for each in await hypervisor.prerequisites(boot)}
    hypervisor.close()
    exits.close()
    assert hypervisor.capabilities.accelerator is Accelerator.KVM
    assert report["KVM"].found == "/dev/kvm: a guest was booted under it"
    assert report["vsock"].found == "/dev/vhost-vsock"
    assert report["vhost-net"].found == "/dev/vhost-net"
