"""What a kernel that has just started PID 1 lacks: its file systems, a cgroup tree, and directories to work in."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Final, NamedTuple

from common.linux.flags import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_REC, MS_SHARED
from common.linux.mounts import mount
from common.linux.reboot import RESTART, reboot
from common.log import get_logger
from vmm.agent.kernel_files import read
from vmm.protocol import HOST_PORT, HOST_PORT_PARAMETER, RUN_DIRECTORY, SHARES_DIRECTORY

CGROUP_ROOT: Final = "/sys/fs/cgroup"
POD_CGROUP: Final = "/pod"

log = get_logger()


class _Mount(NamedTuple):
    fstype: str
    target: str
    flags: int
    options: str = ""


_PLAIN = MS_NOSUID | MS_NODEV | MS_NOEXEC

# In this order. The root is read-only: all that is written is in memory.
MOUNTS: Final = (
    _Mount("proc", "/proc", _PLAIN),
    _Mount("sysfs", "/sys", _PLAIN),
    _Mount("devtmpfs", "/dev", MS_NOSUID, "mode=755"),
    _Mount("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "mode=620,gid=5,ptmxmode=666"),
    _Mount("mqueue", "/dev/mqueue", _PLAIN),
    _Mount("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=755"),
    _Mount("tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777"),
    # favordynmods: moving a process into a cgroup would wait for a grace period else.
    _Mount("cgroup2", CGROUP_ROOT, _PLAIN, "nsdelegate,favordynmods"),
)

# Busy: the kernel or its initial RAM disk has mounted it. Unknown: the kernel was built without it, or without fuse.
_TOLERATED = frozenset({errno.EBUSY, errno.ENODEV, errno.ENOENT})


def prepare_machine() -> None:
    """Mount what a container and the agent need, and hand the cgroup controllers down.

    :raise OSError: something without which nothing can run cannot be mounted.
    """
    os.umask(0o022)
    for wanted in MOUNTS:
        _mount(wanted)
    # What is mounted later in a share must be seen in containers that have bound its parent.
    mount(None, "/", None, MS_SHARED | MS_REC)
    prepare_directories(RUN_DIRECTORY)
    _write("/sys/devices/system/memory/auto_online_blocks", "online")
    delegate_controllers(CGROUP_ROOT)
    os.makedirs(CGROUP_ROOT + POD_CGROUP, exist_ok=True)
    delegate_controllers(CGROUP_ROOT + POD_CGROUP)


def prepare_directories(directory: str) -> None:
    """Make the agent's own directories."""
    for name in ("", "/tasks", "/pod", SHARES_DIRECTORY.removeprefix(RUN_DIRECTORY)):
        os.makedirs(directory + name, 0o700, exist_ok=True)


def delegate_controllers(cgroup: str) -> None:
    """Let the children of a cgroup have each controller that the cgroup has (cgroups(7))."""
    controllers = read(f"{cgroup}/cgroup.controllers").split()
    _write(f"{cgroup}/cgroup.subtree_control", " ".join(f"+{controller}" for controller in controllers))


def host_port(command_line: str) -> int:
    """Return the port of the host that a kernel's command line names, or the usual one."""
    for word in command_line.split():
        name, _, value = word.partition("=")
        if name == HOST_PORT_PARAMETER and value.isascii() and value.isdigit():
            return int(value)
    return HOST_PORT


def _mount(wanted: _Mount) -> None:
    if wanted.target.startswith(("/dev/", CGROUP_ROOT)):
        with contextlib.suppress(OSError):
            os.mkdir(wanted.target)
    try:
        mount(wanted.fstype, wanted.target, wanted.fstype, wanted.flags, wanted.options)
    except OSError as error:
        if error.errno == errno.EINVAL and "favordynmods" in wanted.options:
            _mount(wanted._replace(options=wanted.options.replace(",favordynmods", "")))
        elif error.errno not in _TOLERATED:
            raise


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        log.debug("boot.not_written", path=path, error=error)


def reset() -> None:
    """End the machine: its hypervisor is told to take a reset for the end. Raises OSError if the kernel refuses."""
    reboot(RESTART)
