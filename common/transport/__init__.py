"""Ways to reach the other side of a VM's vsock: byte streams to and from numbered ports.

    unix.py      unix://DIRECTORY   a socket per port in a directory; for an agent that runs as a plain process
    vsock.py     vsock://CID        AF_VSOCK of the kernel, on either side
    hybrid.py    hvsock://PATH      a VMM's or daemon's unix socket with `CONNECT <port>`; on the host only

Each file implements `Transport` and is loaded when an address names it.
"""

from __future__ import annotations

import socket
from typing import Protocol

from common.descriptors.store import DescriptorStore
from common.errors import InvalidArgument


class Transport(Protocol):
    """Connects to ports of the other side and listens on ports of this side."""

    async def connect(self, port: int, timeout_s: float) -> socket.socket:
        """Return a connected, non-blocking socket.

        :raise OSError: nobody listens there, or the other side is gone.
        :raise TimeoutError: no answer in time, or none to so many others that this one was not asked for.
        """
        ...

    def listen(self, port: int) -> socket.socket:
        """Return a listening, non-blocking socket.

        :raise OSError: the port is taken.
        """
        ...

    def is_peer(self, sock: socket.socket) -> bool:
        """Tell whether an accepted connection comes from the other side and not from a third one."""
        ...


def transport_of(address: str, store: DescriptorStore | None = None) -> Transport:
    """Return the transport of an address such as `vsock://3`.

    :param store: keeps what must outlive this process of a connection that is being made (`HybridTransport`).
    :raise InvalidArgument: it is malformed, or of no known kind.
    """
    scheme, _, rest = address.partition("://")
    if scheme == "vsock" and rest.isascii() and rest.isdigit():
        from common.transport.vsock import VsockTransport

        return VsockTransport(int(rest))
    if scheme == "unix" and rest.startswith("/"):
        from common.transport.unix import UnixTransport

        return UnixTransport(rest)
    if scheme == "hvsock" and rest.startswith("/"):
        from common.transport.hybrid import HybridTransport

        return HybridTransport(rest, store)
    raise InvalidArgument(
        f"{address!r} is no transport: expected vsock://CID, hvsock:///PATH or unix:///DIRECTORY"
    )
