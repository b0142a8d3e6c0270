"""The fork server: loads the engine once, then forks a process for each launch that the daemon asks for.

    fork-server <state directory> <engine> <cache directory>

Its standard input is the daemon's socket. It ends with the daemon; what it has forked does not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from functools import partial
from typing import NoReturn

from common.cgroup import Hierarchies
from common.errors import SandboxdError
from common.linux.exit_on_signal import exit_on_signals
from common.process.forking import Forker
from sandboxers.wasm import launch
from sandboxers.wasm.cache import Cache
from sandboxers.wasm.default_filter import DEFAULT_PROFILE
from sandboxers.wasm.engines import EngineName, load_engine
from sandboxers.wasm.module_process import Descriptors, ModuleProcess, Parts, packed_profile, rehearse

_STREAMS = 4


def main() -> None:
    """Serve until the daemon is gone."""
    _, _, engine, cache_directory = sys.argv[1:]
    # Children inherit both. Who writes to a reader that is gone learns so instead of dying; and the first process of
    # a PID namespace, which the kernel would let ignore all signals, is ended by them like any other.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    exit_on_signals()
    daemon = socket.socket(fileno=os.dup(0))
    # Children inherit it: a socket that lives on in them would keep what is queued there for a server that is gone.
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(nothing, 0)
    os.close(nothing)
    try:
        loaded = load_engine(EngineName(engine))
    except SandboxdError as error:
        launch.send(daemon, launch.error_message(error))
        return
    profile = packed_profile(DEFAULT_PROFILE)
    server = Server(Parts(loaded, Cache(cache_directory), Hierarchies.read(), profile))
    launch.send(daemon, {"ready": True})
    while (received := launch.receive(daemon)) is not None:
        if received.message["directory"]:
            server.serve(received.message, received.fds)
        else:
            launch.send(daemon, {"ready": True})


class Server:
    """Forks, and keeps one process ahead: most launches want the same kind, which so need not wait for a fork."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._forker = Forker()
        self._spare = self._try_to_fork_spare()

    def serve(self, message: launch.Message, fds: list[int]) -> None:
        """Let a process do what a launch asks for."""
        wants_spare = message["new_pid_namespace"]
        try:
            if not wants_spare or not self._hand_to_spare(message, fds):
                self._fork(message, fds)
        except OSError as error:
            # The daemon may have given up this launch.
            with socket.socket(fileno=os.dup(fds[0])) as channel, contextlib.suppress(OSError):
                launch.send(channel, launch.error_message(error))
        finally:
            for fd in fds:
                os.close(fd)
        if wants_spare:
            self._spare = self._try_to_fork_spare()

    def _hand_to_spare(self, message: launch.Message, fds: list[int]) -> bool:
        if self._spare is None:
            return False
        try:
            with self._spare:
                launch.send(self._spare, message, fds)
        except OSError:
            return False  # somebody has killed it
        return True

    def _try_to_fork_spare(self) -> socket.socket | None:
        # It only saves time: a host that has no process left for it now may have one for the next launch.
        with contextlib.suppress(OSError):
            return self._fork_spare()
        return None

    def _fork_spare(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def run() -> NoReturn:
            rehearse(self._parts)
            received = launch.receive(theirs)
            if received is None:
                os._exit(0)  # the server is gone
            theirs.close()
            self._become(received.message, received.fds)

        try:
            with theirs:
                self._forker.fork(run, [theirs.fileno()], new_pid_namespace=True)
        except OSError:
            ours.close()
            raise
        return ours

    def _fork(self, message: launch.Message, fds: list[int]) -> None:
        self._forker.fork(
            partial(self._become, message, fds),
            fds,
            new_pid_namespace=message["new_pid_namespace"],
            join_pid_namespace=fds[_STREAMS] if len(fds) > _STREAMS else -1,
        )

    def _become(self, message: launch.Message, fds: list[int]) -> NoReturn:
        channel, stdin, stdout, stderr = fds[:_STREAMS]
        joined = fds[_STREAMS] if len(fds) > _STREAMS else -1
        if not message["exec"] and joined >= 0:
            os.close(joined)
            joined = -1
        ModuleProcess(self._parts, message, Descriptors(channel, stdin, stdout, stderr, joined)).run()
