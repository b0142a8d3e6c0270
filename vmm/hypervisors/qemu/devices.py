"""Late devices as QEMU knows them: one description, for the command line and for QMP.

A device is what stands behind it (a block node, a character device, a tap) and the PCI device itself. Each part is
an option with a JSON value on the command line, and a command with the same value as arguments in QMP.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from vmm.hypervisors.machine import Disk, NetworkInterface, Share, Vsock


class Part(NamedTuple):
    """A backend: how to add it (`option` and `add` take the same value) and what takes it away again."""

    option: str
    value: str
    add: str
    arguments: dict[str, Any]
    remove: str
    key: dict[str, str]


class Wiring(NamedTuple):
    """All of a late device: its slot, its backend, if it has one, the arguments of `device_add`, and the role of the
    process that serves it ("" if there is none).
    """

    slot: int
    backend: Part | None
    device: dict[str, Any]
    role: str = ""

    @property
    def qdev_id(self) -> str:
        """The name in QEMU's events and in `device_del`."""
        name: str = self.device["id"]
        return name

    def options(self) -> list[str]:
        """Return the device as command line options."""
        backend = [self.backend.option, self.backend.value] if self.backend else []
        return [*backend, "-device", to_json(self.device)]


def qdev_id_of(device_id: str) -> str:
    """Return QEMU's name for a device; ours may begin with a digit, QEMU's may not."""
    return f"dev-{device_id}"


def port_name(slot: int) -> str:
    """Return the name of the root port that is this slot."""
    return f"port{slot}"


def wire_disk(disk: Disk, slot: int, *, is_block_device: bool) -> Wiring:
    """Wire a raw disk."""
    node = block_node(f"disk-{disk.device_id}", disk.path, disk.read_only, is_block_device=is_block_device)
    # By default a full file system of the host stops the whole machine: the guest shall get an I/O error instead.
    return Wiring(
        slot,
        node,
        _pci(
            "virtio-blk-pci",
            disk.device_id,
            slot,
            drive=node.key["node-name"],
            serial=disk.device_id,
            werror="report",
            rerror="report",
        ),
    )


def wire_share(share: Share, slot: int, socket_path: str, role: str) -> Wiring:
    """Wire a share whose virtiofsd listens at a socket."""
    chardev = _socket(f"share-{share.device_id}", socket_path)
    # As many requests in flight as virtiofsd allows; the default of 128 halves the throughput of small reads.
    arguments = {"chardev": chardev.key["id"], "tag": share.device_id, "queue-size": 1024}
    return Wiring(slot, chardev, _pci("vhost-user-fs-pci", share.device_id, slot, **arguments), role)


def wire_network(interface: NetworkInterface, slot: int, fd_name: str, *, vhost: bool) -> Wiring:
    """Wire a tap device: `fd_name` is a number on the command line, the name given to `getfd` in QMP."""
    name = f"net-{interface.device_id}"
    value = {"type": "tap", "id": name, "fd": fd_name, "vhost": vhost}
    tap = Part("-netdev", to_json(value), "netdev_add", value, "netdev_del", {"id": name})
    # No option ROM: nothing boots from the network.
    arguments: dict[str, Any] = {"netdev": name, "mac": interface.mac, "romfile": ""}
    if interface.mtu:
        arguments["host_mtu"] = interface.mtu
    return Wiring(slot, tap, _pci("virtio-net-pci", interface.device_id, slot, **arguments))


def wire_kernel_vsock(vsock: Vsock, slot: int, cid: int) -> Wiring:
    """Wire vsock to the host's own kernel."""
    return Wiring(slot, None, _pci("vhost-vsock-pci", vsock.device_id, slot, **{"guest-cid": cid}))


def wire_user_vsock(vsock: Vsock, slot: int, socket_path: str, role: str) -> Wiring:
    """Wire vsock to a daemon that listens at a socket; the daemon knows the cid."""
    chardev = _socket(f"vsock-{vsock.device_id}", socket_path)
    arguments = {"chardev": chardev.key["id"]}
    return Wiring(slot, chardev, _pci("vhost-user-vsock-pci", vsock.device_id, slot, **arguments), role)


def block_node(name: str, path: str, read_only: bool, *, is_block_device: bool) -> Part:
    """Describe an image file or block device, opened for reading alone where nobody may write."""
    value = {
        "driver": "raw",
        "node-name": name,
        "read-only": read_only,
        "file": {
            "driver": "host_device" if is_block_device else "file",
            "filename": path,
            "read-only": read_only,
        },
    }
    return Part("-blockdev", to_json(value), "blockdev-add", value, "blockdev-del", {"node-name": name})


def to_json(value: Any) -> str:
    """Return the value of an option that takes JSON, in which no character of a path has a meaning."""
    return json.dumps(value, separators=(",", ":"))


def _socket(name: str, path: str) -> Part:
    # The one option that takes no JSON: a comma in the value is doubled.
    address = {"type": "unix", "data": {"path": path}}
    backend = {"type": "socket", "data": {"addr": address, "server": False}}
    value = f"socket,id={name},path={path.replace(',', ',,')}"
    return Part(
        "-chardev", value, "chardev-add", {"id": name, "backend": backend}, "chardev-remove", {"id": name}
    )


def _pci(driver: str, device_id: str, slot: int, **arguments: Any) -> dict[str, Any]:
    return {"driver": driver, "id": qdev_id_of(device_id), "bus": port_name(slot), **arguments}
