"""What this machine is called in images and by engines."""

from __future__ import annotations

import os

_GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}


def architecture() -> str:
    """Return the name of this machine's architecture as Go, and so OCI, has it (image-spec, image-index.md)."""
    machine = os.uname().machine
    return _GO_NAMES.get(machine, machine)
