"""What this node has and lacks for pods in virtual machines of QEMU."""

from __future__ import annotations

from sandboxers.doctor import Examination, Finding
from sandboxers.qemu.config import QemuConfig
from sandboxers.qemu.sandboxer import driver_of
from sandboxers.vm.doctor import examine_machines


async def examine(config: QemuConfig, examination: Examination) -> list[Finding]:
    """Look for QEMU, the programs beside it, and the guest image."""
    return await examine_machines(config.guest.image, driver_of(config, examination.exits))
