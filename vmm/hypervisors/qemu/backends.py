"""What stands behind late devices on the host: files, taps, and a process for each share and for vsock."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from typing import NamedTuple

from common.errors import DeadlineExceeded, Internal, InvalidArgument
from common.transport.streams import listen_unix
from vmm.hypervisors.hypervisor import Accelerator
from vmm.hypervisors.machine import Device, Disk, NetworkInterface, Place, Share
from vmm.hypervisors.processes import MachineProcesses
from vmm.hypervisors.qemu.devices import (
    Wiring,
    wire_disk,
    wire_kernel_vsock,
    wire_network,
    wire_share,
    wire_user_vsock,
)
from vmm.hypervisors.qemu.prerequisites import Programs, find_program
from vmm.hypervisors.virtiofsd import virtiofsd_command
from vmm.hypervisors.vsock_daemon import vsock_daemon_command

VSOCK = "vsock"
"""The role of the vsock daemon."""

KERNEL_VSOCK = "vsock://"
"""How an address begins for which no daemon is needed."""

_SHARE = "share-"
_VSOCK_SOCKET = "vsock"
_VSOCK_BACKEND = "vsock.backend"
_UP_LIMIT_S = 30.0
_PAUSE_S = 0.002


class Equipment(NamedTuple):
    """What this host has for machines: programs, what executes guests, and what the kernel does for them."""

    programs: Programs
    accelerator: Accelerator
    vhost_vsock: bool
    vhost_net: bool


class Backends:
    """Those of one machine."""

    __slots__ = ("_equipment", "_place", "_processes")

    def __init__(self, equipment: Equipment, place: Place, processes: MachineProcesses) -> None:
        self._equipment = equipment
        self._place = place
        self._processes = processes

    def vsock_address(self, cid: int) -> str:
        """Return the address of the machine's vsock ports, `cid` being its number if the kernel does it."""
        return (
            f"{KERNEL_VSOCK}{cid}" if self._equipment.vhost_vsock else f"hvsock://{self._path(_VSOCK_SOCKET)}"
        )

    def wire(self, device: Device, slot: int, vsock: str, *, running: bool) -> Wiring:
        """Say how QEMU gets a device, and by which process it is served. Raises InvalidArgument for a disk that is
        none.
        """
        if isinstance(device, Disk):
            return wire_disk(device, slot, is_block_device=_is_block_device(device.path))
        if isinstance(device, NetworkInterface):
            fd_name = tap_name(device) if running else str(device.tap_fd)
            return wire_network(device, slot, fd_name, vhost=self._equipment.vhost_net)
        if isinstance(device, Share):
            return wire_share(device, slot, self._share_socket(slot), f"{_SHARE}{device.device_id}")
        if vsock.startswith(KERNEL_VSOCK):
            return wire_kernel_vsock(device, slot, int(vsock.removeprefix(KERNEL_VSOCK)))
        return wire_user_vsock(device, slot, self._path(_VSOCK_BACKEND), VSOCK)

    def hold(self, device: Device, wiring: Wiring) -> None:
        """Make the process that will serve a device, if it needs one; it waits for `serve`."""
        programs = self._equipment.programs
        if isinstance(device, Share):
            with listen_unix(self._share_socket(wiring.slot)) as listener:
                argv = virtiofsd_command(
                    find_program(programs.virtiofsd), device.directory, listener.fileno()
                )
                self._processes.hold(wiring.role, argv, capabilities=True, pass_fds=[listener.fileno()])
        elif wiring.role == VSOCK:
            daemon = find_program(programs.vsock_daemon)
            argv = vsock_daemon_command(daemon, self._path(_VSOCK_BACKEND), self._path(_VSOCK_SOCKET))
            self._processes.hold(VSOCK, argv)

    async def serve(self, role: str) -> None:
        """Let a process run, and wait until it can be connected to. Raises Internal with its words when it ends."""
        if not role:
            return
        self._processes.release(role)
        if role != VSOCK:
            return  # its socket listens already
        for _ in range(int(_UP_LIMIT_S / _PAUSE_S)):
            if os.path.exists(self._path(_VSOCK_BACKEND)):
                return
            if not self._processes.lives(role):
                raise self.failure(role)
            await asyncio.sleep(_PAUSE_S)
        raise DeadlineExceeded(f"the vsock daemon did not come up within {_UP_LIMIT_S:g} s")

    def failure(self, role: str) -> Internal:
        """Return the error that says why a process has ended."""
        return Internal(f"{name_of(role)} has ended: {self._processes.words(role) or 'it said nothing'}")

    def dismiss(self, role: str, slot: int) -> None:
        """End the process of a device that QEMU does not have any more, or never had."""
        if role:
            self._processes.dismiss(role)
            self._remove(*([self._share_socket(slot)] if role != VSOCK else self._vsock_sockets()))

    def remove_sockets(self, slots: int) -> None:
        """Remove what the processes of all slots have left."""
        self._remove(*self._vsock_sockets(), *(self._share_socket(slot) for slot in range(slots)))

    def _share_socket(self, slot: int) -> str:
        return self._path(f"share{slot}.sock")

    def _vsock_sockets(self) -> list[str]:
        return [self._path(_VSOCK_SOCKET), self._path(_VSOCK_BACKEND)]

    def _path(self, name: str) -> str:
        return f"{self._place.directory}/{name}"

    def _remove(self, *paths: str) -> None:
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def name_of(role: str) -> str:
    """Return what people call the process of a role."""
    return "the vsock daemon" if role == VSOCK else f"the virtiofsd of {role.removeprefix(_SHARE)!r}"


def tap_name(interface: NetworkInterface) -> str:
    """Return the name under which a running QEMU keeps the descriptor of a tap."""
    return f"tap-{interface.device_id}"


def _is_block_device(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise InvalidArgument(f"cannot attach disk {path}: {error.strerror}") from None
    if not stat.S_ISBLK(mode) and not stat.S_ISREG(mode):
        raise InvalidArgument(f"cannot attach disk {path}: neither a file nor a block device")
    return stat.S_ISBLK(mode)
