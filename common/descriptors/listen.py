"""Descriptors that whoever started this process has handed to it (sd_listen_fds(3))."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

FIRST_FD = 3


def taken_from_environment(environment: MutableMapping[str, str] = os.environ) -> dict[str, list[int]]:
    """Return what was handed over, by name, and remove the variables; the caller owns the descriptors.

    Nothing, if the variables were meant for another process.
    """
    count = int(environment.pop("LISTEN_FDS", "0"))
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if environment.pop("LISTEN_PID", "") != str(os.getpid()):
        return {}
    handed: dict[str, list[int]] = {}
    for number in range(count):
        os.set_inheritable(FIRST_FD + number, False)
        name = names[number] if number < len(names) else "unknown"
        handed.setdefault(name, []).append(FIRST_FD + number)
    return handed
