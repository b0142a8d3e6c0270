"""The daemons of this node, as their configuration files tell of them, whether they run or not."""

from __future__ import annotations

import argparse
import fcntl
import os
from collections.abc import Sequence
from typing import NamedTuple

from common.errors import FailedPrecondition, NotFound, PermissionDenied, Unavailable
from sandboxers.embedded import DAEMONS, EMBEDDED_DIR, embedded_daemons
from sandboxers.isolation import DaemonConfig, IsolationType, load_config
from sandboxers.lock import LOCK_FILE

DEFAULT_CONFIG_DIRECTORY = "/etc/sandboxd"
CONFIG_DIRECTORY_VARIABLE = "SANDBOXD_CONFIG_DIR"


class NoDaemon(NotFound):
    """No daemon is configured on this node, and none runs for `sandboxctl run`."""


class Daemon(NamedTuple):
    """One isolation type as it is configured on this node."""

    type: IsolationType
    config_file: str
    config: DaemonConfig

    def is_running(self) -> bool:
        """Whether a daemon serves the state directory at present."""
        try:
            fd = os.open(f"{self.config.state_dir}/{LOCK_FILE}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            # A shared lock, so that two who ask at the same time do not take each other for a daemon.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    @property
    def is_private(self) -> bool:
        """Whether it serves the embedded engine alone."""
        return os.path.dirname(os.path.dirname(self.config_file)) == f"{EMBEDDED_DIR}/{DAEMONS}"

    def require_reachable(self) -> None:
        """Raise an error that says why the daemon cannot be talked to, if it is easy to tell.

        :raise Unavailable: it does not run.
        :raise PermissionDenied: it runs, but not for us.
        """
        try:
            running = self.is_running()
        except PermissionError:
            raise PermissionDenied(f"{self.config.state_dir} may not be read: run this as root") from None
        if not running:
            raise Unavailable(
                f"the daemon of {self.config_file} does not run: nobody serves {self.config.socket};"
                f" start it with `systemctl start sandboxd@{self.type.value}`"
            )


def config_files(arguments: argparse.Namespace) -> list[str]:
    """Return the paths of the configuration files that a command line is about; those of daemons that run for
    `sandboxctl run` alone are among them.

    :raise NoDaemon: there are none.
    """
    if arguments.config_files:
        return list(arguments.config_files)
    directory = os.environ.get(CONFIG_DIRECTORY_VARIABLE) or DEFAULT_CONFIG_DIRECTORY
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        names = []
    found = [f"{directory}/{name}" for name in names if name.endswith(".yaml")]
    found += embedded_daemons()
    if not found:
        raise NoDaemon(
            f"no daemon is configured on this node: there is no {directory}/*.yaml;"
            f" give a file with --config, or a directory in ${CONFIG_DIRECTORY_VARIABLE}"
        )
    return found


def find_daemons_if_any(arguments: argparse.Namespace) -> Sequence[Daemon]:
    """Return the daemons that a command line is about, none where none is configured: then no pods are left either.
    Else as `find_daemons`."""
    try:
        return find_daemons(arguments)
    except NoDaemon:
        return ()


def find_daemons(arguments: argparse.Namespace) -> Sequence[Daemon]:
    """Return the daemons that a command line is about, in the order of their files.

    :raise NoDaemon: none is configured.
    :raise NotFound: a file does not exist.
    :raise InvalidArgument: a configuration cannot be used.
    :raise FailedPrecondition: two say that they serve the same state directory.
    """
    daemons: dict[str, Daemon] = {}
    for path in config_files(arguments):
        kind, config = load_config(path)
        daemon = Daemon(kind, path, config)
        other = daemons.setdefault(os.path.realpath(daemon.config.state_dir), daemon)
        if other is not daemon:
            raise FailedPrecondition(
                f"{other.config_file} and {path} both have the state_dir {daemon.config.state_dir}"
            )
    return list(daemons.values())
