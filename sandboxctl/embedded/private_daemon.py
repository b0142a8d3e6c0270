"""A daemon of a type that no configured daemon serves at present: one for all pods of the embedded engine.

It is started with the first of them and ended with the last one, below a supervisor, so that it may die meanwhile like
any other. It knows no engine, so it takes none of its pods for forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from common.config import read_yaml
from common.errors import DeadlineExceeded, FailedPrecondition, SandboxdError
from common.linux.pidfd import open_same_process, start_time
from common.process.exits import ExitWatcher
from common.process.spawn import own_program, spawn
from common.records import read_record, write_record
from sandboxctl.daemons import Daemon
from sandboxctl.embedded.records import list_records, remove_tree
from sandboxers.embedded import DAEMON_CONFIG_FILE, DAEMONS, EMBEDDED_DIR
from sandboxers.isolation import load_config

_RECORD_FILE = "daemon.json"
_LOG_FILE = "log"
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 20.0
_LOOK_INTERVAL_S = 0.005


@dataclass(frozen=True, slots=True)
class DaemonRecord:
    """The supervisor of the daemon: its pid and start time (ticks since boot)."""

    VERSION: ClassVar[int] = 1

    pid: int
    start_time: int


async def ensure_daemon(kind: str, base: Daemon | None, watcher: ExitWatcher) -> Daemon:
    """Return the private daemon of a type once it listens, started if need be; the caller holds the lock.

    :param base: a configured daemon that does not run, whose settings hold for this one, too, from its beginning on.
    :raise FailedPrecondition: it ends at once, with the reason it gives.
    :raise DeadlineExceeded: it does not listen in time.
    """
    directory = _directory(kind)
    path = f"{directory}/{DAEMON_CONFIG_FILE}"
    os.makedirs(directory, 0o700, exist_ok=True)
    if not os.path.exists(path):
        settings = read_yaml(base.config_file) if base is not None else {}
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            # JSON is YAML.
            json.dump(_settings(kind, directory, settings or {}), file, indent=2)
        os.rename(f"{path}.new", path)
    daemon = _load(path)
    if _listens(daemon.config.socket):
        return daemon
    try:
        supervisor = _supervisor(directory)
        if supervisor is None:
            await _start(daemon, directory, watcher)
        else:
            # It is about to start its daemon again: a second one would not know of the first.
            await _wait_until_it_listens(daemon, lambda: not _is_alive(supervisor), _log_size(directory))
    except BaseException:
        with contextlib.suppress(SandboxdError):
            release_daemon(daemon)
        raise
    return daemon


def release_daemon(daemon: Daemon) -> None:
    """End a private daemon and remove its files, unless it is used; the caller holds the lock.

    Whoever has a pod uses it, also one whose record cannot be read, and whoever is on record and about to make one.

    :raise DeadlineExceeded: it does not end.
    :raise FailedPrecondition: it runs without a supervisor, or something is mounted among its files.
    """
    if not daemon.is_private or _is_used(daemon):
        return
    directory = os.path.dirname(daemon.config_file)
    supervisor = _supervisor(directory)
    if supervisor is not None:
        _end(supervisor)
    if daemon.is_running():
        raise FailedPrecondition(
            f"the daemon of {daemon.config_file} has no pods and no supervisor that could end it: end it, and try again"
        )
    remove_tree(directory)


def _directory(kind: str) -> str:
    return f"{EMBEDDED_DIR}/{DAEMONS}/{kind}"


def _load(path: str) -> Daemon:
    kind, config = load_config(path)
    return Daemon(kind, path, config)


def _settings(kind: str, directory: str, base: dict[str, Any]) -> dict[str, Any]:
    return {
        **base,
        "type": kind,
        "socket": f"{directory}/api.sock",
        "state_dir": f"{directory}/state",
        "log": {**(base.get("log") or {}), "format": "json"},
        "engine": {"address": "", "events_address": ""},
        # Of the configured daemon, should it be started meanwhile.
        "metrics": {"address": ""},
    }


def _is_used(daemon: Daemon) -> bool:
    if any(record.config_file == daemon.config_file for record in list_records()):
        return True
    try:
        names = os.listdir(daemon.config.state_dir)
    except FileNotFoundError:
        return False
    return any(not name.startswith(".") for name in names)


async def _start(daemon: Daemon, directory: str, watcher: ExitWatcher) -> None:
    """Start a supervisor and wait for its daemon; where that fails, the supervisor is ended, and no file removed."""
    size = _log_size(directory)
    log = os.open(f"{directory}/{_LOG_FILE}", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        command = [*own_program("sandboxers.__main__", with_packages=True)]
        command += ["--supervise", "--config", daemon.config_file]
        child = spawn(command, watcher=watcher, stdout=log, stderr=log)
    finally:
        os.close(log)
    record = DaemonRecord(child.pid, start_time(child.pid))
    try:
        write_record(f"{directory}/{_RECORD_FILE}", record)
        await _wait_until_it_listens(daemon, lambda: child.status is not None, size)
    except BaseException:
        _end(record)
        raise
    child.forget()


async def _wait_until_it_listens(daemon: Daemon, has_ended: Callable[[], bool], log_size: int) -> None:
    """Wait for the daemon below a supervisor, whose log had so many bytes before."""
    log_path = f"{os.path.dirname(daemon.config_file)}/{_LOG_FILE}"
    reason = ""
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            while not _listens(daemon.config.socket):
                # A supervisor goes on after a daemon that cannot start: whether it will, its log tells.
                if has_ended() or (reason := _failure(log_path, log_size)):
                    raise FailedPrecondition(
                        f"no daemon of the type {daemon.type.value} can be started: {reason or 'it ends at once'}"
                    )
                await asyncio.sleep(_LOOK_INTERVAL_S)
    except TimeoutError:
        raise DeadlineExceeded(
            f"the daemon of the type {daemon.type.value} did not listen within {_START_TIMEOUT_S:g} s"
        ) from None


def _log_size(directory: str) -> int:
    try:
        return os.stat(f"{directory}/{_LOG_FILE}").st_size
    except FileNotFoundError:
        return 0


def _failure(log_path: str, offset: int) -> str:
    """Return why a daemon has ended, if its log says so from that byte on."""
    with open(log_path, encoding="utf-8", errors="replace") as file:
        file.seek(offset)
        for line in file:
            with contextlib.suppress(ValueError, AttributeError):
                event = json.loads(line)
                if event.get("event") == "daemon.failed":
                    return str(event.get("error"))
    return ""


def _supervisor(directory: str) -> DaemonRecord | None:
    """Return the supervisor on record if it lives. Raises UnreadableRecord."""
    try:
        record, of_this_boot = read_record(f"{directory}/{_RECORD_FILE}", DaemonRecord)
    except FileNotFoundError:
        return None
    return record if of_this_boot and _is_alive(record) else None


def _is_alive(record: DaemonRecord) -> bool:
    """Tell whether a supervisor has not ended; one that nobody has reaped has."""
    try:
        pidfd = open_same_process(record.pid, record.start_time)
    except ProcessLookupError:
        return False
    try:
        return not _has_ended(pidfd, 0)
    finally:
        os.close(pidfd)


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(path)
        except OSError:
            return False
    return True


def _end(record: DaemonRecord) -> None:
    try:
        pidfd = open_same_process(record.pid, record.start_time)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        if not _has_ended(pidfd, _STOP_TIMEOUT_S):
            raise DeadlineExceeded(f"the daemon {record.pid} does not end")
    finally:
        os.close(pidfd)


def _has_ended(pidfd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))
