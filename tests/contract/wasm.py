"""What tests of the wasm type share that have a fork server in their own process."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

_LIMIT_S = 5.0


async def forked_processes_end() -> None:
    """Wait until what a fork server of ours keeps ahead has noticed its end, and is reaped."""
    async with asyncio.timeout(_LIMIT_S):
        while _children():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)


def _children() -> list[int]:
    found = []
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        with contextlib.suppress(OSError):
            # A zombie has no command line any more.
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            if not line or b"sandboxers.wasm" in line:
                found.append(int(pid))
    return found
