"""Programs that an earlier daemon has started and that have outlived it: found by their command line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable, Sequence

from common.log import get_logger

_KILL_LIMIT_S = 1.0

log = get_logger()


async def outlive(words: Sequence[str], timeout_s: float) -> None:
    """Wait for the end of every program that has these words in a row in its command line; kill those that run on
    when the limit for all of them is over.

    Only programs of our own user in this mount namespace count: no container and no other user can look like one.
    """
    sought = b"\0" + b"".join(os.fsencode(word) + b"\0" for word in words)
    found = {pidfd: pid for pid in _pids() if (pidfd := _open_if(pid, sought)) is not None}
    try:
        if found:
            log.info("orphans.found", words=" ".join(words), pids=sorted(found.values()))
        stubborn = await _wait_all(found, timeout_s)
        for pidfd in stubborn:
            log.error("orphan.killed", words=" ".join(words), pid=found[pidfd], timeout_s=timeout_s)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        await _wait_all(stubborn, _KILL_LIMIT_S)
    finally:
        for pidfd in found:
            os.close(pidfd)


def _pids() -> list[int]:
    own = os.getpid()
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != own]


def _open_if(pid: int, sought: bytes) -> int | None:
    try:
        if sought not in _command_line(pid):
            return None
        pidfd = os.pidfd_open(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        # Looked at again: only now the pid cannot become somebody else's.
        if (
            os.stat(f"/proc/{pid}").st_uid == os.geteuid()
            and sought in _command_line(pid)
            and _mount_namespace(pid) == _mount_namespace(os.getpid())
        ):
            return pidfd
    except (FileNotFoundError, ProcessLookupError):
        pass
    os.close(pidfd)
    return None


def _command_line(pid: int) -> bytes:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read(4096)


def _mount_namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/mnt")


async def _wait_all(pidfds: Iterable[int], timeout_s: float) -> list[int]:
    """Wait until all have ended, and return those that have not when the time is over."""
    loop = asyncio.get_running_loop()
    running = set(pidfds)
    done: asyncio.Future[None] = loop.create_future()

    def end(pidfd: int) -> None:
        loop.remove_reader(pidfd)
        running.discard(pidfd)
        if not running and not done.done():
            done.set_result(None)

    for pidfd in running:
        loop.add_reader(pidfd, end, pidfd)
    try:
        if running:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(done, timeout_s)
        return sorted(running)
    finally:
        for pidfd in running:
            loop.remove_reader(pidfd)
