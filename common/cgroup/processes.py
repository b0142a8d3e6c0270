"""The processes of a cgroup: their pids, and their end together with everything they start meanwhile.

The kernel kills a v2 cgroup at one word. In v1 each member gets SIGKILL through a pidfd, taken before its
membership is looked up again, so that a pid that was reused meanwhile is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import time

from common.cgroup.files import read_text
from common.cgroup.locate import Cgroup, parse_membership
from common.errors import DeadlineExceeded, FailedPrecondition
from common.linux.features import Feature, allowed

# A membership of each process can be seen in any v1 hierarchy that the runtime put it into.
_V1_PREFERENCE = ("pids", "memory", "cpu", "devices", "freezer", "name=systemd")


def pids(cgroup: Cgroup) -> list[int]:
    """Return the pids in the cgroup and all below it; none where it is gone or is the root.

    Processes of another PID namespace than ours that we cannot see are left out (the kernel shows them as 0).
    """
    where = _process_directory(cgroup)
    return sorted(_pids_below(where[1])) if where else []


def signal_all(cgroup: Cgroup, signum: int) -> set[int]:
    """Send a signal to every process in the cgroup and below, once; return their pids.

    A cgroup that holds this very process is left alone: what else is in there is not one container's. What is
    started meanwhile may be missed: to end a cgroup, use `kill_all`.
    """
    where = _process_directory(cgroup)
    if where is None:
        return set()
    controller, directory = where
    alive = _pids_below(directory)
    if os.getpid() in alive:
        return set()
    if signum != signal.SIGKILL or not _kill_at_once(directory):
        _signal_each(cgroup, controller, alive, signum)
    return alive


async def kill_all(cgroup: Cgroup, timeout_s: float) -> None:
    """Kill every process in the cgroup and below, and wait until none is left.

    Returns at once where there is none. Raises FailedPrecondition for a cgroup that holds this very process,
    DeadlineExceeded where some process does not die in time (in uninterruptible sleep, mostly).
    """
    where = _process_directory(cgroup)
    if where is None:
        return
    controller, directory = where
    deadline = time.monotonic() + timeout_s
    pause_s = 0.001
    attempt = 0
    while alive := _pids_below(directory):
        if os.getpid() in alive:
            raise FailedPrecondition(f"refusing to kill cgroup {cgroup.path}: the daemon itself is in it")
        if not _kill_at_once(directory):
            _kill_each(cgroup, controller, alive, freeze=attempt > 0)
        if time.monotonic() >= deadline:
            raise DeadlineExceeded(
                f"{len(alive)} processes of cgroup {cgroup.path} survived SIGKILL for {timeout_s:g} s: "
                + ", ".join(map(str, sorted(alive)[:8]))
            )
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.05)
        attempt += 1


def remove_leaf(cgroup: Cgroup) -> None:
    """Remove a cgroup that the caller made, with what its processes made below it; harmless where it is gone.

    Never call it for an engine's parent cgroup. Raises FailedPrecondition where processes are left in it.
    """
    for directory in cgroup.directories():
        for path, _, _ in os.walk(directory, topdown=False):
            try:
                os.rmdir(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                raise FailedPrecondition(f"cgroup {path} is still in use") from error


def _process_directory(cgroup: Cgroup) -> tuple[str, str] | None:
    for controller in ("",) if cgroup.unified else _V1_PREFERENCE:
        directory = cgroup.directory(controller)
        if directory is not None and os.path.isdir(directory):
            return controller, directory
    return None


def _pids_below(directory: str) -> set[int]:
    found: set[int] = set()
    for path, _, _ in os.walk(directory):
        found.update(map(int, (read_text(f"{path}/cgroup.procs") or "").split()))
    return found - {0}


def _kill_at_once(directory: str) -> bool:
    """Let the kernel kill a v2 cgroup and all below it; false where it cannot (v1, before Linux 5.14)."""
    if not allowed(Feature.CGROUP_KILL):
        return False
    try:
        fd = os.open(f"{directory}/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        os.write(fd, b"1")
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
    finally:
        os.close(fd)
    return True


def _kill_each(cgroup: Cgroup, controller: str, alive: set[int], *, freeze: bool) -> None:
    freezer = None if cgroup.unified else cgroup.directory("freezer")
    if freezer is not None and freeze:
        # They start children as fast as we kill: frozen, they cannot.
        _write_state(freezer, "FROZEN")
    _signal_each(cgroup, controller, alive, signal.SIGKILL)
    if freezer is not None:
        # A frozen process dies only when it is thawed, whoever froze it.
        _write_state(freezer, "THAWED")


def _signal_each(cgroup: Cgroup, controller: str, alive: set[int], signum: int) -> None:
    directory = cgroup.directory(controller)
    for pid in alive:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            if directory is not None and _is_member(pid, controller, cgroup, directory):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signum)
        finally:
            os.close(pidfd)


def _is_member(pid: int, controller: str, cgroup: Cgroup, directory: str) -> bool:
    text = read_text(f"/proc/{pid}/cgroup")
    path = parse_membership(text).get(controller) if text else None
    if path is None:
        return False
    now = cgroup.directory_of(controller, path)
    return now is not None and (now == directory or now.startswith(f"{directory}/"))


def _write_state(freezer: str, state: str) -> None:
    with (
        contextlib.suppress(FileNotFoundError),
        open(f"{freezer}/freezer.state", "w", encoding="ascii") as file,
    ):
        file.write(state)
