"""The command line of a machine, as data. What QEMU does by default is switched off; what is on has a reason here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vmm.hypervisors.hypervisor import Accelerator
from vmm.hypervisors.machine import BootConfig
from vmm.hypervisors.qemu.devices import Wiring, block_node, port_name, to_json

KERNEL_ARGUMENTS = (
    "console=ttyS0",
    # The machine, not the guest, decides what comes after an end: with -no-reboot a reset is one, and a panic resets.
    "reboot=t",
    "panic=-1",
)
"""What every kernel is told, before what the image says: that may end in arguments for the guest's first program."""

TCG_ARGUMENTS = (
    # The kernel counts ticks in a loop of a few milliseconds, and takes a timer for broken that is merely emulated on
    # a busy host ("8254 timer not connected to IO-APIC": it hangs, or panics). Under KVM it does not count.
    "no_timer_check",
)


@dataclass(frozen=True, slots=True)
class Files:
    """Where the machine's own files are, and the number of the descriptor on which its monitor listens."""

    console: str
    monitor_fd: int


def command_line(
    program: str, boot: BootConfig, accelerator: Accelerator, files: Files, devices: Iterable[Wiring] = ()
) -> list[str]:
    """Return the arguments of a q35 machine: boot devices, free slots, and late devices in their slots."""
    return [
        program,
        # In the kernel's list of processes, for people.
        "-name", "sandboxd,debug-threads=on",
        # No default devices, no configuration files of the host, no window.
        "-nodefaults", "-no-user-config", "-display", "none",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        *_machine(boot, accelerator),
        # A machine that ends is not started again: what it was is in the engine's hands.
        "-no-reboot",
        "-chardev", f"socket,id=monitor,fd={files.monitor_fd},server=on,wait=off",
        "-mon", "chardev=monitor,mode=control",
        # Appending: the file is cut at its beginning while the guest writes (see `common/log_files.py`).
        "-chardev", f"file,id=console,path={_escaped(files.console)},append=on",
        "-serial", "chardev:console",
        *_kernel(boot, accelerator),
        *_root(boot),
        *_slots(boot.slots),
        *(word for wiring in devices for word in wiring.options()),
    ]  # fmt: skip


def _machine(boot: BootConfig, accelerator: Accelerator) -> list[str]:
    # q35, also where the faster-booting `microvm` exists: that has no hot-plug, and under TCG no reliable clock.
    # Of what q35 brings along, these are never used by a guest of ours, and are code that a hostile one can reach.
    machine = "q35,memory-backend=memory,sata=off,smbus=off,vmport=off,i8042=off"
    # All that the host has, or all that QEMU can emulate: no machine is ever moved to another host. But emulated, a
    # string instruction is a loop of its own, and with ERMS the kernel clears pages by bytes instead of words: without
    # it a boot to the agent takes a tenth less.
    cpu = "host" if accelerator is Accelerator.KVM else "max,-erms"
    memory = {
        "qom-type": "memory-backend-memfd",
        "id": "memory",
        "size": boot.memory_mib << 20,
        # vhost-user backends (virtiofsd, the vsock daemon) map the guest's memory.
        "share": True,
    }
    return [
        "-machine", machine, "-accel", accelerator.value, "-cpu", cpu, "-smp", str(boot.vcpus),
        "-m", f"{boot.memory_mib}M", "-object", to_json(memory),
    ]  # fmt: skip


def _kernel(boot: BootConfig, accelerator: Accelerator) -> list[str]:
    timer = TCG_ARGUMENTS if accelerator is Accelerator.TCG else ()
    arguments = " ".join((*KERNEL_ARGUMENTS, *timer, boot.kernel_arguments)).rstrip()
    initrd = ["-initrd", boot.initrd] if boot.initrd else []
    return ["-kernel", boot.kernel, *initrd, "-append", arguments]


def _root(boot: BootConfig) -> list[str]:
    if not boot.root_image:
        return []
    node = block_node("root", boot.root_image, True, is_block_device=False)
    return [
        node.option,
        node.value,
        "-device",
        to_json({"driver": "virtio-blk-pci", "drive": "root", "id": "root"}),
    ]


def _slots(count: int) -> list[str]:
    words = []
    for slot in range(count):
        # Chassis numbers count from 1 and must differ (docs/pcie.txt).
        # Sixteen windows of I/O ports would be all there are, and virtio devices need none.
        port = {"driver": "pcie-root-port", "id": port_name(slot), "chassis": slot + 1, "io-reserve": 0}
        words += ["-device", to_json(port)]
    return words


def _escaped(path: str) -> str:
    return path.replace(",", ",,")
