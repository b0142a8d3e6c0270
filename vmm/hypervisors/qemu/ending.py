"""How a machine ends: what was seen of it, in whatever order, and the one reason that follows."""

from __future__ import annotations

import time

from common.process.exits import ExitStatus
from vmm.hypervisors.hypervisor import ExitReason, GuestExit
from vmm.hypervisors.last_words import described, panic_on
from vmm.hypervisors.processes import MachineProcesses
from vmm.hypervisors.qemu.backends import VSOCK, name_of

QEMU = "qemu"
"""The role of QEMU itself."""


class Ending:
    """What is known of the end of one machine; nothing while it lives."""

    __slots__ = (
        "_qemu_leaves",
        "_qemu_status",
        "first_role",
        "first_status",
        "is_stopping",
        "is_stuck",
        "shutdown",
    )

    def __init__(self) -> None:
        self.first_role = ""
        self.first_status: ExitStatus | None = None
        # Asked for; QEMU has stopped the guest for good; why the guest has ended, in QEMU's words.
        self.is_stopping = False
        self.is_stuck = False
        self.shutdown = ""
        self._qemu_leaves = False
        self._qemu_status: ExitStatus | None = None

    def see(self, role: str, status: ExitStatus, *, qemu_leaves: bool) -> None:
        """Note that a process has ended. `qemu_leaves` tells whether QEMU has hung up or said that it shuts down: its
        helpers see their sockets closed before anybody sees that it has ended.
        """
        if role == QEMU:
            self._qemu_status = status
        if not self.first_role:
            self.first_role, self.first_status = role, status
            self._qemu_leaves = qemu_leaves

    def explain(self, processes: MachineProcesses, console_path: str) -> GuestExit:
        """Return the end with its reason."""
        reason, message = self._explain(processes, console_path)
        return GuestExit(
            reason, message, self.first_status.exited_at_ns if self.first_status else time.time_ns()
        )

    def _explain(self, processes: MachineProcesses, console_path: str) -> tuple[ExitReason, str]:
        if self.is_stopping:
            return ExitReason.STOPPED, "it was stopped"
        if self.shutdown.startswith("guest"):
            if panic := panic_on(console_path):
                return ExitReason.GUEST_PANICKED, f"the guest's kernel panicked: {panic}"
            return ExitReason.GUEST_ENDED, f"the guest has ended by itself ({self.shutdown})"
        if self.is_stuck:
            return ExitReason.HYPERVISOR_ENDED, f"QEMU has stopped the guest: {_words(processes, QEMU)}"
        if self.first_role in ("", QEMU) or self._qemu_leaves:
            how = described(self._qemu_status)
            return ExitReason.HYPERVISOR_ENDED, f"QEMU {how}: {_words(processes, QEMU)}"
        is_vsock = self.first_role == VSOCK
        reason = ExitReason.VSOCK_DAEMON_ENDED if is_vsock else ExitReason.SHARE_DAEMON_ENDED
        how = described(self.first_status)
        return reason, f"{name_of(self.first_role)} {how}: {_words(processes, self.first_role)}"


def _words(processes: MachineProcesses, role: str) -> str:
    return processes.words(role) or "it said nothing"
