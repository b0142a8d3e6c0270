"""What this host must have for QEMU machines: found or not, and the command that gets it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import FailedPrecondition, SandboxdError
from common.process.exits import ExitWatcher
from common.process.spawn import CAPTURE, CLEAN_ENVIRONMENT, run
from vmm.hypervisors.hypervisor import Prerequisite
from vmm.hypervisors.machine import BootConfig, Device, Share, Vsock
from vmm.image.manifest import build_hint

OLDEST_QEMU = (7, 2)
"""JSON values for -device and -netdev; earlier ones were not tried."""

KVM = "/dev/kvm"
VHOST_VSOCK = "/dev/vhost-vsock"
VHOST_NET = "/dev/vhost-net"
TUN = "/dev/net/tun"

GET_QEMU = "apt-get install qemu-system-x86"
_FETCH = "in a checkout of sandboxd: scripts/fetch-vm-helpers DIRECTORY"
GET_VIRTIOFSD = f"apt-get install virtiofsd (from Debian 13 on), or, {_FETCH}"
GET_VSOCK = f"modprobe vhost_vsock, or, where the kernel has no such module, {_FETCH}"
GET_KVM = "modprobe kvm_intel or kvm_amd; without it guests are emulated, which is several times slower"

# Debian keeps programs in the last that nobody calls by hand.
_SEARCH_PATH = CLEAN_ENVIRONMENT["PATH"] + ":/usr/libexec"
_VERSION_LIMIT_S = 10.0
_VERSION = re.compile(r"\d+(\.\d+)+")


@dataclass(frozen=True, slots=True)
class Programs:
    """By name or absolute path, as they are configured."""

    qemu: str = "qemu-system-x86_64"
    virtiofsd: str = "virtiofsd"
    vsock_daemon: str = "vhost-device-vsock"


def find_program(name: str) -> str:
    """Return the absolute path of an installed program, "" if there is none."""
    return shutil.which(name, path=_SEARCH_PATH) or ""


async def version_of(program: str, watcher: ExitWatcher) -> tuple[int, ...]:
    """Return the version that a program tells of itself; () if it tells none."""
    try:
        done = await run([program, "--version"], watcher=watcher, timeout_s=_VERSION_LIMIT_S, stdout=CAPTURE)
    except SandboxdError:
        return ()
    found = _VERSION.search(done.stdout.decode(errors="replace"))
    return tuple(map(int, found[0].split("."))) if found and done.status.code == 0 else ()


def check_installed(
    programs: Programs, boot: BootConfig | None, devices: Sequence[Device], *, vhost_vsock: bool
) -> None:
    """Look for what a start (or, without `boot`, late devices) needs.

    Raises FailedPrecondition that names all that is missing, and how to get it.
    """
    needed = [(programs.qemu, GET_QEMU)]
    if any(isinstance(device, Share) for device in devices):
        needed.append((programs.virtiofsd, GET_VIRTIOFSD))
    if not vhost_vsock and any(isinstance(device, Vsock) for device in devices):
        needed.append((programs.vsock_daemon, GET_VSOCK))
    missing = [f"{name} is not installed: {remedy}" for name, remedy in needed if not find_program(name)]
    missing += [
        f"{path} is missing: {build_hint(path)}"
        for _, path in (_files(boot) if boot else ())
        if not os.path.isfile(path)
    ]
    if missing:
        raise FailedPrecondition("cannot start a QEMU machine: " + "; ".join(missing))


async def check_all(programs: Programs, boot: BootConfig, watcher: ExitWatcher) -> list[Prerequisite]:
    """Return all that matters but KVM, with the versions found."""
    vsock = _existing(VHOST_VSOCK) or (await _described(programs.vsock_daemon, watcher))[0]
    return [
        await _check_qemu(programs.qemu, watcher),
        Prerequisite("virtiofsd", (await _described(programs.virtiofsd, watcher))[0], GET_VIRTIOFSD),
        Prerequisite("vsock", vsock, GET_VSOCK),
        Prerequisite("tap devices", _existing(TUN), "modprobe tun"),
        *(
            Prerequisite(f"guest {part}", _existing(path), f"{path} is missing: {build_hint(path)}")
            for part, path in _files(boot)
        ),
        Prerequisite("vhost-net", _existing(VHOST_NET), "modprobe vhost_net", optional=True),
    ]


async def _check_qemu(name: str, watcher: ExitWatcher) -> Prerequisite:
    words, version = await _described(name, watcher)
    if version and version < OLDEST_QEMU:
        oldest = ".".join(map(str, OLDEST_QEMU))
        return Prerequisite("QEMU", "", f"{words} is too old, at least {oldest} is needed: {GET_QEMU}")
    return Prerequisite("QEMU", words, GET_QEMU)


async def _described(name: str, watcher: ExitWatcher) -> tuple[str, tuple[int, ...]]:
    path = find_program(name)
    version = await version_of(path, watcher) if path else ()
    return f"{path} {'.'.join(map(str, version))}".strip(), version


def _existing(path: str) -> str:
    return path if os.path.exists(path) else ""


def _files(boot: BootConfig) -> list[tuple[str, str]]:
    parts = (("kernel", boot.kernel), ("root image", boot.root_image), ("initial RAM disk", boot.initrd))
    return [(part, path) for part, path in parts if path]
