"""What makes this machine this pod's, and must differ between two clones: entropy, machine id, host name, files."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Final

from common.errors import InvalidArgument
from common.linux.random import add_entropy

MACHINE_ID_PATH: Final = "/run/machine-id"
_SEED_LIMIT_BYTES = 512
_HOSTNAME_LIMIT_BYTES = 64


def seed(entropy: bytes) -> None:
    """Credit the host's entropy, and make a machine id after it (machine-id(5))."""
    if not entropy:
        return
    if len(entropy) > _SEED_LIMIT_BYTES:
        raise InvalidArgument(f"{len(entropy)} bytes of entropy are more than {_SEED_LIMIT_BYTES}")
    add_entropy(entropy)
    with open(MACHINE_ID_PATH, "w", encoding="ascii") as file:
        file.write(os.urandom(16).hex() + "\n")


def set_hostname(name: str) -> None:
    """Set the host name (sethostname(2)); an empty one leaves what there is.

    :raise InvalidArgument: the kernel does not take it.
    """
    if len(name.encode()) > _HOSTNAME_LIMIT_BYTES or "\0" in name:
        raise InvalidArgument(f"the host name {name[:100]!r} is longer than {_HOSTNAME_LIMIT_BYTES} bytes")
    if name:
        socket.sethostname(name)


def write_files(directory: str, contents: Mapping[str, str]) -> None:
    """Write the files that containers share, in place of those that are there."""
    for name, text in contents.items():
        with open(f"{directory}/{name}", "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
