"""The QEMU isolation type: pods in virtual machines that QEMU runs, under KVM or emulated."""

from __future__ import annotations

from common.process.exits import ExitWatcher
from sandboxers.outlasting import Outlasting
from sandboxers.qemu.config import QemuConfig
from sandboxers.vm.sandboxer import VmSandboxer
from vmm.hypervisors.qemu.driver import Qemu, QemuSettings
from vmm.hypervisors.qemu.prerequisites import Programs


def driver_of(config: QemuConfig, exits: ExitWatcher) -> Qemu:
    """Return the driver that a configuration chooses."""
    chosen = config.qemu
    programs = Programs(chosen.qemu, chosen.virtiofsd, chosen.vsock_daemon)
    return Qemu(QemuSettings(config.state_dir, chosen.accelerator, programs), exits)


class QemuSandboxer(VmSandboxer):
    """Makes pods in QEMU's virtual machines (`Sandboxer`)."""

    name = "qemu"

    def __init__(self, config: QemuConfig, outlasting: Outlasting) -> None:
        exits = ExitWatcher(outlasting.exit_log)
        super().__init__(config, outlasting, exits, driver_of(config, exits))
