"""Who keeps the descriptors of a `mortal` server, and starts the next one when it was killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

from tests.unit.common.ttrpc.mortal import LISTENER


class Keeper:
    """One server after the other on one socket, each a run of the module; `async with`."""

    def __init__(self, directory: Path, module: str = "tests.unit.common.ttrpc.mortal") -> None:
        self.directory = directory
        self._module = module
        self.path = directory / "s"
        self.deaths = 0
        self.kept: dict[str, int] = {}
        self._mine, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._mine.setblocking(False)
        self._process: asyncio.subprocess.Process | None = None
        self._restarts: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Keeper:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen(16)
        self.kept[LISTENER] = listener.detach()
        asyncio.get_running_loop().add_reader(self._mine, self._receive)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._restarts is not None:
            self._restarts.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._restarts
        self.kill()
        if self._process is not None:
            await self._process.wait()
        asyncio.get_running_loop().remove_reader(self._mine)
        self._receive()
        for fd in self.kept.values():
            os.close(fd)
        self._mine.close()
        self._theirs.close()

    async def start(self, failpoints: str = "") -> None:
        """Start the first server, which may die at these failpoints, and others whenever one is killed."""
        await self._start(failpoints)
        self._restarts = asyncio.create_task(self._restart())

    def kill(self) -> None:
        """Kill the server, if there is one right now."""
        if self._process is not None and self._process.returncode is None:
            # Not by the process's own kill(): that reaps one that has just ended, and asyncio's watcher, which
            # finds it gone, reports 255.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)

    async def kill_and_wait(self) -> None:
        """Kill the server and return when its successor has been started."""
        deaths = self.deaths
        self.kill()
        while self.deaths == deaths:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.005)

    def done(self) -> list[bytes]:
        """Return what the handlers wrote down."""
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / "done").read_bytes().splitlines()
        return []

    async def _restart(self) -> None:
        while True:
            assert self._process is not None
            status = await self._process.wait()
            assert status == -signal.SIGKILL, f"the server ended with {status}"
            self._receive()
            await self._start("")
            self.deaths += 1

    async def _start(self, failpoints: str) -> None:
        environment = {
            **os.environ,
            "STORE_FD": str(self._theirs.fileno()),
            "STORE_HANDED": json.dumps(self.kept),
            "SANDBOXD_FAILPOINTS": failpoints,
        }
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self._module,
            self.directory,
            env=environment,
            pass_fds=[self._theirs.fileno(), *self.kept.values()],
        )

    def _receive(self) -> None:
        while True:
            try:
                message, fds, _flags, _address = socket.recv_fds(self._mine, 256, 4)
            except BlockingIOError:
                return
            action, _, name = message.decode().partition(" ")
            if action == "put":
                (self.kept[name],) = fds
            elif name in self.kept:
                os.close(self.kept.pop(name))
