"""QEMU as it is installed and configured here (`Hypervisor`)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from common.log_files import LogFiles
from common.process.exits import ExitWatcher
from vmm.hypervisors.hypervisor import Accelerator, Capabilities, Prerequisite
from vmm.hypervisors.machine import BootConfig, Disk, NetworkInterface, Place, Share, Vsock
from vmm.hypervisors.processes import DriverParts
from vmm.hypervisors.qemu.backends import Equipment
from vmm.hypervisors.qemu.kvm_probe import probe_kvm
from vmm.hypervisors.qemu.prerequisites import (
    KVM,
    VHOST_NET,
    VHOST_VSOCK,
    Programs,
    check_all,
    find_program,
    version_of,
)
from vmm.hypervisors.qemu.virtual_machine import QemuMachine


@dataclass(frozen=True, slots=True)
class QemuSettings:
    """What an operator may choose. In `cache_dir` it is remembered, until the next boot, whether KVM works."""

    cache_dir: str
    accelerator: Accelerator = Accelerator.AUTO
    programs: Programs = field(default_factory=Programs)


class Qemu:
    """One per daemon (`Hypervisor`)."""

    __slots__ = ("_accelerator", "_parts", "_reason", "_settings")

    def __init__(self, settings: QemuSettings, exits: ExitWatcher) -> None:
        self._settings = settings
        self._parts = DriverParts(exits, LogFiles())
        # Emulation works everywhere: it is what AUTO means until `prepare` has found out more.
        self._accelerator = (
            Accelerator.TCG if settings.accelerator is Accelerator.AUTO else settings.accelerator
        )
        self._reason = "not tried yet" if settings.accelerator is Accelerator.AUTO else "configured"

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        return Capabilities(
            accelerator=self._accelerator,
            attachable=frozenset({Disk, Share, NetworkInterface, Vsock}),
            pausable=True,
        )

    async def prepare(self, kernel: str) -> None:
        """Find out whether guests run under KVM here, if that is left open."""
        program = find_program(self._settings.programs.qemu)
        if self._settings.accelerator is not Accelerator.AUTO or not program or not os.path.isfile(kernel):
            return
        version = ".".join(map(str, await version_of(program, self._parts.exits)))
        probe = await probe_kvm(
            self._equipment(Accelerator.KVM), version, kernel, self._settings.cache_dir, self._parts
        )
        self._accelerator = Accelerator.TCG if probe.reason else Accelerator.KVM
        self._reason = probe.reason or "a guest was booted under it"

    def machine(self, place: Place) -> QemuMachine:
        """Return a machine that is not started yet."""
        return QemuMachine(self._equipment(self._accelerator), place, self._parts)

    async def prerequisites(self, boot: BootConfig) -> list[Prerequisite]:
        """Return what this host needs for such machines and what of it is there, for people; call `prepare` before."""
        is_kvm = self._accelerator is Accelerator.KVM
        kvm = Prerequisite(
            "KVM",
            f"{KVM}: {self._reason}" if is_kvm else "",
            f"guests are emulated, several times slower ({self._reason}): where the processor has virtualization,"
            " modprobe kvm_intel or kvm_amd",
            optional=True,
        )
        return [*await check_all(self._settings.programs, boot, self._parts.exits), kvm]

    def close(self) -> None:
        """Let go of what belongs to no machine."""
        self._parts.logs.close()

    def _equipment(self, accelerator: Accelerator) -> Equipment:
        return Equipment(
            self._settings.programs, accelerator, os.path.exists(VHOST_VSOCK), os.path.exists(VHOST_NET)
        )
