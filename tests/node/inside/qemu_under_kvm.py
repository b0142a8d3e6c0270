"""QEMU for tests on a node: Debian's programs, KVM (nested in emulation), the kernel's own vsock."""

from __future__ import annotations

import tempfile

from common.process.exits import ExitWatcher
from tests.vm.qemu import boot_config
from vmm.hypervisors.hypervisor import Accelerator
from vmm.hypervisors.qemu.driver import Qemu, QemuSettings

__all__ = ["boot_config", "new_hypervisor"]


def new_hypervisor(exits: ExitWatcher, accelerator: Accelerator = Accelerator.KVM) -> Qemu:
    """Return the driver that is under test."""
    return Qemu(QemuSettings(tempfile.gettempdir(), accelerator), exits)
