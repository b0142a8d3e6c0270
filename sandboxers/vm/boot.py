"""What a virtual machine boots, from a guest image."""

from __future__ import annotations

from collections.abc import Sequence

from vmm.hypervisors.machine import BootConfig
from vmm.image.manifest import GuestImage


def image_boot(image: GuestImage, arguments: Sequence[str] = ()) -> BootConfig:
    """Return what boots an image, with additions to the kernel's command line."""
    return BootConfig(
        kernel=str(image.kernel),
        root_image=str(image.root),
        kernel_arguments=image.command_line(arguments),
        initrd=str(image.ramdisk or ""),
    )
