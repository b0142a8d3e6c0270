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
import shutil
import signal
import socket
from dataclasses import dataclass
from typing import Any, ClassVar

from common.config import read_yaml
from common.errors import DeadlineExceeded, FailedPrecondition
from common.linux.pidfd import open_same_process, start_time
from common.process.exits import ExitWatcher
from common.process.spawn import Child, own_program, spawn
from common.records import read_record, write_record
from sandboxctl.daemons import Daemon
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
    """Return the running private daemon of a type, started if need be; the caller holds the lock.

    :param base: a configured daemon that does not run, whose settings hold for this one, too, from its beginning on.
    :raise FailedPrecondition: it ends at once, with the reason it gives.
    """
    directory = _directory(kind)
    path = f"{directory}/{DAEMON_CONFIG_FILE}"
    if os.path.exists(path) and (running := _load(path)).is_running():
        return running
    os.makedirs(directory, 0o700, exist_ok=True)
    if not os.path.exists(path):
        settings = read_yaml(base.config_file) if base is not None else {}
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            # JSON is YAML.
            json.dump(_settings(kind, directory, settings or {}), file, indent=2)
        os.rename(f"{path}.new", path)
    daemon = _load(path)
    await _start(daemon, directory, watcher)
    return daemon


def stop_daemon(kind: str) -> None:
    """End the private daemon of a type, which has no pods any more, and remove its files; the caller holds the lock.

    :raise DeadlineExceeded: it does not end.
    """
    directory = _directory(kind)
    try:
        record, of_this_boot = read_record(f"{directory}/{_RECORD_FILE}", DaemonRecord)
    except FileNotFoundError:
        record, of_this_boot = DaemonRecord(0, 0), False
    if of_this_boot:
        with contextlib.suppress(ProcessLookupError):
            _end(record)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory)


def is_private(daemon: Daemon) -> bool:
    """Tell whether a daemon serves the embedded engine alone."""
    return os.path.dirname(os.path.dirname(daemon.config_file)) == f"{EMBEDDED_DIR}/{DAEMONS}"


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
    }


async def _start(daemon: Daemon, directory: str, watcher: ExitWatcher) -> None:
    log_path = f"{directory}/{_LOG_FILE}"
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        command = [*own_program("sandboxers.__main__", with_packages=True)]
        command += ["--supervise", "--config", daemon.config_file]
        child = spawn(command, watcher=watcher, stdout=log, stderr=log)
    finally:
        os.close(log)
    write_record(f"{directory}/{_RECORD_FILE}", DaemonRecord(child.pid, start_time(child.pid)))
    try:
        await _wait_until_it_listens(daemon, child, log_path)
    except BaseException:
        stop_daemon(daemon.type.value)
        raise
    child.forget()


async def _wait_until_it_listens(daemon: Daemon, child: Child, log_path: str) -> None:
    reason = ""
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            while not _listens(daemon.config.socket):
                # A supervisor goes on after a daemon that cannot start: whether it will, its log tells.
                if child.status is not None or (reason := _failure(log_path)):
                    raise FailedPrecondition(
                        f"no daemon of the type {daemon.type.value} can be started: {reason or 'it ends at once'}"
                    )
                await asyncio.sleep(_LOOK_INTERVAL_S)
    except TimeoutError:
        raise DeadlineExceeded(
            f"the daemon of the type {daemon.type.value} did not listen within {_START_TIMEOUT_S:g} s"
        ) from None


def _failure(log_path: str) -> str:
    """Return why a daemon has ended, if its log says so."""
    with open(log_path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError, AttributeError):
                event = json.loads(line)
                if event.get("event") == "daemon.failed":
                    return str(event.get("error"))
    return ""


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(path)
        except OSError:
            return False
    return True


def _end(record: DaemonRecord) -> None:
    pidfd = open_same_process(record.pid, record.start_time)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        if not select.select([pidfd], [], [], _STOP_TIMEOUT_S)[0]:
            raise DeadlineExceeded(f"the daemon {record.pid} does not end")
    finally:
        os.close(pidfd)
