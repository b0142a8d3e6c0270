"""vsock://CID: the kernel's AF_VSOCK (vsock(7)), on either side of a VM."""

from __future__ import annotations

import asyncio
import errno
import os
import socket

from common.readiness import wait_writable

HOST_CID = 2
_BACKLOG = 64


class VsockTransport:
    """The other side is the machine with this CID: `HOST_CID` as seen from a guest (`Transport`)."""

    __slots__ = ("_cid",)

    def __init__(self, cid: int) -> None:
        self._cid = cid

    async def connect(self, port: int, timeout_s: float) -> socket.socket:
        """Connect to a port of the other side."""
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(timeout_s):
                number = sock.connect_ex((self._cid, port))
                if number == errno.EINPROGRESS:
                    await wait_writable(sock)
                    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number:
                    raise OSError(number, f"{os.strerror(number)}: vsock port {port} of {self._cid}")
        except BaseException:
            sock.close()
            raise
        return sock

    def listen(self, port: int) -> socket.socket:
        """Listen for all machines: a host has one such port, however many VMs it runs."""
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.bind((socket.VMADDR_CID_ANY, port))
            sock.listen(_BACKLOG)
        except BaseException:
            sock.close()
            raise
        return sock

    def is_peer(self, sock: socket.socket) -> bool:
        """Compare the CID, which the kernel vouches for."""
        try:
            cid: int = sock.getpeername()[0]
        except OSError:
            return False  # gone already
        return cid == self._cid
