"""The few nftables messages that redirect a namespace's own connections: a codec, bytes out (nft(8), libnftnl).

Numbers: include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h. Here all integers are in network order.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Final

from common.linux.netlink import attribute, message

NETLINK_NETFILTER: Final = 12
IPV4: Final = 2
IPV6: Final = 10

_SUBSYSTEM = 10
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE = (_SUBSYSTEM << 8 | number for number in (0, 2, 3, 6))
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_REQUEST_ACK, _CREATE = 0x4, 0x400
_GENERIC = struct.Struct(">BBH")  # family, version, resource
_U32 = struct.Struct(">I")

_NESTED = 0x8000
_HOOK_LOCAL_OUT, _PRIORITY_NAT = 3, -100
_META_OIF, _META_L4PROTO = 5, 16
_REGISTER = 1
_TCP = 6
_LOOPBACK_INDEX = struct.pack(
    "=I", 1
)  # the first device of every namespace; registers are in the host's order

Message = Callable[[int], bytes]
"""Makes a message of a sequence number."""


def redirect_loopback(table: str, family: int, port: int) -> list[Message]:
    """Let every TCP connection over the loopback device arrive at this port of the namespace itself."""
    name = attribute(1, table.encode() + b"\0")
    chain_name = attribute(3, b"output\0")
    hook = attribute(1, _U32.pack(_HOOK_LOCAL_OUT)) + attribute(2, struct.pack(">i", _PRIORITY_NAT))
    rule = b"".join(
        attribute(1 | _NESTED, each)
        for each in (
            _expression("meta", _number(1, _REGISTER), _number(2, _META_OIF)),
            _equals(_LOOPBACK_INDEX),
            _expression("meta", _number(1, _REGISTER), _number(2, _META_L4PROTO)),
            _equals(bytes([_TCP])),
            _expression("immediate", _number(1, _REGISTER), _data(2, struct.pack(">H", port))),
            _expression("redir", _number(1, _REGISTER)),
        )
    )
    return _batch(
        partial(_message, _NEWTABLE, _CREATE, family, name),
        partial(
            _message,
            _NEWCHAIN,
            _CREATE,
            family,
            name + chain_name + attribute(4 | _NESTED, hook) + attribute(7, b"nat\0"),
        ),
        partial(
            _message,
            _NEWRULE,
            _CREATE,
            family,
            name + attribute(2, b"output\0") + attribute(4 | _NESTED, rule),
        ),
    )


def delete_table(table: str, family: int) -> list[Message]:
    """Take a table away, with all that is in it."""
    return _batch(partial(_message, _DELTABLE, 0, family, attribute(1, table.encode() + b"\0")))


def _batch(*messages: Message) -> list[Message]:
    return [partial(_boundary, _BATCH_BEGIN), *messages, partial(_boundary, _BATCH_END)]


def _boundary(kind: int, sequence: int) -> bytes:
    return message(kind, 0, sequence, _GENERIC.pack(0, 0, _SUBSYSTEM))


def _message(kind: int, flags: int, family: int, attributes: bytes, sequence: int) -> bytes:
    return message(kind, flags | _REQUEST_ACK, sequence, _GENERIC.pack(family, 0, 0), attributes)


def _expression(name: str, *attributes: bytes) -> bytes:
    return attribute(1, name.encode() + b"\0") + attribute(2 | _NESTED, b"".join(attributes))


def _equals(value: bytes) -> bytes:
    return _expression("cmp", _number(1, _REGISTER), _number(2, 0), _data(3, value))


def _data(kind: int, value: bytes) -> bytes:
    return attribute(kind | _NESTED, attribute(1, value))


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, _U32.pack(value))
