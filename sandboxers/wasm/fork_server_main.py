"""The fork server: loads the engine once, then forks a process for each launch or compilation that the daemon asks for.

    fork-server <state directory> <engine> <cache directory>

Its standard input is the daemon's socket. It ends with the daemon; what it has forked does not.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from common.cgroup import Hierarchies
from common.errors import SandboxdError
from common.linux.exit_on_signal import exit_on_signals
from common.process.forking import Forker
from sandboxers.wasm import launch
from sandboxers.wasm.cache import Cache
from sandboxers.wasm.compile_process import compile_and_tell, confine
from sandboxers.wasm.default_filter import DEFAULT_PROFILE
from sandboxers.wasm.engines import EngineName, load_engine
from sandboxers.wasm.module_process import Descriptors, ModuleProcess, Parts, packed_profile, rehearse

_STREAMS = 4

# For as long after a message what it has asked for needs the processors more than what is made ahead.
_BUSY_S = 0.01


def main() -> None:
    """Serve until the daemon is gone."""
    _, _, engine, cache_directory = sys.argv[1:]
    # Children inherit both. Who writes to a reader that is gone learns so instead of dying; and the first process of
    # a PID namespace, which the kernel would let ignore all signals, is ended by them like any other.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    exit_on_signals()
    daemon = socket.socket(fileno=os.dup(0))
    _close_standard_input()
    try:
        loaded = load_engine(EngineName(engine))
    except SandboxdError as error:
        launch.send(daemon, launch.error_message(error))
        return
    profile = packed_profile(DEFAULT_PROFILE)
    server = Server(Parts(loaded, Cache(cache_directory), Hierarchies.read(), profile))
    launch.send(daemon, {"ready": True})
    while True:
        if not select.select([daemon], [], [], _BUSY_S)[0]:
            server.renew()
        received = launch.receive(daemon)
        if received is None:
            return
        if received.message:
            server.serve(received.message, received.fds)
        else:
            launch.send(daemon, {"ready": True})


def _close_standard_input() -> None:
    # Children inherit it: a socket that lives on in them would keep what is queued there for a server that is gone.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


class Server:
    """Forks, and keeps a process ahead of each kind that somebody mostly waits for."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._forker = Forker()
        self._modules = _Ahead(self._forker, partial(rehearse, parts), self._become)
        self._compilers = _Ahead(self._forker, confine, partial(compile_and_tell, parts.engine))

    def serve(self, message: launch.Message, fds: list[int]) -> None:
        """Let a process do what is asked for."""
        ahead = self._ahead(message)
        try:
            if ahead is None:
                self._fork(message, fds)
            else:
                ahead.hand(message, fds)
        except OSError as error:
            # The daemon may have given up this launch.
            with socket.socket(fileno=os.dup(fds[0])) as channel, contextlib.suppress(OSError):
                launch.send(channel, launch.error_message(error))
        finally:
            for fd in fds:
                os.close(fd)

    def renew(self) -> None:
        """Have a process ahead of each kind again."""
        self._modules.renew()
        self._compilers.renew()

    def _ahead(self, message: launch.Message) -> _Ahead | None:
        if "compile" in message:
            return self._compilers
        return self._modules if message["new_pid_namespace"] else None

    def _fork(self, message: launch.Message, fds: list[int]) -> None:
        self._forker.fork(
            partial(self._become, message, fds),
            fds,
            join_pid_namespace=fds[_STREAMS] if len(fds) > _STREAMS else -1,
        )

    def _become(self, message: launch.Message, fds: list[int]) -> NoReturn:
        channel, stdin, stdout, stderr = fds[:_STREAMS]
        joined = fds[_STREAMS] if len(fds) > _STREAMS else -1
        if not message["exec"] and joined >= 0:
            os.close(joined)
            joined = -1
        ModuleProcess(self._parts, message, Descriptors(channel, stdin, stdout, stderr, joined)).run()


class _Ahead:
    """A process forked ahead, the first of a PID namespace, which has done what it can do before it knows for whom."""

    def __init__(
        self,
        forker: Forker,
        prepare: Callable[[], None],
        serve: Callable[[launch.Message, list[int]], NoReturn],
    ) -> None:
        self._forker = forker
        self._prepare = prepare
        self._serve = serve
        self._socket: socket.socket | None = None
        self.renew()

    def hand(self, message: launch.Message, fds: list[int]) -> None:
        """Let it do what a message asks for. Raises OSError."""
        ahead, self._socket = self._socket, None
        if ahead is not None:
            # Somebody may have killed it.
            with ahead, contextlib.suppress(OSError):
                launch.send(ahead, message, fds)
                return
        with self._fork() as new:
            launch.send(new, message, fds)

    def renew(self) -> None:
        """Have one ahead, unless there is one; those that were handed something are on their own."""
        if self._socket is None:
            # It only saves time: a host that has no process left for it now may have one for the next launch.
            with contextlib.suppress(OSError):
                self._socket = self._fork()

    def _fork(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._forker.fork(partial(self._run, theirs), [theirs.fileno()], new_pid_namespace=True)
        except OSError:
            ours.close()
            raise
        return ours

    def _run(self, channel: socket.socket) -> NoReturn:
        self._prepare()
        received = launch.receive(channel)
        if received is None:
            os._exit(0)  # the server is gone
        channel.close()
        self._serve(received.message, received.fds)
