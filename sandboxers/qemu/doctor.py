"""What this node has and lacks for pods in virtual machines of QEMU."""

from __future__ import annotations

from contextlib import closing

from sandboxers.doctor import Examination, Finding
from sandboxers.qemu.config import QemuConfig
from sandboxers.qemu.driver import driver_of
from sandboxers.vm.doctor import examine_machines
from vmm.hypervisors.qemu.prerequisites import find_program


async def examine(config: QemuConfig, examination: Examination) -> list[Finding]:
    """Look for QEMU, the programs beside it and what they are known to suffer from, and for the guest image."""
    with closing(driver_of(config, examination.exits)) as driver:
        findings = await examine_machines(config.guest.image, driver)
    for name, program in ("qemu", config.qemu.qemu), ("virtiofsd", config.qemu.virtiofsd):
        path = find_program(program)
        version = await examination.version(path) if path else None
        if version is not None:
            findings += await examination.vulnerabilities(name, path, version)
    return findings
