"""The QEMU isolation type: pods in virtual machines that QEMU runs, under KVM or emulated."""

from __future__ import annotations

from common.process.exits import ExitWatcher
from sandboxers.outlasting import Outlasting
from sandboxers.qemu.config import QemuConfig
from sandboxers.qemu.driver import driver_of
from sandboxers.vm.sandboxer import VmSandboxer


class QemuSandboxer(VmSandboxer):
    """Makes pods in QEMU's virtual machines (`Sandboxer`)."""

    name = "qemu"

    def __init__(self, config: QemuConfig, outlasting: Outlasting) -> None:
        exits = ExitWatcher(outlasting.exit_log)
        super().__init__(config, outlasting, exits, driver_of(config, exits))
