"""Removing pods and containers that the engine has forgotten, while the daemon runs.

In doubt is what nobody waits for: an engine keeps a Wait open for every pod and container that it believes to run, so
that on a healthy node it is never asked anything. What is in doubt is removed when the engine has not known it at two
looks in a row that lie a grace period apart. While the engine cannot be asked nothing is removed, and the period
begins anew: it may have forgotten nothing but have lost its memory for a while.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Final

from common.errors import SandboxdError, Unavailable
from common.log import bound, get_logger
from common.records import read_record, write_record
from sandboxers.registry import SandboxEntry, SandboxRegistry
from sandboxers.states import SandboxState

RECORD_FILE: Final = ".gc.json"
_ENGINE_TIMEOUT_S: Final = 10.0
_DOUBTFUL: Final = frozenset(
    {SandboxState.CREATED, SandboxState.READY, SandboxState.STOPPED, SandboxState.STOP_FAILED}
)

_Key = tuple[str, str]
"""A pod and one of its containers, or "" for the pod itself."""

log = get_logger()


@dataclass(frozen=True, slots=True)
class GarbageRecord:
    """What has been removed since the boot, and how the last look at the engine went ("" is well)."""

    VERSION: ClassVar[int] = 1

    sandboxes_removed: int = 0
    tasks_removed: int = 0
    looked_at_ns: int = 0
    last_error: str = ""


class Garbage:
    """The daemon's collector; one timer for all pods."""

    def __init__(
        self,
        registry: SandboxRegistry,
        state_dir: str,
        engine_address: str,
        interval_s: float,
        grace_s: float,
    ) -> None:
        self._registry = registry
        self._path = f"{state_dir}/{RECORD_FILE}"
        self._engine_address = engine_address
        self._interval_s = interval_s
        self._grace_s = grace_s
        self._missing_since: dict[_Key, float] = {}
        self._record = read_garbage_record(self._path)
        self._task: asyncio.Task[None] | None = None

    @property
    def figures(self) -> dict[str, Any]:
        """What has been removed and what may be next, as JSON-able data."""
        return {**asdict(self._record), "missing": len(self._missing_since)}

    def start(self) -> None:
        """Look from time to time, if the configuration asks for it; needs the running event loop."""
        if self._interval_s > 0:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def look(self) -> None:
        """Compare what is in doubt with what the engine knows, once, and remove what was missing for long enough."""
        await self._registry.forget_unwanted()
        # Before the engine is asked: what comes meanwhile would not be in its answer.
        doubtful = self._doubtful() if self._engine_address else {}
        if not doubtful:
            self._missing_since.clear()
            return
        try:
            unknown = await self._ask_engine(set(doubtful))
        except Unavailable as error:
            self._missing_since.clear()
            self._note_look(str(error))
            return
        self._note_look("")
        now = time.monotonic()
        self._missing_since = {key: self._missing_since.get(key, now) for key in unknown}
        for key, since in list(self._missing_since.items()):
            # The first look is never the last one, however short the period.
            if since < now and now - since >= self._grace_s:
                await self._remove(*key, doubtful[key])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.look()
            except Exception as error:
                log.error("gc.failed", error=error)

    def _doubtful(self) -> dict[_Key, SandboxEntry]:
        oldest_s = time.time() - self._grace_s
        doubtful = {}
        for entry in self._registry.entries:
            if entry.lock.locked():
                continue
            if _is_doubtful(entry) and entry.created_at_ns < oldest_s * 1e9:
                doubtful[entry.id, ""] = entry
            for container_id in entry.sandbox.abandoned():
                doubtful[entry.id, container_id] = entry
        return doubtful

    async def _ask_engine(self, doubtful: set[_Key]) -> set[_Key]:
        from sandboxers.engine import list_engines

        tasks = any(container_id for _, container_id in doubtful)
        known = await list_engines(self._engine_address, _ENGINE_TIMEOUT_S, tasks=tasks)
        return {
            (sandbox_id, container_id)
            for sandbox_id, container_id in doubtful
            if (container_id not in known.tasks if container_id else sandbox_id not in known.sandboxes)
        }

    async def _remove(self, sandbox_id: str, container_id: str, entry: SandboxEntry) -> None:
        if container_id:
            with bound(sandbox_id=sandbox_id, container_id=container_id):
                if await _removed("gc.task_removed", lambda: _collect(entry, container_id)):
                    self._count(tasks_removed=self._record.tasks_removed + 1)
        elif _is_doubtful(entry) and not entry.lock.locked():
            with bound(sandbox_id=sandbox_id):
                if await _removed("gc.sandbox_removed", lambda: self._registry.shutdown(sandbox_id)):
                    self._count(sandboxes_removed=self._record.sandboxes_removed + 1)

    def _note_look(self, error: str) -> None:
        if error and error != self._record.last_error:
            log.warning("gc.engine_unavailable", error=error)
        self._count(looked_at_ns=time.time_ns(), last_error=error)

    def _count(self, **changes: Any) -> None:
        self._record = replace(self._record, **changes)
        try:
            write_record(self._path, self._record)
        except OSError as error:
            log.error("gc.record_not_written", error=error)


def _is_doubtful(entry: SandboxEntry) -> bool:
    return entry.state in _DOUBTFUL and not entry.end.waiter_count


async def _collect(entry: SandboxEntry, container_id: str) -> None:
    async with entry.lock:
        # Somebody may have asked for it meanwhile.
        if container_id in entry.sandbox.abandoned():
            await entry.sandbox.collect(container_id)


async def _removed(event: str, remove: Callable[[], Awaitable[None]]) -> bool:
    try:
        await remove()
    except (SandboxdError, OSError) as error:
        log.error("gc.not_removed", error=error)
        return False
    log.warning(event, reason="the engine does not know it")
    return True


def read_garbage_record(path: str) -> GarbageRecord:
    """Return the figures that an earlier daemon of this boot has left, or none."""
    try:
        record, of_this_boot = read_record(path, GarbageRecord)
    except FileNotFoundError:
        return GarbageRecord()
    except SandboxdError as error:
        log.warning("gc.record_unreadable", error=error)
        return GarbageRecord()
    return record if of_this_boot else GarbageRecord()
