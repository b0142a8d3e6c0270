"""A sandboxer of virtual machines in a lab, emulated, with the programs that the project fetches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.guest_image import guest_image
from tests.integration.daemon.lab import Daemon, Lab
from tests.vm.qemu import PROGRAMS


def new_daemon(
    lab: Lab, name: str, daemon: type[Daemon] = Daemon, *, image: Path | None = None, **engine: Any
) -> Daemon:
    """Return one that is not started. `engine` are keys of that section."""
    return daemon(
        lab,
        name,
        "qemu",
        engine=engine,
        guest={"image": image or guest_image()},
        qemu={
            "accelerator": "tcg",
            "virtiofsd": PROGRAMS.virtiofsd,
            "vsock_daemon": PROGRAMS.vsock_daemon,
        },
    )
