"""A service of the node, as systemctl shows and changes it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.engine.daemons import daemon_below, listener_of
from tests.engine.namespaces import wait_until

SUPERVISED = os.environ.get("SANDBOXD_SUPERVISED", "") != ""
"""Whether services have our supervisor between systemd and the daemon."""

COMMAND_LIMIT_S = 120
READY_LIMIT_S = 120


def systemctl(*arguments: str) -> str:
    """Run systemctl to its end and return its output; CalledProcessError if it fails."""
    command = ["systemctl", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=COMMAND_LIMIT_S)
    return done.stdout.strip()


def journal(unit: str, lines: int | None = None) -> str:
    """Return what a unit has logged in this boot, or the end of it."""
    limit = [f"--lines={lines}"] if lines is not None else []
    command = ["journalctl", "--boot", "--no-pager", "--output=cat", f"--unit={unit}", *limit]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


class Service:
    """A unit whose daemon, or the daemon below its supervisor, listens on a socket."""

    def __init__(self, unit: str, socket: Path) -> None:
        self.unit = unit
        self._socket = socket

    def __call__(self, verb: str, *options: str) -> str:
        """Run systemctl on the unit."""
        return systemctl(verb, *options, self.unit)

    def show(self, name: str) -> str:
        """Return one of its properties."""
        return self("show", "--value", f"--property={name}")

    @property
    def stored(self) -> int:
        """How many descriptors systemd keeps for it."""
        return int(self.show("NFileDescriptorStore"))

    @property
    def main_pid(self) -> int:
        """The pid that systemd knows; raises ProcessLookupError while there is none."""
        pid = int(self.show("MainPID"))
        if not pid:
            raise ProcessLookupError(f"{self.unit} does not run")
        return pid

    @property
    def daemon_pid(self) -> int:
        """The pid of the process that serves; raises ProcessLookupError while there is none."""
        return daemon_below(self.main_pid) if SUPERVISED else self.main_pid

    def wait(self, but: int = 0) -> None:
        """Wait until a daemon serves whose pid is another than this."""

        def serves() -> bool:
            try:
                return (
                    self.daemon_pid != but
                    and listener_of(self._socket) == self.daemon_pid
                    and self.show("ActiveState") == "active"
                )
            except (FileNotFoundError, ProcessLookupError):
                return False

        wait_until(serves, timeout_s=READY_LIMIT_S, what=f"a daemon of {self.unit}", interval_s=0.1)

    def replace(self, act: Callable[[], object]) -> None:
        """Do what ends the daemon, and wait for the next one."""
        before = self.daemon_pid
        act()
        self.wait(before)

    def kill_daemon(self) -> None:
        """Send SIGKILL to the process that serves."""
        os.kill(self.daemon_pid, signal.SIGKILL)

    def stop_and_start(self) -> None:
        """Stop the unit, and start it again."""
        self("stop")
        self("start")
