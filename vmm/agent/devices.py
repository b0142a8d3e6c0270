"""Devices that come while the machine runs: disks found by serial, shares by tag, CPUs and memory brought online.

The kernel announces each new device on a netlink socket (uevents), so that nothing polls: look, wait, look again.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from common.errors import DeadlineExceeded, InvalidArgument, NotFound
from common.identifiers import check_identifier
from common.linux.flags import MS_NODEV, MS_RDONLY
from common.linux.mounts import mount, unmount_stack
from common.readiness import wait_readable
from vmm.agent.kernel_files import read
from vmm.protocol import share_path

_BLOCK: Final = "/sys/block"
_CPUS: Final = "/sys/devices/system/cpu"
_MEMORY: Final = "/sys/devices/system/memory"
_TIMEOUT_S = 10.0
_NETLINK_KOBJECT_UEVENT = 15  # linux/netlink.h; Python has no name for it
_KERNEL_EVENTS = 1  # the multicast group of the kernel, as opposed to udev's
_DATAGRAM_BYTES = 8192
_SERIAL_LIMIT = 20  # VIRTIO_BLK_ID_BYTES: what a device can tell of its serial

Found = TypeVar("Found")


class Disk(NamedTuple):
    """A block device: its node and its numbers."""

    path: str
    major: int
    minor: int


async def wait_for(look: Callable[[], Found | None], what: str) -> Found:
    """Return what `look` finds, now or after some device has come.

    :raise NotFound: nothing within `_TIMEOUT_S`.
    """
    found = look()
    if found is not None:
        return found
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_NETLINK, kind, _NETLINK_KOBJECT_UEVENT) as events:
        events.bind((0, _KERNEL_EVENTS))
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                while True:
                    found = look()
                    if found is not None:
                        return found
                    await wait_readable(events)
                    _drain(events)
        except TimeoutError:
            raise NotFound(f"no {what} within {_TIMEOUT_S:g} s: was it plugged in?") from None


def _drain(events: socket.socket) -> None:
    try:
        while events.recv(_DATAGRAM_BYTES):
            pass
    except BlockingIOError:
        return
    except OSError as error:
        if error.errno != errno.ENOBUFS:  # some were lost: there is something to look at all the same
            raise


async def find_disk(serial: str) -> Disk:
    """Return the disk with this serial, which may be on its way still."""
    check_identifier("disk", serial)
    return await wait_for(lambda: look_for_disk(serial), f"disk with the serial {serial}")


def look_for_disk(serial: str, directory: str = _BLOCK) -> Disk | None:
    """Return the disk with this serial, or None. A device tells 20 characters of it."""
    for name in sorted(os.listdir(directory)):
        if read(f"{directory}/{name}/serial") == serial[:_SERIAL_LIMIT]:
            major, _, minor = read(f"{directory}/{name}/dev").partition(":")
            if major.isdigit() and minor.isdigit() and os.path.exists(f"/dev/{name}"):
                return Disk(f"/dev/{name}", int(major), int(minor))
    return None


async def mount_share(tag: str, *, read_only: bool) -> None:
    """Mount the virtiofs share with this tag at its place; one that is mounted stays."""
    target = share_path(tag)
    os.makedirs(target, 0o700, exist_ok=True)
    if os.path.ismount(target):
        return
    flags = MS_NODEV | (MS_RDONLY if read_only else 0)

    def try_to_mount() -> bool | None:
        try:
            mount(tag, target, "virtiofs", flags)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENODEV, errno.ENOENT):  # no device has the tag yet
                return None
            raise
        return True

    try:
        await wait_for(try_to_mount, f"share with the tag {tag}")
    except BaseException:
        os.rmdir(target)
        raise


def unmount_share(tag: str) -> None:
    """Unmount a share; one that is not mounted is no error."""
    target = share_path(tag)
    if unmount_stack(target):
        os.rmdir(target)


def settle_share(path: str) -> None:
    """Wait until the host has answered what was asked of a share, before what is mounted below is unmounted.

    What is read ahead of a process that is killed keeps the file until it has come. A submount that ends before trips
    over a bug of Linux: "Busy inodes after unmount" (generic_shutdown_super in fs/super.c), which kills whoever
    unmounts.
    """
    # Is answered behind all that was sent before. virtiofs has no file that tells what is under way (fuse_ctl).
    os.statvfs(path)


async def bring_online(cpus: int, memory_bytes: int) -> tuple[int, int]:
    """Use every CPU and block of memory that was plugged in; return how many CPUs and bytes there are.

    :param cpus: how many there must be in the end; 0: as many as there are.
    :raise DeadlineExceeded: fewer came.
    """
    if cpus > 4096 or memory_bytes > 1 << 46:
        raise InvalidArgument(f"{cpus} CPUs and {memory_bytes} bytes of memory are not to be had")

    def look() -> tuple[int, int] | None:
        _write_all(_CPUS, "cpu", "online", "0", "1")
        _write_all(_MEMORY, "memory", "state", "offline", "online")
        now = os.sysconf("SC_NPROCESSORS_ONLN"), plugged_memory_bytes()
        return now if now[0] >= cpus and now[1] >= memory_bytes else None

    try:
        return await wait_for(look, "CPUs or memory")
    except NotFound:
        now = os.sysconf("SC_NPROCESSORS_ONLN"), plugged_memory_bytes()
        raise DeadlineExceeded(
            f"{now[0]} CPUs and {now[1]} bytes of memory are online, not {cpus} and {memory_bytes}"
        ) from None


def plugged_memory_bytes(directory: str = _MEMORY) -> int:
    """Return the memory that the kernel uses, its own included; 0 where it cannot be plugged."""
    size = read(f"{directory}/block_size_bytes")
    if not size:
        return 0
    blocks = [name for name in os.listdir(directory) if name.startswith("memory") and name[6:].isdigit()]
    online = [name for name in blocks if read(f"{directory}/{name}/state") == "online"]
    return len(online) * int(size, 16)


def _write_all(directory: str, kind: str, file: str, old: str, new: str) -> None:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in names:
        if name.startswith(kind) and name[len(kind) :].isdigit():
            path = f"{directory}/{name}/{file}"
            if read(path) == old:
                with open(path, "w", encoding="ascii") as attribute:
                    attribute.write(new)
