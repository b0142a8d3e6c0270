"""Whether a guest really runs under KVM here, found out by running one.

That /dev/kvm can be opened proves nothing, nor that a machine and a processor can be made: there are hosts (nested in
others, PVM) where both succeed and the guest dies at some instruction of its early boot, or crawls. So the guest's own
kernel is booted once, up to a first program that resets the machine. The answer holds until the next boot of the host,
for this version of QEMU and this kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import ClassVar

from common.errors import SandboxdError
from common.linux import elf
from common.log import get_logger
from common.records import read_record, write_record
from vmm.hypervisors.hypervisor import ExitReason
from vmm.hypervisors.machine import BootConfig, Place
from vmm.hypervisors.processes import DriverParts
from vmm.hypervisors.qemu.backends import Equipment
from vmm.hypervisors.qemu.virtual_machine import QemuMachine
from vmm.image import cpio

LIMIT_S = 30.0
"""Nested KVM takes 9 s on a slow host; where it does not work at all, most guests die sooner."""

_FILE = "kvm-probe.json"
# Not a pod's: their directories have no names that begin with a dot.
_DIRECTORY = ".kvm-probe"
_PAUSE_S = 0.1
_MEMORY_MIB = 128

# reboot(LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_RESTART)
_INIT = bytes.fromhex(
    "bfaddee1fe"  # mov edi, 0xfee1dead
    "be69191228"  # mov esi, 672274793
    "ba67452301"  # mov edx, 0x1234567
    "b8a9000000"  # mov eax, 169 (reboot)
    "0f05"  # syscall
    "ebfe"  # jmp to itself
)

log = get_logger()


@dataclass(frozen=True, slots=True)
class KvmProbe:
    """What was found out: `reason` says in words why it does not work, "" if it does. A record: of this boot alone."""

    VERSION: ClassVar[int] = 1

    qemu: str
    kernel: str
    reason: str


async def probe_kvm(
    equipment: Equipment, version: str, kernel: str, cache_dir: str, parts: DriverParts
) -> KvmProbe:
    """Return what is known of this boot, QEMU and kernel, or find out, which takes seconds, and remember.

    `equipment` is with the accelerator that is to be tried.
    """
    path = f"{cache_dir}/{_FILE}"
    if (known := _read(path, version, kernel)) is not None:
        return known
    async with _alone(cache_dir):
        if (known := _read(path, version, kernel)) is not None:
            return known
        reason = await _boot(equipment, kernel, f"{cache_dir}/{_DIRECTORY}", parts)
        found = KvmProbe(version, kernel, reason)
        write_record(path, found)
    log.info("kvm.probed", works=not reason, reason=reason, qemu=version)
    return found


def _read(path: str, version: str, kernel: str) -> KvmProbe | None:
    with contextlib.suppress(FileNotFoundError, SandboxdError):
        known, is_of_this_boot = read_record(path, KvmProbe)
        if is_of_this_boot and (known.qemu, known.kernel) == (version, kernel):
            return known
    return None


@contextlib.asynccontextmanager
async def _alone(directory: str) -> AsyncIterator[None]:
    """Be the only process that finds out: an operator may ask what a host has while a daemon starts."""
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_PAUSE_S)
        yield
    finally:
        os.close(lock)


async def _boot(equipment: Equipment, kernel: str, directory: str, parts: DriverParts) -> str:
    await _clear(equipment, directory, parts)
    os.mkdir(directory, 0o700)
    machine = QemuMachine(equipment, Place(directory), parts)
    try:
        initrd = f"{directory}/initrd"
        with open(initrd, "wb") as file:
            file.write(cpio.archive([cpio.program("init", elf.executable(elf.X86_64, _INIT))]))
        boot = BootConfig(kernel, initrd=initrd, memory_mib=_MEMORY_MIB, slots=0, kernel_arguments="quiet")
        async with asyncio.timeout(LIMIT_S):
            await machine.start(boot, (), lambda _exit: None)
            end = await machine.wait()
        return "" if end.reason is ExitReason.GUEST_ENDED else end.message
    except TimeoutError:
        return f"a guest did not come up within {LIMIT_S:g} s"
    except SandboxdError as error:
        return str(error)
    finally:
        await machine.stop(0)
        shutil.rmtree(directory, ignore_errors=True)


async def _clear(equipment: Equipment, directory: str, parts: DriverParts) -> None:
    """End the guest of a process that has died while it found out: where KVM does not work, it would run for ever."""
    if os.path.lexists(directory):
        machine = QemuMachine(equipment, Place(directory), parts)
        with contextlib.suppress(SandboxdError):
            await machine.recover(lambda _exit: None)
            await machine.stop(0)
        shutil.rmtree(directory, ignore_errors=True)
