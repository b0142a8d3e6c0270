"""The hypervisor's driver that a configuration chooses."""

from __future__ import annotations

from common.process.exits import ExitWatcher
from sandboxers.qemu.config import QemuConfig
from vmm.hypervisors.qemu.driver import Qemu, QemuSettings
from vmm.hypervisors.qemu.prerequisites import Programs


def driver_of(config: QemuConfig, exits: ExitWatcher) -> Qemu:
    """Return the driver that a configuration chooses."""
    chosen = config.qemu
    programs = Programs(chosen.qemu, chosen.virtiofsd, chosen.vsock_daemon)
    return Qemu(QemuSettings(config.state_dir, chosen.accelerator, programs), exits)
