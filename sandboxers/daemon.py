"""sandboxd: the composition root. One process serves one isolation type, chosen by its configuration file.

Order matters: lock the type, become the subreaper, recover, and only then listen (architecture, section 4).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator

from common.errors import FailedPrecondition, SandboxdError
from common.linux.procs import set_child_subreaper
from common.log import configure as configure_log
from common.log import get_logger
from sandboxers.controller import Controller, serve
from sandboxers.isolation import load_isolation
from sandboxers.registry import SandboxRegistry

LOCK_FILE = ".lock"
_OPEN_FILES = 65536

log = get_logger()


def main() -> None:
    """Run the daemon; exit code 0 after SIGTERM or SIGINT, 1 when it cannot start."""
    parser = argparse.ArgumentParser(
        prog="sandboxd", description="Serve pods of one isolation type to a container engine."
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="the YAML file that selects and tunes the type"
    )
    arguments = parser.parse_args()
    try:
        asyncio.run(run(arguments.config))
    except (SandboxdError, OSError) as error:
        log.error("daemon.failed", config=arguments.config, error=error)
        sys.exit(1)


async def run(config_path: str) -> None:
    """Serve until told to stop. Containers go on without us.

    :raise SandboxdError, OSError: the configuration, the state directory or the socket cannot be used.
    """
    isolation, config = load_isolation(config_path)
    configure_log(config.log.level, config.log.format)
    os.makedirs(config.state_dir, 0o700, exist_ok=True)
    os.makedirs(os.path.dirname(config.socket), 0o700, exist_ok=True)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopping.set)
    _allow_descriptors()
    with _only_daemon(config.state_dir):
        set_child_subreaper()
        sandboxer = isolation.sandboxer(config)
        registry = SandboxRegistry(sandboxer, config.state_dir, config.pod.stop_timeout_s)
        await registry.recover()
        controller = Controller(registry)
        server = await serve(controller, config.socket)
        try:
            # What was loaded until now stays: keeping it out of collections keeps its pages shared and cold.
            gc.collect()
            gc.freeze()
            _notify("READY=1")
            log.info(
                "daemon.ready",
                type=sandboxer.name,
                socket=config.socket,
                sandboxes=len(registry),
                pid=os.getpid(),
            )
            await stopping.wait()
            log.info("daemon.stopping", sandboxes=len(registry))
            _notify("STOPPING=1")
        finally:
            controller.close()
            await server.stop(grace=1.0)
            sandboxer.close()


def _allow_descriptors() -> None:
    """Raise the soft limit on open files where it is a login shell's: a pod with one container takes about 7.

    Not to the hard limit: containers inherit it, and some programs close every descriptor up to it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))


@contextlib.contextmanager
def _only_daemon(state_dir: str) -> Iterator[None]:
    """Hold the lock of the type; the file names the pid that holds it.

    :raise FailedPrecondition: another daemon serves this state directory.
    """
    fd = os.open(f"{state_dir}/{LOCK_FILE}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with open(fd, "r+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = file.read().strip() or "unknown"
            raise FailedPrecondition(
                f"{state_dir} is served by another sandboxd, pid {owner}: stop that one first"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _notify(state: str) -> None:
    """Tell the service manager (sd_notify(3)); without one, nobody."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
        contextlib.suppress(OSError),
    ):
        sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
