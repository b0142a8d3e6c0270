"""sandboxd: the composition root. One process serves one isolation type, chosen by its configuration file.

Order matters: lock the type, become the subreaper, recover, and only then listen (architecture, section 4).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import resource
import signal
import sys

from common.descriptors.notify import barrier, notify
from common.errors import SandboxdError
from common.failpoints import VARIABLE, arm
from common.linux.procs import set_child_subreaper
from common.log import configure as configure_log
from common.log import get_logger
from sandboxers.controller import Controller, serve
from sandboxers.garbage import Garbage
from sandboxers.health import Health
from sandboxers.isolation import DaemonConfig, load_config, sandboxer_of
from sandboxers.lock import owning
from sandboxers.observability import Observability
from sandboxers.outlasting import Outlasting, open_outlasting
from sandboxers.registry import SandboxRegistry
from sandboxers.sandbox import Daemonised
from sandboxers.untouched import serve_untouched

_OPEN_FILES = 65536
_BARRIER_TIMEOUT_S = 2.0

log = get_logger()


def main() -> None:
    """Run the daemon; exit code 0 after SIGTERM or SIGINT, 1 when it cannot start."""
    arguments = make_parser().parse_args()
    status = 0
    runner = asyncio.Runner()
    try:
        runner.run(run(arguments.config))
    except (SandboxdError, OSError) as error:
        log.error("daemon.failed", config=arguments.config, error=error)
        status = 1
    # Not through the interpreter's end: that would cancel the calls in progress and so answer them, but they are
    # the next daemon's, which finds them in the journal.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, of which `sandboxers.__main__` has done some before."""
    parser = argparse.ArgumentParser(
        prog="sandboxd",
        description="Serve pods of one isolation type to a container engine.",
        # An abbreviated --supervise would be understood here, where it is too late, and run without one.
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="the YAML file that selects and tunes the type"
    )
    parser.add_argument(
        "--supervise",
        action="store_true",
        help="run below a small parent that keeps connections and exit codes when the daemon restarts:"
        " where there is no systemd, or a kernel before 6.15",
    )
    parser.add_argument(
        "--list-failpoints", action="store_true", help=f"show the failpoints that {VARIABLE} may name"
    )
    return parser


async def run(config_path: str) -> None:
    """Serve until told to stop. Containers go on without us.

    :raise SandboxdError, OSError: the configuration, the state directory or the socket cannot be used.
    """
    kind, config = load_config(config_path)
    sandboxer_class = sandboxer_of(kind)
    configure_log(config.log.level, config.log.format)
    armed = arm()
    if armed:
        log.warning("daemon.failpoints_armed", failpoints=armed)
    os.makedirs(config.state_dir, 0o700, exist_ok=True)
    os.makedirs(os.path.dirname(config.socket), 0o700, exist_ok=True)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopping.set)
    _allow_descriptors()
    with owning(config.state_dir):
        set_child_subreaper()
        outlasting = open_outlasting(config.state_dir)
        try:
            await _serve(sandboxer_class(config, outlasting), config, outlasting, stopping)
        finally:
            # Task calls are served to the last instant, which is like any other death to them.
            if await barrier(_BARRIER_TIMEOUT_S):
                outlasting.hold_no_longer()


async def _serve(
    sandboxer: Daemonised, config: DaemonConfig, outlasting: Outlasting, stopping: asyncio.Event
) -> None:
    """Recover, listen, and serve until `stopping` is set."""
    observability = Observability(config, sandboxer.name)
    await sandboxer.settle()
    registry = SandboxRegistry(sandboxer, config.state_dir, config.pod.stop_timeout_s, outlasting.store)
    await registry.recover()
    serve_untouched(registry.untouched, outlasting.store, outlasting.journal)
    outlasting.release_rest(keep=bool(registry.untouched))
    garbage = Garbage(
        registry,
        config.state_dir,
        config.engine.asked_at,
        config.gc.interval_s,
        config.gc.grace_s,
    )
    health = Health()
    controller = Controller(registry, garbage, observability.call_observer, config.engine.kind)
    await observability.listen(registry, garbage)
    server = await serve(controller, config.socket, health)
    try:
        # What was loaded until now stays: keeping it out of collections keeps its pages shared and cold.
        gc.collect()
        gc.freeze()
        garbage.start()
        notify("READY=1")
        log.info(
            "daemon.ready",
            type=sandboxer.name,
            generation=observability.generation,
            socket=config.socket,
            sandboxes=len(registry),
            pid=os.getpid(),
        )
        await stopping.wait()
        log.info("daemon.stopping", sandboxes=len(registry))
        notify("STOPPING=1")
    finally:
        garbage.close()
        health.close()
        controller.close()
        await server.stop(grace=1.0)
        observability.close()


def _allow_descriptors() -> None:
    """Raise the soft limit on open files where it is a login shell's: a pod with one container takes about 7.

    Not to the hard limit: containers inherit it, and some programs close every descriptor up to it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
