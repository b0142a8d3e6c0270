"""QEMU for tests on a node: Debian's programs, KVM (nested in emulation), the kernel's own vsock."""

from __future__ import annotations

import tempfile
from pathlib import Path

from common.process.exits import ExitWatcher
from tests.vm.qemu import boot_config_of
from vmm.hypervisors.hypervisor import Accelerator
from vmm.hypervisors.machine import BootConfig
from vmm.hypervisors.qemu.driver import Qemu, QemuSettings
from vmm.image.manifest import load

IMAGE = Path("/opt/node/guest")
"""Where the test outside has put the guest that answers."""


def boot_config() -> BootConfig:
    """Return what the guest that answers boots with."""
    return boot_config_of(load(next(IMAGE.glob("*.json"))))


def new_hypervisor(exits: ExitWatcher, accelerator: Accelerator = Accelerator.KVM) -> Qemu:
    """Return the driver that is under test."""
    return Qemu(QemuSettings(tempfile.gettempdir(), accelerator), exits)
