"""How the C library's allocator behaves in this process."""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8


def share_one_heap() -> None:
    """Let all threads allocate from one heap (mallopt(3)); call it before there are threads.

    Python holds its lock while it allocates, so more heaps only keep more memory that nobody uses. An allocator
    without the setting is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
