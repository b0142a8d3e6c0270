"""Taking the connections of a listening socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

PAUSE_S: Final = 1.0
"""How long nobody is taken after a failure that the next attempt would meet again; asyncio's servers wait as long."""


class Acceptor:
    """Hands each connection of a listening socket, both non-blocking, to whoever made it."""

    __slots__ = ("_listener", "_loop", "_pause", "_take")

    def __init__(self, listener: socket.socket, take: Callable[[socket.socket], object]) -> None:
        """Begin; `take` owns what it gets, the acceptor owns the listener."""
        listener.setblocking(False)
        self._listener = listener
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Take nobody any more and close the listener. Idempotent."""
        if self._listener.fileno() < 0:
            return
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        # One, and the next when the loop says that there is one: on a vsock accept(2) sleeps where nobody waits until
        # the next tick, 10 ms perhaps, though it is not to block (vsock_accept in net/vmw_vsock/af_vsock.c of Linux).
        try:
            sock, _address = self._listener.accept()
        except (BlockingIOError, ConnectionError):  # that client is gone already
            return
        except OSError as error:
            self._wait(error)
            return
        sock.setblocking(False)
        self._take(sock)

    def _wait(self, error: OSError) -> None:
        # Out of descriptors or memory: the client stays in the backlog, and the loop must not spin on it.
        where = self._listener.getsockname()
        self._loop.call_exception_handler({"message": f"no connection can be taken at {where}: {error}"})
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(PAUSE_S, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._accept)
