"""The guest's network devices: found by MAC when they are there, named, addressed, and given routes and neighbours."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterable
from itertools import count

from common.errors import FailedPrecondition, InvalidArgument, NotFound, SandboxdError
from common.linux import netlink
from common.linux.netlink import Link
from common.readiness import wait_readable
from proto.gen.sandboxd.agent.v1 import agent_pb2 as api

_DEVICE_TIMEOUT_S = 10.0
_RECEIVE_BYTES = 64 * 1024
_NAME_LIMIT = 15  # IFNAMSIZ less its NUL
_LOOPBACK = "lo"
_MISSING_DEVICE = frozenset({errno.ENODEV, errno.ENXIO})


class Netlink:
    """An rtnetlink socket in the event loop; `with` it. The kernel answers requests at once."""

    __slots__ = ("_sequences", "_sock")

    def __init__(self, groups: int = 0) -> None:
        self._sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._sock.bind((0, groups))
        self._sequences = count(1)

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def next(self) -> int:
        """Return the sequence number of the next request."""
        return next(self._sequences)

    async def request(self, message: bytes, what: str) -> None:
        """Send one request and wait for the kernel's answer.

        :raise InvalidArgument: the kernel finds it malformed or impossible.
        :raise OSError: it fails otherwise.
        """
        self._sock.send(message)
        while True:
            for answer in await self.receive():
                if isinstance(answer, netlink.Refusal):
                    if answer.errno:
                        raise _failure(answer.errno, what)
                    return

    async def links(self) -> list[Link]:
        """Return all network devices."""
        self._sock.send(netlink.get_links(self.next()))
        links: list[Link] = []
        while True:
            for answer in await self.receive():
                if isinstance(answer, netlink.End):
                    return links
                if isinstance(answer, Link) and not answer.gone:
                    links.append(answer)

    async def receive(self) -> list[netlink.Answer]:
        """Return what the kernel says next."""
        while True:
            try:
                return list(netlink.parse(self._sock.recv(_RECEIVE_BYTES)))
            except BlockingIOError:
                await wait_readable(self._sock)


def _failure(number: int, what: str) -> SandboxdError | OSError:
    text = f"the kernel refuses {what}: {os.strerror(number)}"
    if number in (errno.EINVAL, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.ERANGE):
        return InvalidArgument(text)
    if number in _MISSING_DEVICE:
        return NotFound(text)
    if number in (errno.EEXIST, errno.EBUSY):
        return FailedPrecondition(text)
    return OSError(number, text)


async def raise_loopback() -> None:
    """Bring up the loopback device."""
    with Netlink() as kernel:
        for link in await kernel.links():
            if link.name == _LOOPBACK:
                await kernel.request(netlink.set_link(kernel.next(), link.ifindex, up=True), "loopback")


async def add_interface(wanted: api.Interface) -> None:
    """Set up a device, which may appear within `_DEVICE_TIMEOUT_S`. What is so already stays.

    :raise InvalidArgument: a name, address or route is malformed or refused by the kernel.
    :raise NotFound: there is no device with this MAC.
    """
    mac = netlink.parse_mac(wanted.mac)
    name = check_name(wanted.name)
    addresses = [netlink.parse_network(text) for text in wanted.addresses]
    link = await _wait_for_device(mac, wanted.mac)
    with Netlink() as kernel:
        if link.name != name:
            if link.is_up:
                await kernel.request(netlink.set_link(kernel.next(), link.ifindex, up=False), name)
            await kernel.request(netlink.set_link(kernel.next(), link.ifindex, name=name), f"the name {name}")
        await kernel.request(netlink.set_link(kernel.next(), link.ifindex, mtu=wanted.mtu, up=True), name)
        for text, address in zip(wanted.addresses, addresses, strict=True):
            message = netlink.add_address(kernel.next(), link.ifindex, address)
            await kernel.request(message, f"address {text} on {name}")
        await _add_neighbours(kernel, wanted.neighbours, {"": link.ifindex, name: link.ifindex})
        await _add_routes(kernel, wanted.routes, {"": link.ifindex, name: link.ifindex})


async def remove_interface(mac: str) -> None:
    """Bring a device down that is about to go; one that is gone already is no error."""
    wanted = netlink.parse_mac(mac)
    with Netlink() as kernel:
        for link in await kernel.links():
            if link.mac == wanted:
                await kernel.request(netlink.set_link(kernel.next(), link.ifindex, up=False), mac)


async def add_routes(routes: Iterable[api.Route], neighbours: Iterable[api.Neighbour]) -> None:
    """Add routes and neighbours that name their interface."""
    with Netlink() as kernel:
        numbers = {link.name: link.ifindex for link in await kernel.links()}
        await _add_neighbours(kernel, neighbours, numbers)
        await _add_routes(kernel, routes, numbers)


async def _add_routes(kernel: Netlink, routes: Iterable[api.Route], numbers: dict[str, int]) -> None:
    # The kernel takes a gateway only once it knows how to reach it.
    for route in sorted(routes, key=lambda route: bool(route.gateway)):
        message = netlink.add_route(
            kernel.next(),
            _number(numbers, route.interface),
            netlink.parse_network(route.destination),
            gateway=netlink.parse_address(route.gateway) if route.gateway else b"",
            source=netlink.parse_address(route.source) if route.source else b"",
            scope=route.scope & 0xFF,
            metric=route.metric,
            on_link=route.on_link,
        )
        await kernel.request(message, f"the route to {route.destination} via {route.gateway or 'the link'}")


async def _add_neighbours(
    kernel: Netlink, neighbours: Iterable[api.Neighbour], numbers: dict[str, int]
) -> None:
    for neighbour in neighbours:
        message = netlink.add_neighbour(
            kernel.next(),
            _number(numbers, neighbour.interface),
            netlink.parse_address(neighbour.address),
            netlink.parse_mac(neighbour.mac),
        )
        await kernel.request(message, f"the neighbour {neighbour.address}")


def _number(numbers: dict[str, int], name: str) -> int:
    try:
        return numbers[name]
    except KeyError:
        raise NotFound(f"there is no interface {name[:60]!r}") from None


async def _wait_for_device(mac: bytes, text: str) -> Link:
    # The group is joined before the list is asked for: what comes in between is not missed.
    with Netlink(netlink.RTMGRP_LINK) as kernel:
        for link in await kernel.links():
            if link.mac == mac:
                return link
        try:
            async with asyncio.timeout(_DEVICE_TIMEOUT_S):
                while True:
                    for answer in await kernel.receive():
                        if isinstance(answer, Link) and answer.mac == mac and not answer.gone:
                            return answer
        except TimeoutError:
            raise NotFound(f"no network device {text} within {_DEVICE_TIMEOUT_S:g} s") from None


def check_name(name: str) -> str:
    """Return the name of an interface if the kernel may take it (dev_valid_name).

    :raise InvalidArgument: it may not.
    """
    plain = name.isascii() and name.isprintable() and not set(name) & set("/: %")
    if not plain or not 0 < len(name) <= _NAME_LIMIT or name in (".", "..", _LOOPBACK):
        raise InvalidArgument(f"{name[:60]!r} is not the name of an interface")
    return name
