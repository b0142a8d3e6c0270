"""What the daemon, the fork server and a module process say to each other: JSON in packets, with descriptors.

    daemon → server            {"directory": ..., "exec": ..., "console": ..., "new_pid_namespace": ...}, and the
                               descriptors of `Launch.fds`
    server → daemon            {"pid": ...}                  on the launch's own channel, as is all that follows
    module process → daemon    {"missing": ..., "key": ..., "kind": ...} and a file; answered by {} or an error
    module process → daemon    {"ready": true}               answered by {}: go on to the start
    anybody                    {"error": <class of common.errors>, "message": ...}

A channel that ends means that the other one is gone: a process that was not told to go on ends too.
"""

from __future__ import annotations

import array
import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final

from common import errors

PACKET_BYTES: Final = 64 << 10
_FDS_SPACE: Final = socket.CMSG_SPACE(8 * array.array("i").itemsize)

MISSING_MODULE: Final = "module"
MISSING_FILTER: Final = "filter"

Message = dict[str, Any]


def packed(message: Mapping[str, Any]) -> bytes:
    """Return a message as it is sent."""
    return json.dumps(message, separators=(",", ":")).encode()


def send(channel: socket.socket, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
    """Send a message, and copies of descriptors. Raises OSError when the other end is gone."""
    socket.send_fds(channel, [packed(message)], fds)


def receive(channel: socket.socket) -> tuple[Message, list[int]] | None:
    """Return the next message with its descriptors, which are the caller's; None when the other end is gone."""
    try:
        # Not recv_fds(), which forgets the flag.
        packet, ancillary, _, _ = channel.recvmsg(PACKET_BYTES, _FDS_SPACE, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None
    if not packet:
        return None
    fds = array.array("i")
    for _, _, data in ancillary:
        fds.frombytes(data)
    message: Message = json.loads(packet)
    return message, list(fds)


def error_message(error: BaseException) -> Message:
    """Return an error as a message."""
    if isinstance(error, errors.SandboxdError):
        return {"error": type(error).__name__, "message": str(error)}
    return {"error": errors.Internal.__name__, "message": f"{type(error).__name__}: {error}"}


def raise_error(message: Mapping[str, Any], what: str = "") -> None:
    """Raise what a message tells went wrong, if it does.

    :param what: comes before the text.
    """
    if "error" in message:
        kinds = {kind.__name__: kind for kind in errors.SandboxdError.__subclasses__()}
        text = str(message.get("message", ""))
        raise kinds.get(str(message["error"]), errors.Internal)(f"{what}: {text}" if what else text)
