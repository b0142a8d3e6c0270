"""QEMU for tests: the programs that scripts/fetch-vm-helpers fetched, and the guest that answers."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from common.process.exits import ExitWatcher
from vmm.hypervisors.hypervisor import Accelerator
from vmm.hypervisors.machine import BootConfig
from vmm.hypervisors.qemu.driver import Qemu, QemuSettings
from vmm.hypervisors.qemu.prerequisites import Programs
from vmm.image import manifest

CHECKOUT = Path(__file__).parents[2]
HELPERS = CHECKOUT / ".cache/vm"
IMAGES = CHECKOUT / ".cache/guest-tests"
# Shared with the real image.
DOWNLOADS = CHECKOUT / ".cache/guest/downloads"
PROGRAMS = Programs(virtiofsd=str(HELPERS / "virtiofsd"), vsock_daemon=str(HELPERS / "vhost-device-vsock"))
ANSWERING_GUEST = CHECKOUT / "tests/vm/answering_guest.py"


@cache
def image(agent: Path = ANSWERING_GUEST) -> manifest.GuestImage:
    """Return the guest image with a program in place of the agent; it is built if it has changed."""
    command = ["build", "--directory", str(IMAGES), "--downloads", str(DOWNLOADS), "--agent", str(agent)]
    done = subprocess.run(
        [sys.executable, "-m", "vmm.image", *command],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return manifest.load(done.stdout.strip())


def boot_config() -> BootConfig:
    """Return what the guest that answers boots with."""
    guest = image()
    return BootConfig(
        kernel=str(guest.kernel),
        root_image=str(guest.root),
        initrd=str(guest.ramdisk or ""),
        kernel_arguments=guest.command_line(["quiet"]),
    )


def new_hypervisor(exits: ExitWatcher, accelerator: Accelerator = Accelerator.TCG) -> Qemu:
    """Return the driver that is under test."""
    return Qemu(QemuSettings(tempfile.gettempdir(), accelerator, PROGRAMS), exits)
