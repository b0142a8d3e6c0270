"""The guest's clock: set from the host's, read by itself through ptp_kvm where that exists, else told by the host.

Nothing ticks here: the clock is set when the host asks for it, at the start and after the machine was paused.
"""

from __future__ import annotations

import os
import time
from typing import Final

HOST: Final = "host"
PTP: Final = "ptp_kvm"

_PTP_NAME = "KVM virtual PTP"
_PTP_CLASS = "/sys/class/ptp"

# A clock that is off by less is left alone: programs do not like steps.
_STEP_NS = 5_000_000


def find_ptp_device(directory: str = _PTP_CLASS) -> str | None:
    """Return the device that shows the host's clock, or None."""
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return None
    for name in names:
        try:
            with open(f"{directory}/{name}/clock_name", encoding="ascii") as file:
                if file.read().strip() == _PTP_NAME:
                    return f"/dev/{name}"
        except OSError:
            continue
    return None


def source() -> str:
    """Tell where this guest has its time from."""
    return HOST if find_ptp_device() is None else PTP


def set_clock(host_ns: int) -> tuple[int, str]:
    """Set the clock; return by how many ns it was ahead, and where the time is from.

    :param host_ns: what the host's clock says, for a guest that cannot see it.
    """
    device = find_ptp_device()
    if device is None:
        return _set(host_ns), HOST
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # FD_TO_CLOCKID (clock_getres(2), dynamic clocks)
        return _set(time.clock_gettime_ns((~fd << 3) | 3)), PTP
    finally:
        os.close(fd)


def _set(host_ns: int) -> int:
    drift_ns = time.time_ns() - host_ns
    if abs(drift_ns) >= _STEP_NS:
        time.clock_settime_ns(time.CLOCK_REALTIME, host_ns)
    return drift_ns
