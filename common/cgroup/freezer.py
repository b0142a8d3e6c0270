"""Freezing a container's processes and thawing them, where no OCI runtime does so.

Sources: the kernel's freezer-subsystem.rst and cgroup-v2.rst.
"""

from __future__ import annotations

import asyncio
import errno
import time

from common.cgroup.files import read_text, write_text
from common.cgroup.locate import Cgroup
from common.errors import DeadlineExceeded

_FREEZE_TIMEOUT_S = 10.0


async def set_frozen(cgroup: Cgroup, frozen: bool) -> None:
    """Freeze all processes of a cgroup, or thaw them, and wait until that is so.

    :raise DeadlineExceeded: they do not freeze.
    :raise OSError: the cgroup is gone, or has no freezer.
    """
    directory = cgroup.directory("freezer")
    if directory is None:
        raise FileNotFoundError(errno.ENOENT, "there is no freezer", cgroup.path)
    if cgroup.unified:
        write_text(f"{directory}/cgroup.freeze", str(int(frozen)))
        path, wanted = f"{directory}/cgroup.events", f"frozen {int(frozen)}"
    else:
        wanted = "FROZEN" if frozen else "THAWED"
        path = f"{directory}/freezer.state"
        write_text(path, wanted)
    deadline = time.monotonic() + _FREEZE_TIMEOUT_S
    while wanted not in (read_text(path) or wanted):
        if time.monotonic() >= deadline:
            raise DeadlineExceeded(
                f"cgroup {cgroup.path} is not {wanted.lower()} after {_FREEZE_TIMEOUT_S:g} s"
            )
        await asyncio.sleep(0.001)
