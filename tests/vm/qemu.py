"""QEMU for tests: the programs that scripts/fetch-vm-helpers fetched, and the guest that answers."""

from __future__ import annotations

import tempfile
from pathlib import Path

from common.process.exits import ExitWatcher
from tests.guest_image import guest_image
from vmm.hypervisors.hypervisor import Accelerator
from vmm.hypervisors.machine import BootConfig
from vmm.hypervisors.qemu.driver import Qemu, QemuSettings
from vmm.hypervisors.qemu.prerequisites import Programs
from vmm.image.manifest import GuestImage, load

CHECKOUT = Path(__file__).parents[2]
HELPERS = CHECKOUT / ".cache/vm"
PROGRAMS = Programs(virtiofsd=str(HELPERS / "virtiofsd"), vsock_daemon=str(HELPERS / "vhost-device-vsock"))
ANSWERING_GUEST = CHECKOUT / "tests/vm/answering_guest.py"


def image(agent: Path = ANSWERING_GUEST) -> GuestImage:
    """Return the guest image with a program in place of the agent; it is built if it has changed."""
    return load(guest_image("--agent", str(agent)))


def boot_config_of(image: GuestImage) -> BootConfig:
    """Return what an image boots with."""
    return BootConfig(
        kernel=str(image.kernel),
        root_image=str(image.root),
        initrd=str(image.ramdisk or ""),
        kernel_arguments=image.command_line(["quiet"]),
    )


def boot_config() -> BootConfig:
    """Return what the guest that answers boots with."""
    return boot_config_of(image())


def new_hypervisor(exits: ExitWatcher, accelerator: Accelerator = Accelerator.TCG) -> Qemu:
    """Return the driver that is under test."""
    return Qemu(QemuSettings(tempfile.gettempdir(), accelerator, PROGRAMS), exits)
