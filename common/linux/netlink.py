"""rtnetlink messages as bytes: requests to the kernel, and what it says of its network (rtnetlink(7), netlink(7)).

A codec: no sockets here. All numbers are the kernel's, include/uapi/linux/{netlink,rtnetlink,if_addr,neighbour}.h, and
for traffic control pkt_sched.h, pkt_cls.h and tc_act/tc_mirred.h.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from typing import Final, NamedTuple

from common.errors import InvalidArgument

RTMGRP_LINK: Final = 1

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_RTM_NEWNEIGH, _RTM_GETNEIGH = 28, 30
_RTM_NEWQDISC, _RTM_DELQDISC, _RTM_NEWTFILTER = 36, 37, 44
_REQUEST, _ACK, _DUMP, _CREATE, _REPLACE, _EXCLUSIVE = 0x1, 0x4, 0x300, 0x400, 0x100, 0x200

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO = 1, 3, 4, 18
_IFLA_INFO_KIND = 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_NDA_DST, _NDA_LLADDR = 1, 2

_IFF_UP, _IFF_LOOPBACK = 1, 8
_IFA_F_NODAD, _IFA_F_PERMANENT = 0x02, 0x80
_RT_TABLE_MAIN, _RTPROT_KERNEL, _RTPROT_BOOT, _RTN_UNICAST, _RTNH_F_ONLINK = 254, 2, 3, 1, 4
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_NUD_PERMANENT = 0x80

_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_U32_SEL, _TCA_U32_ACT = 5, 7
_TCA_ACT_KIND, _TCA_ACT_OPTIONS, _TCA_MIRRED_PARMS = 1, 2, 2
_INGRESS, _INGRESS_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_ALL_PROTOCOLS_FIRST = 1 << 16 | 0x0300  # priority 1; ETH_P_ALL in network order
_U32_TERMINAL, _ACT_STOLEN, _EGRESS_REDIRECT = 1, 4, 1

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")
_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst len, src len, tos, table, protocol, scope, type, flags
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_ERRNO = struct.Struct("=i")
_TRAFFIC = struct.Struct("=BxxxiIII")  # family, index, handle, parent, info
_SELECTOR = struct.Struct("=BBBxHHHHI")  # flags, offset shift, keys, masks and offsets
_KEY = struct.Struct("=IIii")  # mask, value, offset, offset mask
_MIRRED = struct.Struct("=IIiiiiI")  # index, capabilities, action, references, bindings, what, interface

_AF_INET, _AF_INET6 = 2, 10
_FAMILIES: Final = {4: _AF_INET, 16: _AF_INET6}


class Address(NamedTuple):
    """An IPv4 or IPv6 address as bytes, and the length of its prefix."""

    packed: bytes
    prefix: int

    @property
    def family(self) -> int:
        return _FAMILIES[len(self.packed)]

    @property
    def bits(self) -> int:
        """The length of the whole address."""
        return len(self.packed) * 8


class Link(NamedTuple):
    """A network device as the kernel tells it; `gone` for one that was removed. `kind` is empty for hardware."""

    ifindex: int
    name: str
    mac: bytes
    is_up: bool
    gone: bool
    is_loopback: bool = False
    mtu: int = 0
    kind: str = ""


class LinkAddress(NamedTuple):
    """An address that a link has."""

    ifindex: int
    address: Address
    scope: int


class Route(NamedTuple):
    """A unicast route of the main table."""

    ifindex: int
    destination: Address
    gateway: bytes
    source: bytes
    scope: int
    metric: int
    on_link: bool
    by_kernel: bool


class Neighbour(NamedTuple):
    """A neighbour that somebody has set for good."""

    ifindex: int
    address: bytes
    mac: bytes


class Refusal(NamedTuple):
    """The kernel's answer to a request: 0, or the number of an error."""

    sequence: int
    errno: int


class End(NamedTuple):
    """The end of a dump."""

    sequence: int


Answer = Link | LinkAddress | Route | Neighbour | Refusal | End


# -- requests --------------------------------------------------------------------------------------


def get_links(sequence: int) -> bytes:
    """Ask for all links."""
    return message(_RTM_GETLINK, _DUMP, sequence, _LINK.pack(0, 0, 0, 0, 0))


def get_addresses(sequence: int) -> bytes:
    """Ask for the addresses of all links."""
    return message(_RTM_GETADDR, _DUMP, sequence, _ADDRESS.pack(0, 0, 0, 0, 0))


def get_routes(sequence: int) -> bytes:
    """Ask for all routes."""
    return message(_RTM_GETROUTE, _DUMP, sequence, _ROUTE.pack(0, 0, 0, 0, 0, 0, 0, 0, 0))


def get_neighbours(sequence: int) -> bytes:
    """Ask for all neighbours."""
    return message(_RTM_GETNEIGH, _DUMP, sequence, _NEIGHBOUR.pack(0, 0, 0, 0, 0))


def set_link(
    sequence: int, index: int, *, name: str | None = None, mtu: int = 0, up: bool | None = None
) -> bytes:
    """Change what is given of a link; it can be renamed only while it is down."""
    attributes = []
    if name is not None:
        attributes.append(attribute(_IFLA_IFNAME, name.encode() + b"\0"))
    if mtu:
        attributes.append(attribute(_IFLA_MTU, struct.pack("=I", mtu)))
    flags, change = (0, 0) if up is None else (_IFF_UP if up else 0, _IFF_UP)
    return message(_RTM_NEWLINK, _ACK, sequence, _LINK.pack(0, 0, index, flags, change), *attributes)


def add_address(sequence: int, index: int, address: Address) -> bytes:
    """Give a link an address, or leave it as it has it. IPv6 skips duplicate detection: a pod's address is its own."""
    flags = _IFA_F_PERMANENT | (_IFA_F_NODAD if address.family == _AF_INET6 else 0)
    attributes = [attribute(_IFA_LOCAL, address.packed), attribute(_IFA_ADDRESS, address.packed)]
    attributes.append(attribute(_IFA_FLAGS, struct.pack("=I", flags)))
    if address.family == _AF_INET and address.prefix < 31:
        attributes.append(attribute(_IFA_BROADCAST, _broadcast(address)))
    body = _ADDRESS.pack(address.family, address.prefix, flags & 0xFF, _SCOPE_UNIVERSE, index)
    return message(_RTM_NEWADDR, _ACK | _CREATE | _REPLACE, sequence, body, *attributes)


def add_route(
    sequence: int,
    index: int,
    destination: Address,
    *,
    gateway: bytes = b"",
    source: bytes = b"",
    scope: int = 0,
    metric: int = 0,
    on_link: bool = False,
) -> bytes:
    """Add a route through a link, in place of one to the same destination."""
    attributes = [attribute(_RTA_OIF, struct.pack("=i", index))]
    if destination.prefix:
        attributes.append(attribute(_RTA_DST, destination.packed))
    if gateway:
        attributes.append(attribute(_RTA_GATEWAY, gateway))
    if source:
        attributes.append(attribute(_RTA_PREFSRC, source))
    if metric:
        attributes.append(attribute(_RTA_PRIORITY, struct.pack("=I", metric)))
    if not gateway and not scope and destination.family == _AF_INET:
        scope = _SCOPE_LINK
    body = _ROUTE.pack(
        destination.family, destination.prefix, 0, 0, _RT_TABLE_MAIN, _RTPROT_BOOT, scope, _RTN_UNICAST,
        _RTNH_F_ONLINK if on_link else 0,
    )  # fmt: skip
    return message(_RTM_NEWROUTE, _ACK | _CREATE | _REPLACE, sequence, body, *attributes)


def add_neighbour(sequence: int, index: int, address: bytes, mac: bytes) -> bytes:
    """Tell the link-layer address of a neighbour for good."""
    body = _NEIGHBOUR.pack(_FAMILIES[len(address)], index, _NUD_PERMANENT, 0, 0)
    attributes = [attribute(_NDA_DST, address), attribute(_NDA_LLADDR, mac)]
    return message(_RTM_NEWNEIGH, _ACK | _CREATE | _REPLACE, sequence, body, *attributes)


def add_ingress(sequence: int, index: int) -> bytes:
    """Let what arrives at a link be looked at (tc-ingress); refused if it is already."""
    body = _TRAFFIC.pack(0, index, _INGRESS_HANDLE, _INGRESS, 0)
    return message(
        _RTM_NEWQDISC, _ACK | _CREATE | _EXCLUSIVE, sequence, body, attribute(_TCA_KIND, b"ingress\0")
    )


def delete_ingress(sequence: int, index: int) -> bytes:
    """Take back `add_ingress`, with all that was added to it."""
    body = _TRAFFIC.pack(0, index, _INGRESS_HANDLE, _INGRESS, 0)
    return message(_RTM_DELQDISC, _ACK, sequence, body)


def redirect(sequence: int, index: int, target: int) -> bytes:
    """Let everything that arrives at a link leave through another one (tc-u32, tc-mirred)."""
    mirred = _MIRRED.pack(0, 0, _ACT_STOLEN, 0, 0, _EGRESS_REDIRECT, target)
    action = attribute(_TCA_ACT_KIND, b"mirred\0") + attribute(
        _TCA_ACT_OPTIONS, attribute(_TCA_MIRRED_PARMS, mirred)
    )
    # One key that is true of everything: zero bits of the first four bytes.
    selector = _SELECTOR.pack(_U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + _KEY.pack(0, 0, 0, 0)
    options = attribute(_TCA_U32_SEL, selector) + attribute(_TCA_U32_ACT, attribute(1, action))
    body = _TRAFFIC.pack(0, index, 0, _INGRESS_HANDLE, _ALL_PROTOCOLS_FIRST)
    return message(
        _RTM_NEWTFILTER,
        _ACK | _CREATE | _EXCLUSIVE,
        sequence,
        body,
        attribute(_TCA_KIND, b"u32\0"),
        attribute(_TCA_OPTIONS, options),
    )


# -- answers ---------------------------------------------------------------------------------------


def parse(data: bytes) -> Iterator[Answer]:
    """Yield what a datagram from the kernel says; messages of other kinds are passed over.

    :raise ValueError: it is cut off.
    """
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            raise ValueError(f"netlink message of {length} bytes in {len(data) - offset}")
        body = data[offset + _HEADER.size : offset + length]
        offset += _aligned(length)
        if kind == _NLMSG_ERROR:
            yield Refusal(sequence, -_ERRNO.unpack_from(body)[0])
        elif kind == _NLMSG_DONE:
            yield End(sequence)
        elif kind in (_RTM_NEWLINK, _RTM_DELLINK) and len(body) >= _LINK.size:
            yield _link(body, gone=kind == _RTM_DELLINK)
        elif kind == _RTM_NEWADDR and len(body) >= _ADDRESS.size:
            yield from _link_address(body)
        elif kind == _RTM_NEWROUTE and len(body) >= _ROUTE.size:
            yield from _route(body)
        elif kind == _RTM_NEWNEIGH and len(body) >= _NEIGHBOUR.size:
            yield from _neighbour(body)


def _link(body: bytes, *, gone: bool) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    name, mac, mtu, link_kind = "", b"", 0, ""
    for kind, value in _attributes(body[_LINK.size :]):
        if kind == _IFLA_IFNAME:
            name = value.rstrip(b"\0").decode(errors="replace")
        elif kind == _IFLA_ADDRESS:
            mac = value
        elif kind == _IFLA_MTU and len(value) == 4:
            mtu = int.from_bytes(value, sys.byteorder)
        elif kind == _IFLA_LINKINFO:
            info = dict(_attributes(value))
            link_kind = info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace")
    return Link(index, name, mac, bool(flags & _IFF_UP), gone, bool(flags & _IFF_LOOPBACK), mtu, link_kind)


def _link_address(body: bytes) -> Iterator[LinkAddress]:
    _, prefix, _, scope, index = _ADDRESS.unpack_from(body)
    values = dict(_attributes(body[_ADDRESS.size :]))
    packed = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS, b"")
    if len(packed) in _FAMILIES:
        yield LinkAddress(index, Address(packed, prefix), scope)


def _route(body: bytes) -> Iterator[Route]:
    family, prefix, _, _, table, protocol, scope, kind, flags = _ROUTE.unpack_from(body)
    values = dict(_attributes(body[_ROUTE.size :]))
    size = {_AF_INET: 4, _AF_INET6: 16}.get(family)
    if size is None or table != _RT_TABLE_MAIN or kind != _RTN_UNICAST or _RTA_OIF not in values:
        return
    yield Route(
        ifindex=int.from_bytes(values[_RTA_OIF], sys.byteorder),
        destination=Address(values.get(_RTA_DST, bytes(size)), prefix),
        gateway=values.get(_RTA_GATEWAY, b""),
        source=values.get(_RTA_PREFSRC, b""),
        scope=scope,
        metric=int.from_bytes(values.get(_RTA_PRIORITY, b""), sys.byteorder),
        on_link=bool(flags & _RTNH_F_ONLINK),
        by_kernel=protocol == _RTPROT_KERNEL,
    )


def _neighbour(body: bytes) -> Iterator[Neighbour]:
    _, index, state, _, _ = _NEIGHBOUR.unpack_from(body)
    values = dict(_attributes(body[_NEIGHBOUR.size :]))
    address, mac = values.get(_NDA_DST, b""), values.get(_NDA_LLADDR, b"")
    if state & _NUD_PERMANENT and len(address) in _FAMILIES and len(mac) == 6:
        yield Neighbour(index, address, mac)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[offset + _ATTRIBUTE.size : offset + length]
        offset += _aligned(length)


# -- addresses as text -----------------------------------------------------------------------------


def parse_mac(text: str) -> bytes:
    """Return the six bytes of "52:54:00:12:34:56".

    :raise InvalidArgument: it is something else.
    """
    parts = text.split(":")
    try:
        if len(parts) != 6 or any(len(part) != 2 for part in parts):
            raise ValueError
        return bytes(int(part, 16) for part in parts)
    except ValueError:
        raise InvalidArgument(f"{text[:60]!r} is not a MAC address") from None


def parse_address(text: str) -> bytes:
    """Return the bytes of an IPv4 or IPv6 address.

    :raise InvalidArgument: it is neither.
    """
    from socket import inet_pton  # late: the codec itself needs no socket

    try:
        return inet_pton(_AF_INET6 if ":" in text else _AF_INET, text)
    except OSError:
        raise InvalidArgument(f"{text[:60]!r} is not an IP address") from None


def parse_network(text: str) -> Address:
    """Return what "10.88.0.5/16" or "fd00::5/64" says; without a length it is one address.

    :raise InvalidArgument: it is malformed.
    """
    address, separator, prefix = text.partition("/")
    packed = parse_address(address)
    bits = len(packed) * 8
    if not separator:
        return Address(packed, bits)
    if not (prefix.isascii() and prefix.isdigit()) or not 0 <= int(prefix[:4]) <= bits:
        raise InvalidArgument(f"{text[:60]!r} has no valid prefix length")
    return Address(packed, int(prefix))


def format_mac(mac: bytes) -> str:
    """Return "52:54:00:12:34:56" for its bytes."""
    return mac.hex(":")


def format_address(packed: bytes) -> str:
    """Return the text of an address."""
    from socket import inet_ntop  # late, as above

    return inet_ntop(_FAMILIES[len(packed)], packed)


def format_network(address: Address) -> str:
    """Return what `parse_network` takes."""
    return f"{format_address(address.packed)}/{address.prefix}"


def _broadcast(address: Address) -> bytes:
    number = int.from_bytes(address.packed, "big") | (1 << (address.bits - address.prefix)) - 1
    return number.to_bytes(len(address.packed), "big")


def message(kind: int, flags: int, sequence: int, *parts: bytes) -> bytes:
    """Return a request of this type: header, body and attributes."""
    body = b"".join(parts)
    return _HEADER.pack(_HEADER.size + len(body), kind, flags | _REQUEST, sequence, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute with its header and padding."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def _aligned(length: int) -> int:
    return (length + 3) & ~3
