"""How ready the kernel is to kill this process when memory runs out (proc(5), oom_score_adj)."""

from __future__ import annotations

from typing import Final

FIRST: Final = 1000
"""Before anything else."""
_PATH = "/proc/self/oom_score_adj"


def oom_score_adj() -> int:
    """Return this process's adjustment, from -1000 (never) to 1000 (first)."""
    # Bytes: in a process that was just forked it takes a millisecond to load the codec.
    with open(_PATH, "rb") as file:
        return int(file.read())


def set_oom_score_adj(adjustment: int) -> None:
    """Set it, also for all children. Raises PermissionError where it is lower than we may."""
    with open(_PATH, "wb") as file:
        file.write(b"%d" % adjustment)
