"""The configuration of the QEMU sandboxer: every key that it reads, with its default and its meaning."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import option
from sandboxers.config import (
    EngineConfig,
    GarbageConfig,
    LogConfig,
    MetricsConfig,
    PodConfig,
    program,
    socket_option,
    state_dir_option,
    type_option,
)
from sandboxers.vm.config import GuestConfig, SizeConfig
from vmm.hypervisors.hypervisor import Accelerator


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

    type: str = type_option("qemu")
    socket: str = socket_option("qemu")
    state_dir: str = state_dir_option("qemu")
    log: LogConfig = LogConfig()
    engine: EngineConfig = EngineConfig()
    qemu: ProgramConfig = ProgramConfig()
    guest: GuestConfig = GuestConfig()
    size: SizeConfig = SizeConfig()
    pod: PodConfig = PodConfig()
    gc: GarbageConfig = GarbageConfig()
    metrics: MetricsConfig = MetricsConfig()
