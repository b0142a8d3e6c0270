"""The server: its listeners and connections, and how errors of its handlers are answered."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Final

from common.accepting import Acceptor
from common.ttrpc._calls import CallObserver, PeerCredentials, Service
from common.ttrpc._errors import StatusCode, StatusError
from common.ttrpc._journal import NULL_JOURNAL, Journal, Replay
from common.ttrpc._server_connection import ServerConnection

StatusOf = Callable[[Exception], tuple[int, str]]
Authorize = Callable[[PeerCredentials], bool]

QUEUE_LIMIT: Final = 16 << 20
MESSAGE_LIMIT: Final = 16 << 10  # characters of an error text: its frame stays small enough to be atomic

_CREDENTIALS = struct.Struct("iII")


def default_status_of(error: Exception) -> tuple[int, str]:
    """Map errors of handlers where the owner of the server did not say how."""
    if isinstance(error, TimeoutError):
        return StatusCode.DEADLINE_EXCEEDED, str(error) or "timed out"
    return StatusCode.UNKNOWN, f"{type(error).__name__}: {error}"


class Server:
    """Serves method tables on any number of listening sockets. Small when idle: one may exist per pod.

    `status_of` maps what handlers raise to a code and a text (StatusError needs no mapping); `authorize`
    decides by its credentials whether a peer may stay; `journal` is told of calls as `Journal` describes; a
    connection whose peer leaves more than `queue_limit` bytes unread is closed. With `drops_repeats` a request with a
    stream id that was used before is passed over: a relay may send what it has sent (`RelayServer`). With
    `whole_frames` a client that sends a frame above 64 KiB loses its connection: nothing that it has not sent whole is
    kept here.

    A handler lives no longer than its connection: it is cancelled when that is lost, and when the call's
    deadline passes. To close the server from inside a handler use `loop.call_soon(server.close)`.
    """

    __slots__ = (
        "__weakref__",
        "_acceptors",
        "_authorize",
        "_connections",
        "_lingering",
        "_status_of",
        "drops_repeats",
        "journal",
        "queue_limit",
        "services",
        "whole_frames",
    )

    def __init__(
        self,
        services: Mapping[str, Service],
        *,
        status_of: StatusOf | None = None,
        authorize: Authorize | None = None,
        journal: Journal = NULL_JOURNAL,
        queue_limit: int = QUEUE_LIMIT,
        drops_repeats: bool = False,
        whole_frames: bool = False,
    ) -> None:
        self.services = services
        self.drops_repeats = drops_repeats
        self.whole_frames = whole_frames
        self.journal = journal
        self.queue_limit = queue_limit
        self._status_of = status_of or default_status_of
        self._authorize = authorize
        self._acceptors: tuple[Acceptor, ...] = ()
        self._connections: dict[int, ServerConnection] = {}
        self._lingering: dict[int, ServerConnection] = {}  # lost, but a cancelled handler has not ended yet

    @staticmethod
    def observe(observer: CallObserver | None) -> None:
        """Let one be told of calls that were answered, by any server of the process."""
        ServerConnection.observer = observer

    @property
    def connection_count(self) -> int:
        return len(self._connections)

    def listen(self, sock: socket.socket) -> None:
        """Accept connections on a bound, listening unix stream socket, which the server owns from now on."""
        self._acceptors += (Acceptor(sock, self._accept),)

    def adopt(self, sock: socket.socket, replay: Replay | None = None) -> None:
        """Serve a connected unix stream socket, which the server owns from now on, without asking
        `authorize`.

        With `replay` it is a connection that an earlier process has served: what that has left undone is done.
        """
        connection_id = self.journal.opened(sock) if replay is None else replay.connection_id
        connection = self._connection(sock, connection_id)
        self._connections[id(connection)] = connection
        if replay is None:
            self.journal.when_kept(connection.start_reading)
        else:
            connection.start_reading()
            # Handlers begin outside of the task that calls this, and before the loop looks at sockets again.
            asyncio.get_running_loop().call_soon(connection.replay, replay)

    def _connection(self, sock: socket.socket, connection_id: int) -> ServerConnection:
        return ServerConnection(self, sock, peer_credentials(sock), connection_id)

    def close(self) -> None:
        """Close listeners and connections and cancel the handlers bound to them. Idempotent; listen again at
        will.
        """
        acceptors, self._acceptors = self._acceptors, ()
        for acceptor in acceptors:
            acceptor.close()
        for connection in list(self._connections.values()):
            connection.close()

    async def wait_closed(self) -> None:
        """After `close`: return when the handlers that it cancelled have ended."""
        while self._lingering:
            await asyncio.wait([task for lost in self._lingering.values() for task in lost.tasks()])

    # ── called by acceptors and connections ─────────────────────────────────────────────────────

    def _accept(self, sock: socket.socket) -> None:
        try:
            allowed = self._authorize is None or self._is_authorized(peer_credentials(sock))
        except BaseException:
            sock.close()
            raise
        if allowed:
            self.adopt(sock)
        else:
            sock.close()

    def _is_authorized(self, peer: PeerCredentials | None) -> bool:
        return peer is not None and self._authorize is not None and self._authorize(peer)

    def lost(self, connection: ServerConnection, *, lingers: bool) -> None:
        self._connections.pop(id(connection), None)
        if lingers:
            self._lingering[id(connection)] = connection

    def forget(self, connection: ServerConnection) -> None:
        self._lingering.pop(id(connection), None)

    def status(self, error: BaseException) -> tuple[int, str]:
        """Return the code and the text, fit for the wire, with which an error is answered."""
        code: int
        if isinstance(error, StatusError):
            code, text = error.code, error.message
        elif isinstance(error, asyncio.CancelledError):
            code, text = StatusCode.CANCELLED, "the call was cancelled"
        elif isinstance(error, Exception):
            try:
                code, text = self._status_of(error)
            except Exception as fault:
                code, text = default_status_of(fault)
        else:
            code, text = StatusCode.INTERNAL, type(error).__name__
        # Texts may hold file names that are not UTF-8, which protobuf refuses.
        text = text[:MESSAGE_LIMIT].encode("utf-8", "backslashreplace").decode()
        return int(code) or int(StatusCode.UNKNOWN), text


def peer_credentials(sock: socket.socket) -> PeerCredentials | None:
    """Read SO_PEERCRED of a connected unix socket (unix(7)); None for another one, such as that of a VM's host."""
    if sock.family != socket.AF_UNIX:
        return None
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return PeerCredentials(*_CREDENTIALS.unpack(data))
