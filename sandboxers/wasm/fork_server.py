"""The daemon's side of the fork server: kept running, asked for processes, replaced when it has died.

Its death touches no container: those are children of the daemon from the start, and know nothing of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Sequence
from typing import Final

from common.errors import Internal, NotFound, SandboxdError, Unavailable
from common.log import get_logger
from common.process.exits import ExitWatcher
from common.process.spawn import Child, own_program, spawn
from sandboxers.wasm import launch
from sandboxers.wasm.engines import EngineName

log = get_logger()

# By which it is found on a node, with the state directory: what comes before depends on the version.
NAME: Final = "fork-server"
_STANDARD_ERROR = 2
_READY_TIMEOUT_S = 30.0
_ANSWER_TIMEOUT_S = 10.0


class ForkServer:
    """One program at a time. Lives in the daemon's event loop."""

    def __init__(self, exits: ExitWatcher, state_dir: str, engine: EngineName, cache_dir: str) -> None:
        self._exits = exits
        program = own_program("sandboxers.wasm.fork_server_main", with_packages=True)
        self._argv = [*program, NAME, state_dir, engine.value, cache_dir]
        self._socket: socket.socket | None = None
        self._child: Child | None = None
        # One reads its socket at a time.
        self._asking = asyncio.Lock()

    @property
    def pid(self) -> int:
        """The pid of the program that runs now; 0: none does."""
        return self._child.pid if self._child is not None and self._child.status is None else 0

    async def start(self) -> None:
        """Start it, and return when it has loaded the engine.

        :raise Unimplemented: the engine is not installed.
        :raise Internal: it ended.
        """
        self.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            child = spawn(self._argv, watcher=self._exits, stdin=theirs.fileno(), stderr=_STANDARD_ERROR)
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                received = await receive(ours)
            if received is None:
                status = await child.wait()
                raise Internal(f"the fork server ended with code {status.code} before it was ready")
            launch.raise_error(received.message, "the fork server")
        except BaseException as error:
            _end(ours, child)
            if isinstance(error, TimeoutError):
                text = f"the fork server did not get ready within {_READY_TIMEOUT_S:g} s"
                raise Internal(text) from None
            raise
        # Not before: nobody else must use or close what is waited for here.
        self._socket, self._child = ours, child
        log.info("wasm.fork_server_started", pid=child.pid)

    async def ensure_alive(self) -> None:
        """Return when the server has answered, or another one has taken its place.

        :raise Unavailable: it has died, and a new one is not to be had.
        """
        async with self._asking:
            if self._socket is not None and self.pid:
                with contextlib.suppress(ConnectionError, TimeoutError):
                    async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                        await _send(self._socket, {}, ())
                        if await receive(self._socket) is not None:
                            return
            await self._restart()

    async def launch(self, message: launch.Message, fds: Sequence[int]) -> None:
        """Ask for a process; what becomes of it is told on the channel, the first of the descriptors (`launch`).

        :raise Unavailable: the server has died, and a new one is not to be had.
        """
        lost = False
        for _ in range(2):
            if lost or self._socket is None or not self.pid:
                await self.ensure_alive()
            used = self._socket
            assert used is not None
            try:
                await _send(used, message, fds)
                return
            except OSError as error:
                log.warning("wasm.fork_server_lost", error=error)
                lost = True
        raise Unavailable("the fork server dies as soon as it is started")

    def close(self) -> None:
        """Let it end."""
        if self._socket is not None and self._child is not None:
            _end(self._socket, self._child)
        self._socket = self._child = None

    async def _restart(self) -> None:
        log.warning("wasm.fork_server_died")
        try:
            await self.start()
        except (SandboxdError, OSError) as error:
            raise Unavailable(f"the fork server cannot be started: {error}") from error


def _end(used: socket.socket, child: Child) -> None:
    used.close()
    # It ends by itself; but one that is stopped or stuck must not keep what it has inherited.
    with contextlib.suppress(NotFound):
        child.signal(signal.SIGKILL)


async def receive(channel: socket.socket) -> launch.Received | None:
    """Wait for a message on a non-blocking socket (`launch.receive`)."""
    while True:
        try:
            return launch.receive(channel)
        except BlockingIOError:
            await _ready(channel, for_writing=False)


async def _send(channel: socket.socket, message: launch.Message, fds: Sequence[int]) -> None:
    while True:
        try:
            return launch.send(channel, message, fds)
        except BlockingIOError:
            await _ready(channel, for_writing=True)


async def _ready(channel: socket.socket, *, for_writing: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    add, remove = (
        (loop.add_writer, loop.remove_writer) if for_writing else (loop.add_reader, loop.remove_reader)
    )
    fd = os.dup(channel.fileno()) if for_writing else channel.fileno()
    add(fd, wake)
    try:
        await ready
    finally:
        remove(fd)
        if for_writing:
            # Several may wait for the server's one socket at once, but for a descriptor only one.
            os.close(fd)
