"""hvsock://PATH: a guest's ports behind a unix socket of its VMM or vsock daemon; on the host only.

To connect: `CONNECT <port>` on that socket, answered by `OK <number>`. What the guest connects to arrives at a
socket `PATH_<port>`. Source: Firecracker docs/vsock.md, which Cloud Hypervisor and vhost-device-vsock follow.
"""

from __future__ import annotations

import asyncio
import socket

from common.transport.streams import connect_unix, listen_unix, receive_line

_ANSWER_LIMIT_BYTES = 32


class HybridTransport:
    """The other side is the VM behind `path` (`Transport`)."""

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    async def connect(self, port: int, timeout_s: float) -> socket.socket:
        """Connect to a port of the guest, which must have announced itself before."""
        async with asyncio.timeout(timeout_s):
            sock = await connect_unix(self._path, timeout_s)
            try:
                sock.send(f"CONNECT {port}\n".encode())
                answer = await receive_line(sock, _ANSWER_LIMIT_BYTES)
                if not is_accepted(answer):
                    raise ConnectionRefusedError(f"port {port} behind {self._path} is refused: {answer!r}")
            except BaseException:
                sock.close()
                raise
        return sock

    def listen(self, port: int) -> socket.socket:
        """Listen for what the guest connects to this port."""
        return listen_unix(f"{self._path}_{port}")

    def is_peer(self, sock: socket.socket) -> bool:
        """Whoever may enter the directory: the VMM or its daemon."""
        return sock.family == socket.AF_UNIX


def is_accepted(answer: bytes) -> bool:
    """Tell whether the line that answers CONNECT says yes."""
    word, _, number = answer.partition(b" ")
    return word == b"OK" and number.isdigit()
