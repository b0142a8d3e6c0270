"""What a process is to the kernel: subreaper, and who stands at the other end of a socket."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from common.linux.prctl import set_child_subreaper as set_child_subreaper

CAP_SYS_RESOURCE = 24
_UCRED = struct.Struct("=iII")


class PeerCredentials(NamedTuple):
    """Who connected, as the kernel recorded it at connect time (unix(7), SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


def has_capability(number: int) -> bool:
    """Tell whether this process has a capability in effect, by its number (capabilities(7))."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    return bool(effective >> number & 1)


def peer_credentials(sock: socket.socket) -> PeerCredentials:
    """Return the credentials of the peer of a connected unix socket. Raises OSError for other sockets."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return PeerCredentials(*_UCRED.unpack(raw))
