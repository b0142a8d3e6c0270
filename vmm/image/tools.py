"""The external programs of a build: each run to its end, its last words kept for the operator."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from common.errors import Internal
from common.process.exits import ExitWatcher
from common.process.spawn import CAPTURE, run

# A build ends or fails with its slowest step, the compilation of a kernel on a slow machine.
_TIMEOUT_S: Final = 3 * 3600.0
_LAST_LINES: Final = 20

# With what is configured for this machine (proxies, package indexes), and the same words and times everywhere.
_ENVIRONMENT: Final = {"LC_ALL": "C.UTF-8", "TZ": "UTC", "SOURCE_DATE_EPOCH": "0", "PYTHONHASHSEED": "0"}


class Tools:
    """Runs programs for as long as it is open; needs a running event loop."""

    def __init__(self) -> None:
        self._watcher = ExitWatcher()

    async def run(
        self,
        *argv: str | Path,
        cwd: Path = Path("/"),
        output: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> bytes:
        """Run a program and return what it printed, or write that to the file `output`.

        Raises Internal with the end of what it said if it fails.
        """
        command = [str(argument) for argument in argv]
        with contextlib.ExitStack() as stack:
            target = CAPTURE if output is None else stack.enter_context(output.open("wb")).fileno()
            done = await run(
                command,
                watcher=self._watcher,
                timeout_s=_TIMEOUT_S,
                stdout=target,
                stderr=CAPTURE,
                env={**os.environ, **_ENVIRONMENT, **(env or {})},
                cwd=str(cwd),
            )
        if done.status.code != 0:
            words = (done.stdout + done.stderr).decode(errors="replace").splitlines()[-_LAST_LINES:]
            raise Internal("\n".join([f"{' '.join(command[:3])} failed:", *words]))
        return done.stdout

    def say(self, progress: str) -> None:
        """Tell the person who waits what is being done."""
        print(f"guest image: {progress}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Stop watching. Idempotent."""
        self._watcher.close()
