"""The pod's network, from the engine's namespace into the guest.

The engine's CNI plugins give the namespace a veth. Beside it comes a tap, which the hypervisor opens, and whatever
arrives at either leaves through the other (tc-mirred): the guest has the veth's address, MAC and routes as its own.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from common.errors import FailedPrecondition, InvalidArgument, NotFound
from common.linux import netlink
from common.linux.namespaces import check_netns
from common.linux.netlink import (
    Link,
    LinkAddress,
    Neighbour,
    Route,
    format_address,
    format_mac,
    format_network,
)
from common.linux.netns import Netlink, in_netns, open_tap
from proto.gen.sandboxd.agent.v1 import agent_pb2 as agent
from vmm.hypervisors.machine import NetworkInterface

NETWORK_DEVICE = "net"
"""How the ids of a machine's network devices begin."""

_VETH = "veth"
_SCOPE_LINK = 253


class AttachedInterface(NamedTuple):
    """An interface of the pod and its tap, which the caller owns; `interface` is what the agent is told."""

    tap_fd: int
    interface: agent.Interface


def attach_network(netns_path: str) -> list[AttachedInterface]:
    """Make a tap beside each interface of the namespace; all or nothing.

    :raise InvalidArgument: an interface is of a kind that cannot be continued into a guest.
    :raise FailedPrecondition: the namespace has a tap of ours already.
    :raise OSError: the kernel refuses something.
    """
    return in_netns(netns_path, _attach_all)


def describe_network(netns_path: str) -> list[agent.Interface]:
    """Return what the agent is to be told of the interfaces that `attach_network` would attach, or has attached.

    :raise InvalidArgument: an interface is of a kind that cannot be continued into a guest.
    """
    return in_netns(netns_path, _describe_all)


def network_devices(interfaces: Sequence[AttachedInterface]) -> list[NetworkInterface]:
    """Return the devices that a machine gets for its interfaces."""
    return [
        NetworkInterface(f"{NETWORK_DEVICE}{number}", each.interface.mac, each.tap_fd, each.interface.mtu)
        for number, each in enumerate(interfaces)
    ]


def detach_network(netns_path: str) -> None:
    """Let the interfaces of the namespace be what they were; the taps go with the hypervisor. Idempotent."""
    try:
        check_netns(netns_path)
    except (NotFound, InvalidArgument):
        return  # gone already, perhaps but for the file on which it was mounted
    in_netns(netns_path, _detach_all)


def _attach_all() -> list[AttachedInterface]:
    attached: list[AttachedInterface] = []
    with Netlink() as kernel:
        try:
            for link in _continued_interfaces(kernel):
                tap_fd = _attach(kernel, link)
                attached.append(AttachedInterface(tap_fd, _describe(kernel, link)))
        except BaseException:
            for interface in attached:
                os.close(interface.tap_fd)
            _detach_all()
            raise
    return attached


def _describe_all() -> list[agent.Interface]:
    with Netlink() as kernel:
        return [_describe(kernel, link) for link in _continued_interfaces(kernel)]


def _continued_interfaces(kernel: Netlink) -> list[Link]:
    links = _interfaces(kernel)
    for link in links:
        if link.kind != _VETH:
            raise InvalidArgument(
                f"the pod's interface {link.name} is of kind {link.kind or 'physical'!r}: only veth can be "
                "continued into a virtual machine; use a CNI plugin that makes one (bridge, ptp)"
            )
    return links


def _detach_all() -> None:
    with Netlink() as kernel:
        for link in _interfaces(kernel):
            if link.kind == _VETH:
                _delete_ingress(kernel, link)


def _delete_ingress(kernel: Netlink, link: Link) -> None:
    try:
        kernel.ask(lambda sequence: netlink.delete_ingress(sequence, link.ifindex))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
            raise


def _interfaces(kernel: Netlink) -> list[Link]:
    links = kernel.ask(netlink.get_links)
    return [
        link
        for link in links
        if isinstance(link, Link) and link.is_up and not link.is_loopback and not _is_ours(link)
    ]


def _tap_name(link: Link) -> str:
    return f"tap{link.ifindex}_vm"


def _is_ours(link: Link) -> bool:
    return link.kind == "tun" and link.name.endswith("_vm")


def _attach(kernel: Netlink, link: Link) -> int:
    name = _tap_name(link)
    try:
        tap_fd = open_tap(name)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise FailedPrecondition(
                f"the tap {name} exists: another virtual machine uses this network"
            ) from None
        raise
    try:
        tap = next(t for t in kernel.ask(netlink.get_links) if isinstance(t, Link) and t.name == name)
        kernel.ask(partial(netlink.set_link, index=tap.ifindex, mtu=link.mtu, up=True))
        for source, target in ((link, tap), (tap, link)):
            kernel.ask(partial(netlink.add_ingress, index=source.ifindex))
            kernel.ask(partial(netlink.redirect, index=source.ifindex, target=target.ifindex))
    except BaseException:
        os.close(tap_fd)
        raise
    return tap_fd


def _describe(kernel: Netlink, link: Link) -> agent.Interface:
    interface = agent.Interface(mac=format_mac(link.mac), name=link.name, mtu=link.mtu)
    for address in kernel.ask(netlink.get_addresses):
        # The guest makes link-local addresses by itself.
        if (
            isinstance(address, LinkAddress)
            and address.ifindex == link.ifindex
            and address.scope != _SCOPE_LINK
        ):
            interface.addresses.append(format_network(address.address))
    for route in kernel.ask(netlink.get_routes):
        # Those that come with the addresses come with them in the guest, too.
        if isinstance(route, Route) and route.ifindex == link.ifindex and not route.by_kernel:
            interface.routes.append(
                agent.Route(
                    destination=format_network(route.destination),
                    gateway=format_address(route.gateway) if route.gateway else "",
                    source=format_address(route.source) if route.source else "",
                    scope=route.scope,
                    metric=route.metric,
                    on_link=route.on_link,
                )
            )
    for neighbour in kernel.ask(netlink.get_neighbours):
        if isinstance(neighbour, Neighbour) and neighbour.ifindex == link.ifindex:
            interface.neighbours.append(
                agent.Neighbour(address=format_address(neighbour.address), mac=format_mac(neighbour.mac))
            )
    return interface
