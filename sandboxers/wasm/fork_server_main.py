"""The fork server: loads the engine once, then forks a process for each launch that the daemon asks for.

    <state directory> <engine> <cache directory>

Its standard input is the daemon's socket. It ends with the daemon; what it has forked does not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from typing import NoReturn

from common.cgroup import Hierarchies
from common.errors import SandboxdError
from common.process.forking import Forker
from sandboxers.wasm import launch
from sandboxers.wasm.cache import Cache
from sandboxers.wasm.engines import EngineName, load_engine
from sandboxers.wasm.module_process import Descriptors, ModuleProcess, Parts

_STREAMS = 4


def main() -> None:
    """Serve until the daemon is gone."""
    _, engine, cache_directory = sys.argv[1:]
    # Children inherit it: who writes to a reader that is gone learns so instead of dying.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    daemon = socket.socket(fileno=os.dup(0))
    try:
        parts = Parts(load_engine(EngineName(engine)), Cache(cache_directory), Hierarchies.read())
    except SandboxdError as error:
        launch.send(daemon, launch.error_message(error))
        return
    launch.send(daemon, {"ready": True})
    forker = Forker()
    while (received := launch.receive(daemon)) is not None:
        _serve(forker, parts, daemon, *received)


def _serve(
    forker: Forker, parts: Parts, daemon: socket.socket, message: launch.Message, fds: list[int]
) -> None:
    channel, stdin, stdout, stderr = fds[:_STREAMS]
    joined = fds[_STREAMS] if len(fds) > _STREAMS else -1
    descriptors = Descriptors(channel, stdin, stdout, stderr, joined if message["exec"] else -1)

    def run() -> NoReturn:
        ModuleProcess(parts, message, descriptors).run()

    answers = socket.socket(fileno=os.dup(channel))
    try:
        pid = forker.fork(run, new_pid_namespace=message["new_pid_namespace"], join_pid_namespace=joined)
        answer: launch.Message = {"pid": pid}
    except OSError as error:
        answer = launch.error_message(error)
    finally:
        for fd in fds:
            os.close(fd)
    # The daemon may have given up this launch.
    with answers, contextlib.suppress(OSError):
        launch.send(answers, answer)
