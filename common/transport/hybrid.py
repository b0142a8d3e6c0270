"""hvsock://PATH: a guest's ports behind a unix socket of its VMM or vsock daemon; on the host only.

To connect: `CONNECT <port>` on that socket, answered by `OK <number>`. What the guest connects to arrives at a
socket `PATH_<port>`. Source: Firecracker docs/vsock.md, which Cloud Hypervisor and vhost-device-vsock follow.

Nobody hangs up between question and answer. vhost-device-vsock 0.3.0 does not survive it: when the guest has answered
its only worker panics over the closed socket (VsockConnection::send_pkt), and whatever else goes through it waits for
ever; if it had not read the question yet, it spins. So who gives up waiting leaves the socket to the event loop, and
who dies leaves it to the next daemon, through the descriptor store. A guest that answers nothing must not fill that
store, which all pods share: it is asked no more when too many questions have no answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from typing import Final

from common.descriptors.store import DescriptorStore, NoStore, all_sent
from common.errors import ResourceExhausted
from common.failpoints import Failpoint, failpoint
from common.transport.streams import connect_to, listen_unix, receive_line, unix_socket

_ASKED_GROUP = "q"
_ANSWER_LIMIT_BYTES = 32
UNANSWERED_LIMIT: Final = 16
"""How many connections behind one path may have been given up and not be answered."""

# By path: what `_await_answer` has left to the event loop.
_unanswered: Counter[str] = Counter()


class HybridTransport:
    """The other side is the VM behind `path` (`Transport`)."""

    __slots__ = ("_path", "_store")

    def __init__(self, path: str, store: DescriptorStore | None = None) -> None:
        """:param store: keeps connections until they are answered; the next daemon calls `await_answers` with it."""
        self._path = path
        self._store = store or NoStore()

    async def connect(self, port: int, timeout_s: float) -> socket.socket:
        """Connect to a port of the guest, which must have announced itself before.

        :raise TimeoutError: no answer in time; or no question, as `UNANSWERED_LIMIT` others have no answer yet.
        :raise OSError: the connection is refused.
        :raise ResourceExhausted: nobody has taken it into the store within half of the time: not the guest's fault.
        """
        if _unanswered[self._path] >= UNANSWERED_LIMIT:
            raise TimeoutError(f"{UNANSWERED_LIMIT} connections behind {self._path} are unanswered")
        sock = unix_socket()
        name = self._store.new_name(_ASKED_GROUP)
        self._store.put(name, [sock.fileno()])
        async with asyncio.timeout(timeout_s):
            try:
                await self._kept(timeout_s / 2)
                await connect_to(sock, self._path)
            except BaseException:
                _let_go(sock, name, self._store)
                raise
            try:
                sock.send(f"CONNECT {port}\n".encode())
                failpoint(Failpoint.GUEST_ASKED)
                answer = await receive_line(sock, _ANSWER_LIMIT_BYTES)
            except BaseException:
                _await_answer(sock, self._path, name, self._store)
                raise
        self._store.remove(name)
        if not is_accepted(answer):
            sock.close()
            raise ConnectionRefusedError(f"port {port} behind {self._path} is refused: {answer!r}")
        return sock

    async def _kept(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await all_sent(self._store)
        except TimeoutError:
            raise ResourceExhausted(
                f"the service manager has not taken a connection to {self._path} within {timeout_s:g} s"
            ) from None

    def listen(self, port: int) -> socket.socket:
        """Listen for what the guest connects to this port."""
        return listen_unix(f"{self._path}_{port}")

    def is_peer(self, sock: socket.socket) -> bool:
        """Whoever may enter the directory: the VMM or its daemon."""
        return sock.family == socket.AF_UNIX


def await_answers(store: DescriptorStore) -> None:
    """Let the event loop close what an earlier daemon has asked for, each when it is answered.

    What that daemon had connected and not asked when it died, or whose answer it had read, gets no answer: that stays,
    and counts (`UNANSWERED_LIMIT`), until the machine ends.
    """
    for name in store.untaken():
        if name.startswith(_ASKED_GROUP):
            for fd in store.take(name):
                sock = socket.socket(fileno=fd)
                _await_answer(sock, _peer_path(sock), name, store)


def is_accepted(answer: bytes) -> bool:
    """Tell whether the line that answers CONNECT says yes."""
    word, _, number = answer.partition(b" ")
    return word == b"OK" and number.isdigit()


def _await_answer(sock: socket.socket, path: str, name: str, store: DescriptorStore) -> None:
    """Close a connection that nobody wants any more when its answer, or its end, has come."""
    loop = asyncio.get_running_loop()
    _unanswered[path] += 1

    def close() -> None:
        loop.remove_reader(sock)
        _unanswered[path] -= 1
        if not _unanswered[path]:
            del _unanswered[path]
        # Unread it would make the end of the connection an error, which the daemon does not tell the guest.
        with contextlib.suppress(OSError):
            sock.recv(_ANSWER_LIMIT_BYTES)
        _let_go(sock, name, store)

    loop.add_reader(sock, close)


def _peer_path(sock: socket.socket) -> str:
    """Return the path that a socket is connected to, empty if it is not."""
    try:
        return str(sock.getpeername())
    except OSError:
        return ""


def _let_go(sock: socket.socket, name: str, store: DescriptorStore) -> None:
    sock.close()
    store.remove(name)
