"""What the daemon, the fork server and a module process say to each other: JSON in packets, with descriptors.

    daemon → server            {"directory": ..., "exec": ..., "console": ..., "new_pid_namespace": ...}, with the
                               launch's own channel, on which is all that follows, the three streams, and
                               what has the PID namespace to join, if there is one
    module process → daemon    {"missing": <Missing>} and a file; answered by {"key": ...}, which is in the cache, or
                               an error
    module process → daemon    {"ready": true}               answered by {}: go on to the start

    daemon → server            {"compile": <Order>}, with a channel, what to compile, and a file for what comes of it
    compile process → daemon   {"begun": true}
    compile process → daemon   {"checksum": ..., "draft": ...}, or an error

    daemon → server            {}: is it there?
    server → daemon            {"ready": true}
    anybody                    {"error": <class of common.errors>, "message": ...}

Whose message it is tells the kernel (unix(7), SCM_CREDENTIALS): nobody needs to know or say a pid. A channel that
ends means that the other one is gone: a module process that was not told to go on ends too.
"""

from __future__ import annotations

import array
import enum
import json
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from common import errors

PACKET_BYTES: Final = 64 << 10
# Even where each character becomes the 12 bytes of a surrogate pair it fits in a packet.
MAX_ERROR_CHARACTERS: Final = 4096
_UCRED: Final = struct.Struct("=iII")
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(8 * array.array("i").itemsize) + socket.CMSG_SPACE(_UCRED.size)

Message = dict[str, Any]


class What(enum.StrEnum):
    """What is compiled: a module so that it can be run soon, the same so that it runs fast, or a filter."""

    MODULE = "module"
    NATIVE = "native code"
    FILTER = "filter"


class Missing(NamedTuple):
    """What a module process does not find in the cache: by its key there, the SHA-256 of what it is made from, the
    kind of a module, and what the key has led to, if that cannot be used."""

    what: str
    key: str
    digest: str
    kind: str = ""
    unusable: str = ""


class Order(NamedTuple):
    """What a compile process shall do, and within which limits."""

    what: str
    digest: str
    kind: str
    memory_mib: int
    output_mib: int
    timeout_s: float


def packed(message: Mapping[str, Any]) -> bytes:
    """Return a message as it is sent."""
    return json.dumps(message, separators=(",", ":")).encode()


def send(channel: socket.socket, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
    """Send a message, and copies of descriptors.

    :raise OSError: the other end is gone.
    :raise Internal: the message is too large, which is nobody's end.
    """
    packet = packed(message)
    if len(packet) > PACKET_BYTES:
        raise errors.Internal(
            f"a message of {len(packet)} bytes is larger than a packet: {packet[:100]!r}..."
        )
    socket.send_fds(channel, [packet], fds)


class Received(NamedTuple):
    """A message; its descriptors, which are the receiver's; and the sender's pid as the receiver sees it, 0 if the
    socket does not pass it (`tell_senders`)."""

    message: Message
    fds: list[int]
    sender: int


def tell_senders(channel: socket.socket) -> None:
    """Let the kernel tell with each message who has sent it."""
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


def receive(channel: socket.socket) -> Received | None:
    """Return the next message; None when the other end is gone.

    :raise Internal: it was larger than a packet, and cut.
    """
    try:
        # Not recv_fds(), which forgets the flag.
        packet, ancillary, flags, _ = channel.recvmsg(PACKET_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None
    if not packet:
        return None
    fds, sender = array.array("i"), 0
    for _, kind, data in ancillary:
        if kind == socket.SCM_RIGHTS:
            fds.frombytes(data)
        elif kind == socket.SCM_CREDENTIALS:
            sender, _, _ = _UCRED.unpack(data)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for fd in fds:
            os.close(fd)
        raise errors.Internal(f"a message of process {sender} was cut: {packet[:100]!r}...")
    return Received(json.loads(packet), list(fds), sender)


def error_message(error: BaseException) -> Message:
    """Return an error as a message, cut to what a packet holds."""
    if isinstance(error, errors.SandboxdError):
        return {"error": type(error).__name__, "message": _cut(str(error))}
    return {"error": errors.Internal.__name__, "message": _cut(f"{type(error).__name__}: {error}")}


def _cut(text: str) -> str:
    beyond = len(text) - MAX_ERROR_CHARACTERS
    return text if beyond <= 0 else f"{text[:MAX_ERROR_CHARACTERS]}... and {beyond} more characters"


def raise_error(message: Mapping[str, Any], what: str = "") -> None:
    """Raise what a message tells went wrong, if it does.

    :param what: comes before the text.
    """
    if "error" in message:
        kinds = {kind.__name__: kind for kind in errors.SandboxdError.__subclasses__()}
        text = str(message.get("message", ""))
        raise kinds.get(str(message["error"]), errors.Internal)(f"{what}: {text}" if what else text)
