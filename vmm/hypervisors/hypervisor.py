"""The two interfaces of every driver: `Hypervisor`, of which a daemon has one, and `VirtualMachine`."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vmm.hypervisors.machine import BootConfig, Device, Place


class Accelerator(enum.StrEnum):
    """What executes the guest's instructions."""

    AUTO = "auto"  # kvm where a guest really runs under it, which is tried once, else tcg
    KVM = "kvm"
    TCG = "tcg"


class ExitReason(enum.StrEnum):
    """Why a machine is no more."""

    STOPPED = "stopped"  # asked for through `stop`
    GUEST_ENDED = "guest-ended"  # it has powered itself off, or reset itself: no machine starts twice
    GUEST_PANICKED = "guest-panicked"
    HYPERVISOR_ENDED = "hypervisor-ended"  # killed, crashed, or it gave up
    SHARE_DAEMON_ENDED = "share-daemon-ended"
    VSOCK_DAEMON_ENDED = "vsock-daemon-ended"


@dataclass(frozen=True, slots=True)
class GuestExit:
    """The end of a machine: nothing of it runs any more. `message` is for the operator and quotes the program."""

    reason: ExitReason
    message: str
    exited_at_ns: int


OnExit = Callable[[GuestExit], None]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a driver can do besides what all can. A caller asks before, and refuses pods that need more.

    `attachable` are the kinds of devices that a running machine can get; all kinds can be there at its start.
    """

    accelerator: Accelerator
    attachable: frozenset[type[Device]]
    pausable: bool


@dataclass(frozen=True, slots=True)
class Prerequisite:
    """Something that machines need of this host. `found` says what is there, "" if nothing is; `remedy` how to get it.
    It is `optional` where there is another way.
    """

    name: str
    found: str
    remedy: str
    optional: bool = False

    @property
    def is_met(self) -> bool:
        """Whether machines can be started as far as this is concerned."""
        return bool(self.found) or self.optional


class VirtualMachine(Protocol):
    """One machine, from its start to its end; not started again after that.

    Whichever of its processes ends first, the machine ends as a whole: all others are killed, then `on_exit` is
    called once, from the event loop, also after `stop`.
    """

    @property
    def vsock(self) -> str:
        """The address of its vsock ports for `common.transport`; the guest is there once it has a `Vsock`.

        Known before `start`, so that somebody can listen. Never connect before the guest has.
        """
        ...

    @property
    def console_path(self) -> str:
        """The file with what the guest has lately written to its console."""
        ...

    @property
    def exit(self) -> GuestExit | None:
        """How it has ended, or None."""
        ...

    def devices(self) -> frozenset[str]:
        """Return the ids of the late devices that it has."""
        ...

    def pids(self) -> dict[str, int]:
        """Return its live processes by their role, such as "qemu", "vsock", "share-<id>"."""
        ...

    async def start(self, boot: BootConfig, devices: Sequence[Device], on_exit: OnExit) -> None:
        """Start it with these late devices, or leave nothing behind; the guest's kernel is about to run then.

        Raises FailedPrecondition naming what is missing on this host and how to get it, InvalidArgument for a
        device it cannot have, Internal with the program's own words, DeadlineExceeded.
        """
        ...

    async def attach(self, device: Device) -> None:
        """Attach a device to the running machine, or leave nothing behind; the guest may see it a moment later.

        Raises FailedPrecondition when it has ended, AlreadyExists for an id in use, ResourceExhausted without a
        free slot, Internal with the program's own words, DeadlineExceeded.
        """
        ...

    async def detach(self, device_id: str) -> None:
        """Detach a device and wait until the guest has let go of it; what it stood for is closed then.

        Raises NotFound, FailedPrecondition when the machine has ended, DeadlineExceeded when the guest does not let go.
        """
        ...

    async def pause(self) -> None:
        """Stop the guest's processors; harmless when they are stopped. Raises FailedPrecondition when it has ended.

        Until `resume` nobody may send anything to its vsock: some daemons lose the connection with it.
        """
        ...

    async def resume(self) -> None:
        """Let them go on."""
        ...

    async def wait(self) -> GuestExit:
        """Return the end as soon as there is one."""
        ...

    async def stop(self, timeout_s: float) -> None:
        """Give a guest that its agent has asked to end `timeout_s` for that, 0: none; then end it by force.

        No power button is pressed: nobody in a guest would hear it but its agent, which can be asked. Idempotent, in
        whatever state, frozen or dead; returns when no process of it is left. Raises DeadlineExceeded when one survives
        SIGKILL.
        """
        ...

    async def recover(self, on_exit: OnExit) -> bool:
        """Instead of `start`: take up what an earlier daemon has started in this directory.

        False: nothing of it runs any more (what was left is cleaned, `exit` tells what is known, `on_exit` is not
        called). Raises UnreadableRecord, FailedPrecondition as `read_record` does; nothing is touched then.
        """
        ...

    def close(self) -> None:
        """Let go of it without ending it: what a daemon does that goes away."""
        ...


class Hypervisor(Protocol):
    """A hypervisor as it is installed and configured here."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; final once `prepare` has returned."""
        ...

    async def prepare(self, kernel: str) -> None:
        """Find out, once per daemon and before pods, what this host can do with the guests' kernel; may boot it, for
        seconds at most.

        Never fails because something is missing: `start` then says what.
        """
        ...

    async def prerequisites(self, boot: BootConfig) -> list[Prerequisite]:
        """Return what this host needs for such machines and what of it is there, for people; call `prepare` before."""
        ...

    def machine(self, place: Place) -> VirtualMachine:
        """Return a machine that is not started yet; nothing is made."""
        ...

    def close(self) -> None:
        """Let go of what belongs to no machine, when the daemon ends; machines go on."""
        ...
