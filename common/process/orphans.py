"""Programs that an earlier daemon has started and that have outlived it: found by their command line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence

from common.log import get_logger

log = get_logger()


async def outlive(words: Sequence[str], timeout_s: float) -> None:
    """Wait for the end of every program that has these words in a row in its command line; kill those that take
    longer than the limit.

    Only programs in this mount namespace count, so that no container can look like one.
    """
    sought = b"\0" + b"".join(os.fsencode(word) + b"\0" for word in words)
    found = {pidfd: pid for pid in _pids() if (pidfd := _open_if(pid, sought)) is not None}
    try:
        if found:
            log.info("orphans.found", words=" ".join(words), pids=sorted(found.values()))
        for pidfd, pid in found.items():
            if not await _wait(pidfd, timeout_s):
                log.error("orphan.killed", words=" ".join(words), pid=pid, timeout_s=timeout_s)
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                await _wait(pidfd, 1.0)
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
        if sought in _command_line(pid) and _mount_namespace(pid) == _mount_namespace(os.getpid()):
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


async def _wait(pidfd: int, timeout_s: float) -> bool:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[bool] = loop.create_future()

    def end(in_time: bool) -> None:
        if not ended.done():
            ended.set_result(in_time)

    timer = loop.call_later(timeout_s, end, False)
    loop.add_reader(pidfd, end, True)
    try:
        return await ended
    finally:
        timer.cancel()
        loop.remove_reader(pidfd)
