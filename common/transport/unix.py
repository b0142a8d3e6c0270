"""unix://DIRECTORY: each port is a socket in a directory, for an agent that runs as a plain process."""

from __future__ import annotations

import socket

from common.transport.streams import connect_unix, listen_unix


class UnixTransport:
    """Both sides share the directory (`Transport`): a port has one listener, on whichever side that is."""

    __slots__ = ("_directory",)

    def __init__(self, directory: str) -> None:
        self._directory = directory

    async def connect(self, port: int, timeout_s: float) -> socket.socket:
        """Connect to the port's socket."""
        return await connect_unix(self._path(port), timeout_s)

    def listen(self, port: int) -> socket.socket:
        """Make the port's socket, in place of one that nobody listens on any more."""
        return listen_unix(self._path(port))

    def is_peer(self, sock: socket.socket) -> bool:
        """Whoever may enter the directory."""
        return sock.family == socket.AF_UNIX

    def _path(self, port: int) -> str:
        return f"{self._directory}/{port}.sock"
