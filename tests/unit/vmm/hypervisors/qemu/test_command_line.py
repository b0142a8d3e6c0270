"""The whole command line, word for word: what changes it is seen in a review."""

from __future__ import annotations

import json

import pytest

from vmm.hypervisors.hypervisor import Accelerator
from vmm.hypervisors.machine import BootConfig, Disk, NetworkInterface, Share, Vsock
from vmm.hypervisors.qemu.command_line import Files, command_line
from vmm.hypervisors.qemu.devices import (
    Wiring,
    wire_disk,
    wire_kernel_vsock,
    wire_network,
    wire_share,
    wire_user_vsock,
)

BOOT = BootConfig(
    kernel="/guest/vmlinux",
    root_image="/guest/root",
    initrd="/guest/initrd",
    kernel_arguments="root=/dev/vda ro init=/init -- -I /agent",
    vcpus=2,
    memory_mib=256,
    slots=2,
)
FILES = Files("/run/m/console.log", 7)

GOLDEN = """\
qemu-system-x86_64
-name sandboxd,debug-threads=on
-nodefaults
-no-user-config
-display none
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-machine q35,memory-backend=memory,sata=off,smbus=off,vmport=off,i8042=off
-accel tcg
-cpu max,-erms
-smp 2
-m 256M
-object {"qom-type":"memory-backend-memfd","id":"memory","size":268435456,"share":true}
-no-reboot
-chardev socket,id=monitor,fd=7,server=on,wait=off
-mon chardev=monitor,mode=control
-chardev file,id=console,path=/run/m/console.log,append=on
-serial chardev:console
-kernel /guest/vmlinux
-initrd /guest/initrd
-append console=ttyS0 reboot=t panic=-1 no_timer_check root=/dev/vda ro init=/init -- -I /agent
-blockdev {"driver":"raw","node-name":"root","read-only":true,"file":{"driver":"file","filename":"/guest/root","read-only":true}}
-device {"driver":"virtio-blk-pci","drive":"root","id":"root"}
-device {"driver":"pcie-root-port","id":"port0","chassis":1,"io-reserve":0}
-device {"driver":"pcie-root-port","id":"port1","chassis":2,"io-reserve":0}
"""  # noqa: E501

DEVICES = {
    "disk": (
        wire_disk(Disk("vol1", "/dev/sdb", read_only=True), 0, is_block_device=True),
        "blockdev-add",
        """\
-blockdev {"driver":"raw","node-name":"disk-vol1","read-only":true,"file":{"driver":"host_device","filename":"/dev/sdb","read-only":true}}
-device {"driver":"virtio-blk-pci","id":"dev-vol1","bus":"port0","drive":"disk-vol1","serial":"vol1","werror":"report","rerror":"report"}
""",  # noqa: E501
    ),
    "share": (
        wire_share(Share("files", "/shared"), 1, "/run/a,b/share1.sock", "share-files"),
        "chardev-add",
        """\
-chardev socket,id=share-files,path=/run/a,,b/share1.sock
-device {"driver":"vhost-user-fs-pci","id":"dev-files","bus":"port1","chardev":"share-files","tag":"files","queue-size":1024}
""",  # noqa: E501
    ),
    "network": (
        wire_network(NetworkInterface("net0", "52:54:00:00:00:01", 9, mtu=1400), 0, "9", vhost=True),
        "netdev_add",
        """\
-netdev {"type":"tap","id":"net-net0","fd":"9","vhost":true}
-device {"driver":"virtio-net-pci","id":"dev-net0","bus":"port0","netdev":"net-net0","mac":"52:54:00:00:00:01","romfile":"","host_mtu":1400}
""",  # noqa: E501
    ),
    "vsock of the kernel": (
        wire_kernel_vsock(Vsock(), 0, 70000),
        "",
        """\
-device {"driver":"vhost-vsock-pci","id":"dev-vsock","bus":"port0","guest-cid":70000}
""",
    ),
    "vsock of a daemon": (
        wire_user_vsock(Vsock(), 0, "/run/m/vsock.backend", "vsock"),
        "chardev-add",
        """\
-chardev socket,id=vsock-vsock,path=/run/m/vsock.backend
-device {"driver":"vhost-user-vsock-pci","id":"dev-vsock","bus":"port0","chardev":"vsock-vsock"}
""",
    ),
}


def as_lines(words: list[str]) -> str:
    """One option with its value a line."""
    text = ""
    for word in words:
        text += f"\n{word}" if word.startswith("-") and text else f"{' ' if text else ''}{word}"
    return text.lstrip() + "\n"


def test_an_emulated_machine() -> None:
    assert as_lines(command_line("qemu-system-x86_64", BOOT, Accelerator.TCG, FILES)) == GOLDEN


def test_a_machine_under_kvm_differs_in_what_it_must() -> None:
    lines = as_lines(command_line("qemu-system-x86_64", BOOT, Accelerator.KVM, FILES)).splitlines()
    different = [line for line in lines if line not in GOLDEN.splitlines()]
    assert different == [
        "-accel kvm",
        "-cpu host",
        "-append console=ttyS0 reboot=t panic=-1 root=/dev/vda ro init=/init -- -I /agent",
    ]


def test_a_machine_without_disk_and_slots() -> None:
    lines = as_lines(
        command_line("qemu", BootConfig(kernel="/k", slots=0), Accelerator.TCG, FILES)
    ).splitlines()
    assert lines[-2:] == ["-kernel /k", "-append console=ttyS0 reboot=t panic=-1 no_timer_check"]


def test_a_comma_in_a_path_has_no_meaning() -> None:
    words = command_line("qemu", BOOT, Accelerator.TCG, Files("/a,b/console", 3))
    assert "file,id=console,path=/a,,b/console,append=on" in words


@pytest.mark.parametrize("name", DEVICES)
def test_a_late_device_is_the_same_on_the_command_line_and_hot_added(name: str) -> None:
    wiring, add, golden = DEVICES[name]
    assert as_lines(wiring.options()) == golden
    assert json.loads(wiring.options()[-1]) == wiring.device
    assert (wiring.backend.add if wiring.backend else "") == add
    if wiring.backend is not None and wiring.backend.option != "-chardev":
        assert json.loads(wiring.backend.value) == wiring.backend.arguments


def test_late_devices_come_after_the_slots_that_they_are_in() -> None:
    wirings: list[Wiring] = [wiring for wiring, _, _ in DEVICES.values()]
    words = command_line("qemu", BOOT, Accelerator.TCG, FILES, wirings)
    assert as_lines(words).endswith("".join(golden for _, _, golden in DEVICES.values()))


def test_nothing_on_a_kernel_command_line_tells_one_machine_from_another() -> None:
    first, second = (
        command_line("qemu", BOOT, Accelerator.TCG, files)
        for files in (FILES, Files("/run/other/console.log", 9))
    )
    assert first[first.index("-append") + 1] == second[second.index("-append") + 1]
