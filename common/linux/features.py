"""Kernel features that are used where they exist, each with another way where they do not.

`SANDBOXD_WITHOUT="pidfd-info ..."` makes the daemon believe that they are missing: the other ways are what most
kernels in use take, and tests must go both.
"""

from __future__ import annotations

import enum
import functools
import os

from common.errors import InvalidArgument

VARIABLE = "SANDBOXD_WITHOUT"


class Feature(enum.StrEnum):
    """What can be missing, and since which kernel it is there."""

    PIDFD_INFO = "pidfd-info"  # 6.13, exit codes 6.15: PIDFD_GET_INFO; else an exit log
    PIDFD_HUP = "pidfd-hup"  # 6.9: a pidfd tells by EPOLLHUP that the process is reaped; else looked again
    CGROUP_KILL = "cgroup-kill"  # 5.14, cgroup v2 only: cgroup.kill; else one by one


@functools.cache
def forced_off() -> frozenset[Feature]:
    """Return the features that the environment forbids.

    :raise InvalidArgument: it names one that does not exist.
    """
    try:
        return frozenset(Feature(name) for name in os.environ.get(VARIABLE, "").split())
    except ValueError as error:
        known = ", ".join(Feature)
        raise InvalidArgument(f"{VARIABLE}: {error} (known: {known})") from None


def allowed(feature: Feature) -> bool:
    """Tell whether a feature may be used, if the kernel has it."""
    return feature not in forced_off()
