"""The type `qemu`: its configuration, and pods in virtual machines that QEMU runs."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import absolute_path, option
from common.process.exits import ExitWatcher
from sandboxers.config import EngineConfig, GarbageConfig, LogConfig, PodConfig, only_type, program
from sandboxers.doctor import Examination, Finding
from sandboxers.outlasting import Outlasting
from sandboxers.vm.config import GuestConfig, SizeConfig
from sandboxers.vm.doctor import examine_machines
from sandboxers.vm.sandboxer import VmSandboxer
from vmm.hypervisors.hypervisor import Accelerator
from vmm.hypervisors.qemu.driver import Qemu, QemuSettings
from vmm.hypervisors.qemu.prerequisites import Programs


@dataclass(frozen=True, slots=True)
class ProgramConfig:
    """QEMU and the programs beside it: names, or absolute paths."""

    accelerator: Accelerator = option(
        Accelerator.AUTO,
        "'kvm', 'tcg' (emulation: several times slower, works everywhere), or 'auto': KVM if a guest really runs under"
        " it, which is tried once per boot of the node.",
    )
    qemu: str = option("qemu-system-x86_64", "QEMU, 7.2 or later.", check=program)
    virtiofsd: str = option(
        "virtiofsd", "The Rust program of this name, which shares directories.", check=program
    )
    vsock_daemon: str = option(
        "vhost-device-vsock", "Used where the node has no /dev/vhost-vsock.", check=program
    )


@dataclass(frozen=True, slots=True)
class QemuConfig:
    """Configuration of the QEMU sandboxer. Every key is shown with its default; a key that is left out has
    that value, and an unknown one is an error."""

    type: str = option("qemu", "The isolation type that this file configures.", check=only_type("qemu"))
    socket: str = option(
        "/run/sandboxd/qemu.sock",
        "Where the Sandbox API is served: the address of containerd's proxy plugin.",
        check=absolute_path,
    )
    state_dir: str = option(
        "/run/sandboxd/qemu",
        "Where live state is kept: on a tmpfs, since it describes processes, which end with the boot.",
        check=absolute_path,
    )
    log: LogConfig = LogConfig()
    engine: EngineConfig = EngineConfig()
    qemu: ProgramConfig = ProgramConfig()
    guest: GuestConfig = GuestConfig()
    size: SizeConfig = SizeConfig()
    pod: PodConfig = PodConfig()
    gc: GarbageConfig = GarbageConfig()


def driver_of(config: QemuConfig, exits: ExitWatcher) -> Qemu:
    """Return the driver that a configuration chooses."""
    chosen = config.qemu
    programs = Programs(chosen.qemu, chosen.virtiofsd, chosen.vsock_daemon)
    return Qemu(QemuSettings(config.state_dir, chosen.accelerator, programs), exits)


async def examine_qemu(config: QemuConfig, examination: Examination) -> list[Finding]:
    """Look for QEMU, the programs beside it, and the guest image."""
    return await examine_machines(config.guest.image, driver_of(config, examination.exits))


class QemuSandboxer(VmSandboxer):
    """Makes pods in QEMU's virtual machines (`Sandboxer`)."""

    name = "qemu"

    def __init__(self, config: QemuConfig, outlasting: Outlasting) -> None:
        exits = ExitWatcher(outlasting.exit_log)
        super().__init__(config, outlasting, exits, driver_of(config, exits))
