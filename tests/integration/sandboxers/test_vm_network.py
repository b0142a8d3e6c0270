"""The network of a VM pod: taps beside the interfaces of a real namespace, and what the guest is told of them."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import FailedPrecondition, InvalidArgument
from proto.gen.sandboxd.agent.v1 import agent_pb2 as agent
from sandboxers.vm.network import attach_network, describe_network, detach_network, network_devices

MAC = "02:00:00:00:00:05"
ROUTER_MAC = "02:00:00:00:00:01"


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def netns() -> Iterator[str]:
    """A namespace with nothing but its loopback device; removed with all that is in it."""
    name = f"sandboxd-test-{os.getpid()}"
    ip("netns", "add", name)
    yield name
    ip("netns", "del", name)


def add_veth(netns: str) -> None:
    """Both ends in the namespace: the pod's, up, and the node's, down, so that it counts as none of the pod's."""
    ip(
        "-n",
        netns,
        "link",
        "add",
        "eth0",
        "address",
        MAC,
        "mtu",
        "1400",
        "type",
        "veth",
        "peer",
        "name",
        "node",
    )
    for words in (
        ("addr", "add", "10.88.0.5/16", "dev", "eth0"),
        ("addr", "add", "fd00::5/64", "dev", "eth0", "nodad"),
        ("link", "set", "eth0", "up"),
        ("route", "add", "default", "via", "10.88.0.1"),
        ("route", "add", "192.0.2.0/24", "via", "10.88.0.9", "metric", "7"),
        ("neigh", "add", "10.88.0.1", "lladdr", ROUTER_MAC, "dev", "eth0", "nud", "permanent"),
    ):
        ip("-n", netns, *words)


def test_the_guest_gets_the_interface_as_it_is(netns: str) -> None:
    add_veth(netns)
    (attached,) = attach_network(f"/run/netns/{netns}")
    try:
        interface = attached.interface
        assert (interface.mac, interface.name, interface.mtu) == (MAC, "eth0", 1400)
        assert sorted(interface.addresses) == ["10.88.0.5/16", "fd00::5/64"]
        assert {(r.destination, r.gateway, r.metric) for r in interface.routes if "." in r.destination} == {
            ("0.0.0.0/0", "10.88.0.1", 0),
            ("192.0.2.0/24", "10.88.0.9", 7),
        }
        assert list(interface.neighbours) == [agent.Neighbour(address="10.88.0.1", mac=ROUTER_MAC)]
    finally:
        os.close(attached.tap_fd)
        detach_network(f"/run/netns/{netns}")


def test_what_arrives_at_one_side_leaves_at_the_other(netns: str) -> None:
    add_veth(netns)
    ip("-n", netns, "link", "set", "node", "up", "arp", "off")
    # The node's end is part of the pod's namespace here: it is no interface of the pod's in a real one.
    node = "sdtest" + str(os.getpid() % 10000)
    ip("-n", netns, "link", "set", "node", "name", node, "netns", str(os.getpid()))
    (attached,) = attach_network(f"/run/netns/{netns}")
    try:
        ip("link", "set", node, "up")
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as wire:
            wire.bind((node, 0x88B5))
            wire.settimeout(20)
            frame = bytes.fromhex("ffffffffffff") + bytes.fromhex("020000000007") + b"\x88\xb5" + b"x" * 60
            os.write(attached.tap_fd, bytes(10) + frame)  # a virtio header without offloads
            assert wire.recv(2000) == frame
            wire.send(frame)
            os.set_blocking(attached.tap_fd, True)
            while (received := os.read(attached.tap_fd, 2000)[10:]) != frame:
                assert received[12:14] != b"\x88\xb5"
    finally:
        os.close(attached.tap_fd)
        ip("link", "del", node)


def test_what_is_attached_is_described_as_before(netns: str) -> None:
    add_veth(netns)
    path = f"/run/netns/{netns}"
    before = describe_network(path)
    (attached,) = attach_network(path)
    try:
        assert describe_network(path) == [attached.interface] == before
        (device,) = network_devices([attached])
        assert (device.device_id, device.mac, device.mtu) == ("net0", MAC, 1400)
    finally:
        os.close(attached.tap_fd)
        detach_network(path)


def test_detaching_leaves_the_namespace_as_it_was_and_may_be_done_twice(netns: str) -> None:
    add_veth(netns)
    before = ip("-n", netns, "-d", "link")
    (attached,) = attach_network(f"/run/netns/{netns}")
    with pytest.raises(FailedPrecondition, match="another virtual machine"):
        attach_network(f"/run/netns/{netns}")
    os.close(attached.tap_fd)
    detach_network(f"/run/netns/{netns}")
    detach_network(f"/run/netns/{netns}")
    assert ip("-n", netns, "-d", "link") == before
    assert (
        "ingress"
        not in subprocess.run(
            ["ip", "netns", "exec", netns, "tc", "qdisc"], check=True, capture_output=True, text=True
        ).stdout
    )
    (attached,) = attach_network(f"/run/netns/{netns}")
    os.close(attached.tap_fd)


def test_an_interface_of_another_kind_is_refused_by_name_and_leaves_nothing(netns: str) -> None:
    add_veth(netns)
    ip("-n", netns, "link", "add", "wg0", "type", "bridge")
    ip("-n", netns, "link", "set", "wg0", "up")
    with pytest.raises(InvalidArgument, match=r"wg0 is of kind 'bridge'"):
        attach_network(f"/run/netns/{netns}")
    with pytest.raises(InvalidArgument, match=r"wg0 is of kind 'bridge'"):
        describe_network(f"/run/netns/{netns}")
    assert "_vm" not in ip("-n", netns, "link")


def test_a_namespace_without_interfaces_is_a_pod_without_network(netns: str) -> None:
    assert attach_network(f"/run/netns/{netns}") == []
    detach_network("/run/netns/no-such-namespace")


def test_a_namespace_of_which_only_the_file_is_left_has_nothing_to_let_go_of(tmp_path: Path) -> None:
    (tmp_path / "netns").touch()
    detach_network(str(tmp_path / "netns"))
    detach_network(str(tmp_path / "gone"))
