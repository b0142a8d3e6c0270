"""Sockets: those of C, with accept, a context manager, and descriptors that travel. Constants are plain numbers."""

import array
import os

import _socket
from _socket import *

error = OSError
timeout = TimeoutError


class socket(_socket.socket):
    """A socket; never inherited, blocking unless told otherwise."""

    __slots__ = ("__weakref__",)

    def __init__(self, family=-1, type=-1, proto=-1, fileno=None):
        if fileno is None:
            family = AF_INET if family == -1 else family
            type = SOCK_STREAM if type == -1 else type
            proto = 0 if proto == -1 else proto
        _socket.socket.__init__(self, family, type, proto, fileno)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def accept(self):
        """Return a connection and its peer's address."""
        fd, address = self._accept()
        return socket(self.family, self.type, self.proto, fd), address


def socketpair(family=AF_UNIX, type=SOCK_STREAM, proto=0):
    """Return two sockets that are connected."""
    a, b = _socket.socketpair(family, type, proto)
    return socket(family, type, proto, a.detach()), socket(family, type, proto, b.detach())


def recv_fds(sock, size, limit, flags=0):
    """Receive data and at most so many descriptors (unix(7), SCM_RIGHTS)."""
    fds = array.array("i")
    data, ancillary, flags, address = sock.recvmsg(size, CMSG_LEN(limit * fds.itemsize), flags)
    for level, kind, content in ancillary:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds), flags, address


def send_fds(sock, buffers, fds, flags=0, address=None):
    """Send data and descriptors."""
    return sock.sendmsg(buffers, [(SOL_SOCKET, SCM_RIGHTS, array.array("i", fds))])


__all__ = [name for name in vars(_socket) if not name.startswith("_")] + [
    "os",
    "recv_fds",
    "send_fds",
    "socketpair",
]
