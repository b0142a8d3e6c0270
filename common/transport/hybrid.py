"""hvsock://PATH: a guest's ports behind a unix socket of its VMM or vsock daemon; on the host only.

To connect: `CONNECT <port>` on that socket, answered by `OK <number>`. What the guest connects to arrives at a
socket `PATH_<port>`. Source: Firecracker docs/vsock.md, which Cloud Hypervisor and vhost-device-vsock follow.

Nobody hangs up between question and answer. vhost-device-vsock 0.3.0 does not survive it: when the guest has answered
its only worker panics over the closed socket (VsockConnection::send_pkt), and whatever else goes through it waits for
ever; if it had not read the question yet, it spins. So who gives up waiting leaves the socket to the event loop, and
who dies leaves it to the next daemon, through the descriptor store.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from common.descriptors.store import DescriptorStore, NoStore, all_sent
from common.failpoints import Failpoint, failpoint
from common.transport.streams import connect_to, listen_unix, receive_line, unix_socket

_ASKED_GROUP = "q"
_ANSWER_LIMIT_BYTES = 32


class HybridTransport:
    """The other side is the VM behind `path` (`Transport`)."""

    __slots__ = ("_path", "_store")

    def __init__(self, path: str, store: DescriptorStore | None = None) -> None:
        """:param store: keeps connections until they are answered; the next daemon calls `await_answers` with it."""
        self._path = path
        self._store = store or NoStore()

    async def connect(self, port: int, timeout_s: float) -> socket.socket:
        """Connect to a port of the guest, which must have announced itself before."""
        sock = unix_socket()
        name = self._store.new_name(_ASKED_GROUP)
        self._store.put(name, [sock.fileno()])
        async with asyncio.timeout(timeout_s):
            try:
                await all_sent(self._store)
                await connect_to(sock, self._path)
            except BaseException:
                _let_go(sock, name, self._store)
                raise
            try:
                sock.send(f"CONNECT {port}\n".encode())
                failpoint(Failpoint.GUEST_ASKED)
                answer = await receive_line(sock, _ANSWER_LIMIT_BYTES)
            except BaseException:
                _await_answer(sock, name, self._store)
                raise
        self._store.remove(name)
        if not is_accepted(answer):
            sock.close()
            raise ConnectionRefusedError(f"port {port} behind {self._path} is refused: {answer!r}")
        return sock

    def listen(self, port: int) -> socket.socket:
        """Listen for what the guest connects to this port."""
        return listen_unix(f"{self._path}_{port}")

    def is_peer(self, sock: socket.socket) -> bool:
        """Whoever may enter the directory: the VMM or its daemon."""
        return sock.family == socket.AF_UNIX


def await_answers(store: DescriptorStore) -> None:
    """Let the event loop close what an earlier daemon has asked for, each when it is answered."""
    for name in store.untaken():
        if name.startswith(_ASKED_GROUP):
            for fd in store.take(name):
                _await_answer(socket.socket(fileno=fd), name, store)


def is_accepted(answer: bytes) -> bool:
    """Tell whether the line that answers CONNECT says yes."""
    word, _, number = answer.partition(b" ")
    return word == b"OK" and number.isdigit()


def _await_answer(sock: socket.socket, name: str, store: DescriptorStore) -> None:
    """Close a connection that nobody wants any more when its answer, or its end, has come."""
    loop = asyncio.get_running_loop()

    def close() -> None:
        loop.remove_reader(sock)
        # Unread it would make the end of the connection an error, which the daemon does not tell the guest.
        with contextlib.suppress(OSError):
            sock.recv(_ANSWER_LIMIT_BYTES)
        _let_go(sock, name, store)

    loop.add_reader(sock, close)


def _let_go(sock: socket.socket, name: str, store: DescriptorStore) -> None:
    sock.close()
    store.remove(name)
