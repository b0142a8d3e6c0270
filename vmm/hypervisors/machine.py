"""What a virtual machine is made of: plain descriptions, the same for every hypervisor.

Boot devices are there when the kernel starts (processors, memory, kernel, read-only root disk, free slots). Late
devices (disk, share, network interface, vsock) can be there too, or be attached to a running machine: by the same
description, so that a machine restored from a template gets them as a booted one does.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import InvalidArgument
from common.identifiers import check_identifier

LONGEST_MEMBER = "vsock_4294967295"
"""The longest name of a socket in a machine's directory (see `common.identifiers.directory_name`)."""

VIRTIOFS_TAG_BYTES = 36
"""Longest name of a share (virtio 1.2, 5.11.4)."""

SERIAL_BYTES = 20
"""Longest serial number of a disk (virtio 1.2, 5.2.6)."""


@dataclass(frozen=True, slots=True)
class BootConfig:
    """What must be there before the first instruction. Nothing here may tell one machine from another.

    `kernel` is an ELF vmlinux or a bzImage. `root_image` is a file system image that every machine may share: it is
    opened for reading alone, and is the guest's first disk (/dev/vda). `kernel_arguments` say which root that is and
    what to start; the console and what follows on an end are the driver's. `slots` is how many late devices fit.
    """

    kernel: str
    root_image: str = ""
    initrd: str = ""
    kernel_arguments: str = ""
    vcpus: int = 1
    memory_mib: int = 256
    slots: int = 16


@dataclass(frozen=True, slots=True)
class Disk:
    """A raw file or block device; the guest finds it by `/sys/block/*/serial`, which is the id."""

    device_id: str
    path: str
    read_only: bool = False

    def __post_init__(self) -> None:
        _check(self.device_id, SERIAL_BYTES)


@dataclass(frozen=True, slots=True)
class Share:
    """A directory of the host with what is mounted below it, now or later; the guest mounts it, its id is the tag."""

    device_id: str
    directory: str

    def __post_init__(self) -> None:
        _check(self.device_id, VIRTIOFS_TAG_BYTES)


@dataclass(frozen=True, slots=True)
class NetworkInterface:
    """A tap device; the guest knows it by its address.

    `tap_fd` stays the caller's, who may close it when the device is attached. `mtu` 0: the guest chooses.
    """

    device_id: str
    mac: str
    tap_fd: int
    mtu: int = 0

    def __post_init__(self) -> None:
        _check(self.device_id, SERIAL_BYTES)


@dataclass(frozen=True, slots=True)
class Vsock:
    """Sockets between host and guest; at most one per machine. Their address: `VirtualMachine.vsock`."""

    device_id: str = "vsock"


Device = Disk | Share | NetworkInterface | Vsock


@dataclass(frozen=True, slots=True)
class Place:
    """Where a machine's processes run, and what on disk is theirs.

    `directory` (0700, the caller's) takes sockets, logs and the record; its path is short enough for sockets.
    `netns_path` is the network namespace that the hypervisor joins, `cgroups` the directories whose `cgroup.procs`
    all processes of the machine are written to before they do anything: one for v2, one per controller for v1.
    """

    directory: str
    netns_path: str = ""
    cgroups: tuple[str, ...] = ()


def _check(device_id: str, longest: int) -> None:
    check_identifier("device", device_id)
    if len(device_id) > longest:
        raise InvalidArgument(
            f"device id {device_id!r} is longer than the {longest} bytes that the guest can read"
        )
