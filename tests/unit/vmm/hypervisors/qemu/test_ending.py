"""One reason for the end of a machine, whatever was seen first."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.process.exits import ExitStatus
from vmm.hypervisors.hypervisor import ExitReason
from vmm.hypervisors.processes import MachineProcesses
from vmm.hypervisors.qemu.ending import QEMU, Ending

KILLED = ExitStatus(137, 1)
FAILED = ExitStatus(1, 2)
PANIC = "[    1.0] Kernel panic - not syncing: no reason\n"


class Words(MachineProcesses):
    """Processes of which only the last words are asked for."""

    def __init__(self) -> None:
        pass

    def words(self, role: str) -> str:
        return "" if role == "silent" else f"{role} says so"


def explained(ending: Ending, tmp_path: Path, console: str = "") -> tuple[ExitReason, str]:
    (tmp_path / "console").write_text(console)
    end = ending.explain(Words(), str(tmp_path / "console"))
    return end.reason, end.message


@pytest.mark.parametrize(
    ("seen", "qemu_leaves", "reason", "message"),
    [
        ([(QEMU, KILLED)], False, ExitReason.HYPERVISOR_ENDED, "QEMU was killed by signal 9: qemu says so"),
        ([(QEMU, FAILED), ("vsock", KILLED)], False, ExitReason.HYPERVISOR_ENDED, "QEMU ended with code 1"),
        (
            [("vsock", KILLED), (QEMU, KILLED)],
            False,
            ExitReason.VSOCK_DAEMON_ENDED,
            "the vsock daemon was killed",
        ),
        (
            [("share-a", FAILED), (QEMU, KILLED)],
            False,
            ExitReason.SHARE_DAEMON_ENDED,
            "the virtiofsd of 'a' ended",
        ),
        # It had hung up before: the helper has only noticed first.
        (
            [("share-a", FAILED), (QEMU, KILLED)],
            True,
            ExitReason.HYPERVISOR_ENDED,
            "QEMU was killed by signal 9",
        ),
        ([("share-a", FAILED)], True, ExitReason.HYPERVISOR_ENDED, "QEMU has ended"),
        ([], False, ExitReason.HYPERVISOR_ENDED, "QEMU has ended"),
    ],
)
def test_the_first_process_is_the_cause_unless_qemu_was_about_to_end(
    tmp_path: Path,
    seen: list[tuple[str, ExitStatus]],
    qemu_leaves: bool,
    reason: ExitReason,
    message: str,
) -> None:
    ending = Ending()
    for role, status in seen:
        ending.see(role, status, qemu_leaves=qemu_leaves)
    found, words = explained(ending, tmp_path)
    assert found is reason
    assert words.startswith(message)


@pytest.mark.parametrize("role", [QEMU, "share-a", "vsock"])
def test_a_guest_that_ends_is_the_cause_whoever_ends_first(tmp_path: Path, role: str) -> None:
    ending = Ending()
    ending.shutdown = "guest-reset"
    ending.see(role, ExitStatus(0, 5), qemu_leaves=True)
    assert explained(ending, tmp_path) == (
        ExitReason.GUEST_ENDED,
        "the guest has ended by itself (guest-reset)",
    )
    assert explained(ending, tmp_path, PANIC) == (
        ExitReason.GUEST_PANICKED,
        "the guest's kernel panicked: no reason",
    )


def test_a_panic_on_the_console_means_nothing_while_the_guest_has_not_ended(tmp_path: Path) -> None:
    ending = Ending()
    ending.see(QEMU, KILLED, qemu_leaves=False)
    assert explained(ending, tmp_path, PANIC)[0] is ExitReason.HYPERVISOR_ENDED, (
        "anybody can write that there"
    )


def test_a_guest_that_was_stopped_for_good_is_qemus_matter(tmp_path: Path) -> None:
    ending = Ending()
    ending.is_stuck = True
    ending.see(QEMU, KILLED, qemu_leaves=False)
    assert explained(ending, tmp_path) == (
        ExitReason.HYPERVISOR_ENDED,
        "QEMU has stopped the guest: qemu says so",
    )


def test_what_was_asked_for_needs_no_cause(tmp_path: Path) -> None:
    ending = Ending()
    ending.is_stopping = True
    ending.see("vsock", KILLED, qemu_leaves=False)
    assert explained(ending, tmp_path)[0] is ExitReason.STOPPED


def test_the_time_is_that_of_the_first_end(tmp_path: Path) -> None:
    ending = Ending()
    ending.see("vsock", KILLED, qemu_leaves=False)
    ending.see(QEMU, FAILED, qemu_leaves=False)
    assert ending.explain(Words(), "/nonesuch").exited_at_ns == KILLED.exited_at_ns
