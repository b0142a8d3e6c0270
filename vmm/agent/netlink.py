"""rtnetlink messages as bytes: requests to the kernel, and what it says of its links (rtnetlink(7), netlink(7)).

A codec: no sockets here. All numbers are the kernel's, include/uapi/linux/{netlink,rtnetlink,if_addr,neighbour}.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from common.errors import InvalidArgument

RTMGRP_LINK: Final = 1

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_RTM_NEWADDR, _RTM_NEWROUTE, _RTM_NEWNEIGH = 20, 24, 28
_REQUEST, _ACK, _DUMP, _CREATE, _REPLACE = 0x1, 0x4, 0x300, 0x400, 0x100

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU = 1, 3, 4
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_NDA_DST, _NDA_LLADDR = 1, 2

_IFF_UP = 1
_IFA_F_NODAD, _IFA_F_PERMANENT = 0x02, 0x80
_RT_TABLE_MAIN, _RTPROT_BOOT, _RTN_UNICAST, _RTNH_F_ONLINK = 254, 3, 1, 4
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_NUD_PERMANENT = 0x80

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")
_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst len, src len, tos, table, protocol, scope, type, flags
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_ERRNO = struct.Struct("=i")

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
    """A network device as the kernel tells it; `gone` for one that was removed."""

    number: int
    name: str
    mac: bytes
    is_up: bool
    gone: bool


class Refusal(NamedTuple):
    """The kernel's answer to a request: 0, or the number of an error."""

    sequence: int
    errno: int


class End(NamedTuple):
    """The end of a dump."""

    sequence: int


Answer = Link | Refusal | End


# -- requests --------------------------------------------------------------------------------------


def get_links(sequence: int) -> bytes:
    """Ask for all links."""
    return _message(_RTM_GETLINK, _DUMP, sequence, _LINK.pack(0, 0, 0, 0, 0))


def set_link(
    sequence: int, index: int, *, name: str | None = None, mtu: int = 0, up: bool | None = None
) -> bytes:
    """Change what is given of a link; it can be renamed only while it is down."""
    attributes = []
    if name is not None:
        attributes.append(_attribute(_IFLA_IFNAME, name.encode() + b"\0"))
    if mtu:
        attributes.append(_attribute(_IFLA_MTU, struct.pack("=I", mtu)))
    flags, change = (0, 0) if up is None else (_IFF_UP if up else 0, _IFF_UP)
    return _message(_RTM_NEWLINK, _ACK, sequence, _LINK.pack(0, 0, index, flags, change), *attributes)


def add_address(sequence: int, index: int, address: Address) -> bytes:
    """Give a link an address, or leave it as it has it. IPv6 skips duplicate detection: a pod's address is its own."""
    flags = _IFA_F_PERMANENT | (_IFA_F_NODAD if address.family == _AF_INET6 else 0)
    attributes = [_attribute(_IFA_LOCAL, address.packed), _attribute(_IFA_ADDRESS, address.packed)]
    attributes.append(_attribute(_IFA_FLAGS, struct.pack("=I", flags)))
    if address.family == _AF_INET and address.prefix < 31:
        attributes.append(_attribute(_IFA_BROADCAST, _broadcast(address)))
    body = _ADDRESS.pack(address.family, address.prefix, flags & 0xFF, _SCOPE_UNIVERSE, index)
    return _message(_RTM_NEWADDR, _ACK | _CREATE | _REPLACE, sequence, body, *attributes)


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
    attributes = [_attribute(_RTA_OIF, struct.pack("=i", index))]
    if destination.prefix:
        attributes.append(_attribute(_RTA_DST, destination.packed))
    if gateway:
        attributes.append(_attribute(_RTA_GATEWAY, gateway))
    if source:
        attributes.append(_attribute(_RTA_PREFSRC, source))
    if metric:
        attributes.append(_attribute(_RTA_PRIORITY, struct.pack("=I", metric)))
    if not gateway and not scope and destination.family == _AF_INET:
        scope = _SCOPE_LINK
    body = _ROUTE.pack(
        destination.family, destination.prefix, 0, 0, _RT_TABLE_MAIN, _RTPROT_BOOT, scope, _RTN_UNICAST,
        _RTNH_F_ONLINK if on_link else 0,
    )  # fmt: skip
    return _message(_RTM_NEWROUTE, _ACK | _CREATE | _REPLACE, sequence, body, *attributes)


def add_neighbour(sequence: int, index: int, address: bytes, mac: bytes) -> bytes:
    """Tell the link-layer address of a neighbour for good."""
    body = _NEIGHBOUR.pack(_FAMILIES[len(address)], index, _NUD_PERMANENT, 0, 0)
    attributes = [_attribute(_NDA_DST, address), _attribute(_NDA_LLADDR, mac)]
    return _message(_RTM_NEWNEIGH, _ACK | _CREATE | _REPLACE, sequence, body, *attributes)


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


def _link(body: bytes, *, gone: bool) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    name, mac = "", b""
    for kind, value in _attributes(body[_LINK.size :]):
        if kind == _IFLA_IFNAME:
            name = value.rstrip(b"\0").decode(errors="replace")
        elif kind == _IFLA_ADDRESS:
            mac = value
    return Link(index, name, mac, bool(flags & _IFF_UP), gone)


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


def _broadcast(address: Address) -> bytes:
    number = int.from_bytes(address.packed, "big") | (1 << (address.bits - address.prefix)) - 1
    return number.to_bytes(len(address.packed), "big")


def _message(kind: int, flags: int, sequence: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return _HEADER.pack(_HEADER.size + len(body), kind, flags | _REQUEST, sequence, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def _aligned(length: int) -> int:
    return (length + 3) & ~3
