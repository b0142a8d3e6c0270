"""The pods of one daemon: ids, order, states, records and waiting, the same for every isolation type.

Calls that change a pod are serialised per id; Status and Wait never wait for them. A pod that this version does not
understand is left as it is, and its id answered with Unavailable: "not found" would make its engine clean up.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Awaitable, Collection, Iterator
from typing import Any

from common.completion import Completion
from common.descriptors.store import DescriptorStore, NoStore, all_sent
from common.errors import AlreadyExists, FailedPrecondition, Internal, NotFound, SandboxdError, Unavailable
from common.failpoints import Failpoint, failpoint
from common.linux.mounts import mounts_below
from common.log import bound, get_logger
from common.records import UnreadableRecord, from_data, write_record
from common.states import advance
from sandboxers.pod_config import PodConfig
from sandboxers.records import (
    RECORD_FILE,
    REMOVED_PREFIX,
    SandboxRecord,
    pod_directory_name,
    read_sandbox,
)
from sandboxers.sandbox import Endpoint, Sandbox, Sandboxer
from sandboxers.states import SANDBOX_TRANSITIONS, SandboxState, SandboxTrigger

TASK_SOCKET = "task.sock"
_UNSTARTED_MAX_AGE_S = 600.0
_ENDED_WITHOUT_US = 255
POD_GROUP = "p"
"""The kind of the names under which a descriptor store keeps what makes a pod."""
_UNWANTED = frozenset({SandboxState.CREATED, SandboxState.FAILED, SandboxState.REMOVAL_FAILED})
_TO_BE_REMOVED = frozenset(
    {SandboxState.STARTING, SandboxState.FAILED, SandboxState.REMOVING, SandboxState.REMOVAL_FAILED}
)

log = get_logger()


class SandboxEntry:
    """A pod as the Controller sees it."""

    __slots__ = (
        "created_at_ns",
        "directory",
        "end",
        "endpoint",
        "exit_code",
        "exited_at_ns",
        "group",
        "lock",
        "pod",
        "sandbox",
        "state",
    )

    def __init__(
        self, pod: PodConfig, sandbox: Sandbox, directory: str, group: str, created_at_ns: int
    ) -> None:
        self.pod = pod
        self.sandbox = sandbox
        self.group = group
        self.directory = directory
        self.created_at_ns = created_at_ns
        self.state = SandboxState.CREATED
        self.endpoint = Endpoint("")
        self.exit_code = -1
        self.exited_at_ns = 0
        self.lock = asyncio.Lock()
        self.end: Completion[bool] = Completion()

    @property
    def id(self) -> str:
        return self.pod.sandbox_id

    def advance(self, trigger: SandboxTrigger) -> None:
        """Change state, or raise FailedPrecondition."""
        self.state = advance(SANDBOX_TRANSITIONS, self.state, trigger, f"sandbox {self.id}")

    def save(self, state: SandboxState | None = None) -> None:
        """Write the record, with the state that the pod has or is about to have."""
        record = SandboxRecord(
            pod=dataclasses.asdict(self.pod),
            state=(state or self.state).value,
            created_at_ns=self.created_at_ns,
            address=self.endpoint.address,
            pid=self.endpoint.pid,
            exit_code=self.exit_code,
            exited_at_ns=self.exited_at_ns,
            descriptors=self.group,
        )
        write_record(f"{self.directory}/{RECORD_FILE}", record)

    def try_save(self) -> None:
        """Write the record, if that is possible, of what happens whether it is on record or not."""
        try:
            self.save()
        except FileNotFoundError:
            pass  # the pod is removed already
        except OSError as error:
            log.error("sandbox.record_not_written", sandbox_id=self.id, error=error)

    def finish(self, exit_code: int, exited_at_ns: int) -> None:
        """Note the pod's end, once, and wake who waits for it."""
        if self.exit_code < 0:
            self.exit_code, self.exited_at_ns = exit_code, exited_at_ns
        if (self.state, SandboxTrigger.EXIT) in SANDBOX_TRANSITIONS:
            self.advance(SandboxTrigger.EXIT)
        self.try_save()
        self.end.set(True)


class SandboxRegistry:
    """All pods of the daemon."""

    def __init__(
        self,
        sandboxer: Sandboxer,
        state_dir: str,
        stop_timeout_s: float,
        store: DescriptorStore | None = None,
    ) -> None:
        self._sandboxer = sandboxer
        self._store: DescriptorStore = store or NoStore()
        self._state_dir = state_dir
        self._stop_timeout_s = stop_timeout_s
        self._entries: dict[str, SandboxEntry] = {}
        self._untouched: dict[str, str] = {}

    @property
    def untouched(self) -> dict[str, str]:
        """The directories of pods that could not be recovered, and why: they and all they hold stay as they are."""
        return {f"{self._state_dir}/{name}": why for name, why in self._untouched.items()}

    @property
    def entries(self) -> list[SandboxEntry]:
        """All pods that are served."""
        return list(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def parked_waits(self) -> int:
        """How many calls wait for the end of a pod."""
        return sum(entry.end.waiter_count for entry in self._entries.values())

    def interrupt_waits(self, error: SandboxdError) -> None:
        """Let all calls that wait for the end of a pod fail; the pods go on."""
        for entry in self._entries.values():
            entry.end.interrupt(error)

    def entry(self, sandbox_id: str) -> SandboxEntry:
        """Return a pod.

        :raise NotFound: there is none of this id.
        :raise Unavailable: it could not be recovered.
        """
        try:
            return self._entries[sandbox_id]
        except KeyError:
            self.require_understood(sandbox_id)
            raise NotFound(f"no sandbox {sandbox_id[:100]!r}") from None

    def require_understood(self, sandbox_id: str) -> None:
        """Raise Unavailable, which says what to do, for a pod that could not be recovered."""
        if not self._untouched:
            return
        name = self._directory_name(sandbox_id)
        if name in self._untouched:
            raise Unavailable(
                f"sandbox {sandbox_id} could not be recovered and is left as it is in {self._state_dir}/{name}: "
                f"{self._untouched[name]}"
            )

    async def create(self, pod: PodConfig) -> None:
        """Register a pod and make its directory.

        :raise AlreadyExists: the id is taken.
        :raise Unavailable: the id is that of a pod that could not be recovered.
        """
        await self.forget_unwanted()
        self.require_understood(pod.sandbox_id)
        if pod.sandbox_id in self._entries:
            raise AlreadyExists(f"sandbox {pod.sandbox_id} exists already")
        directory = f"{self._state_dir}/{self._directory_name(pod.sandbox_id)}"
        group = self._store.new_name(POD_GROUP)
        sandbox = self._sandboxer.sandbox(pod, directory, group)
        entry = SandboxEntry(pod, sandbox, directory, group, time.time_ns())
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            raise AlreadyExists(
                f"sandbox {pod.sandbox_id} has left its directory {directory} behind"
            ) from None
        try:
            entry.save()
            failpoint(Failpoint.SANDBOX_RECORDED)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        self._entries[pod.sandbox_id] = entry

    async def start(self, sandbox_id: str) -> SandboxEntry:
        """Start a pod; if that fails it is gone, since the engine sends nothing more for it."""
        entry = self.entry(sandbox_id)
        async with entry.lock:
            begun = time.monotonic()
            entry.advance(SandboxTrigger.START)
            try:
                entry.save()
                failpoint(Failpoint.SANDBOX_STARTING)
                entry.endpoint = await entry.sandbox.start(entry.finish)
                await all_sent(self._store)
                if entry.exit_code >= 0:
                    raise Internal(f"sandbox {entry.id} ended while it was being started")
                entry.save(SandboxState.READY)
                failpoint(Failpoint.SANDBOX_STARTED)
            except BaseException as error:
                log.warning("sandbox.start_failed", error=error)
                entry.advance(SandboxTrigger.FAIL)
                await self._try_removal(self._remove(entry), entry)
                raise
            entry.advance(SandboxTrigger.STARTED)
            log.info("sandbox.started", took_ms=round((time.monotonic() - begun) * 1000, 1))
        return entry

    async def stop(self, sandbox_id: str, timeout_s: float) -> None:
        """Stop a pod; one that has ended already is stopped."""
        entry = self.entry(sandbox_id)
        async with entry.lock:
            await self._stop(entry, timeout_s or self._stop_timeout_s)

    async def shutdown(self, sandbox_id: str) -> None:
        """Stop a pod and remove all of it; an unknown id is no error.

        :raise Unavailable: it could not be recovered.
        """
        entry = self._entries.get(sandbox_id)
        if entry is None:
            self.require_understood(sandbox_id)
            return
        async with entry.lock:
            if self._entries.get(sandbox_id) is entry:
                if entry.state not in (SandboxState.FAILED, SandboxState.REMOVAL_FAILED):
                    await self._stop(entry, self._stop_timeout_s)
                await self._remove(entry)
                log.info("sandbox.removed")

    async def forget_unwanted(self, min_age_s: float = _UNSTARTED_MAX_AGE_S) -> None:
        """Remove pods created this long ago that never stood, since their engine has died, and what is left of those
        that could not be removed."""
        youngest = time.time_ns() - int(min_age_s * 1e9)
        for entry in self.entries:
            if entry.state in _UNWANTED and entry.created_at_ns < youngest and not entry.lock.locked():
                log.warning("sandbox.unwanted", sandbox_id=entry.id, state=entry.state.value)
                await self._try_removal(self.shutdown(entry.id), entry)

    # -- recovery ----------------------------------------------------------------------------------

    async def recover(self, only: Collection[str] | None = None) -> None:
        """Take up the pods that an earlier daemon has left in the state directory.

        :param only: the directories, by name, of those that shall be taken up; None is all.
        """
        failpoint(Failpoint.RECOVERY_BEGUN)
        found: dict[str, tuple[SandboxRecord, bool] | None] = {}
        for name in sorted(os.listdir(self._state_dir)):
            directory = f"{self._state_dir}/{name}"
            if name.startswith(REMOVED_PREFIX):
                remove_files(directory)
            elif not name.startswith(".") and os.path.isdir(directory) and (only is None or name in only):
                with self._leaving_untouched(name):
                    found[name] = read_sandbox(directory)
        for name, what in found.items():
            with self._leaving_untouched(name):
                await self._recover(f"{self._state_dir}/{name}", what)
            failpoint(Failpoint.RECOVERY_POD_DONE)
        failpoint(Failpoint.RECOVERY_DONE)

    @contextlib.contextmanager
    def _leaving_untouched(self, name: str) -> Iterator[None]:
        with bound(sandbox_id=name):
            try:
                yield
            except Exception as error:
                # Whatever it is, it is not ours to delete: it is somebody's pod. The others go on.
                why = str(error) or type(error).__name__
                if not isinstance(error, FailedPrecondition):
                    why += "; repair or remove it, then restart sandboxd"
                self._untouched[name] = why
                log.error("sandbox.not_recovered", directory=f"{self._state_dir}/{name}", error=error)

    async def _recover(self, directory: str, found: tuple[SandboxRecord, bool] | None) -> None:
        if found is None:
            _remove_unrecorded(directory)
            return
        record, of_this_boot = found
        try:
            pod = from_data(PodConfig, record.pod)
        except TypeError as error:
            raise UnreadableRecord(f"record {directory}/{RECORD_FILE} is damaged: {error}") from error
        state = SandboxState(record.state)
        group = record.descriptors or self._store.new_name(POD_GROUP)
        sandbox = self._sandboxer.sandbox(pod, directory, group)
        entry = SandboxEntry(pod, sandbox, directory, group, record.created_at_ns)
        if of_this_boot and state is SandboxState.CREATED:
            # Nothing of it is made but its record: its Start may still come.
            self._entries[entry.id] = entry
            return
        entry.exit_code, entry.exited_at_ns = record.exit_code, record.exited_at_ns
        running = of_this_boot and state is SandboxState.READY
        entry.state = SandboxState.STOP_FAILED if state is SandboxState.STOPPING else state
        entry.endpoint = await sandbox.recover(entry.finish, running=running)
        self._entries[entry.id] = entry
        if not of_this_boot or state in _TO_BE_REMOVED:
            # The boot has ended it, or nobody was told that it stands, or its engine has asked for its removal.
            entry.state = SandboxState.FAILED
            if await self._try_removal(self._remove(entry), entry):
                log.info("sandbox.removed", was=state.value)
            return
        if record.exit_code >= 0:
            entry.finish(record.exit_code, record.exited_at_ns)
        elif not record.descriptors:
            entry.try_save()
        log.info("sandbox.recovered", state=entry.state.value)

    # -- the steps ---------------------------------------------------------------------------------

    async def _stop(self, entry: SandboxEntry, timeout_s: float) -> None:
        if entry.state in (SandboxState.STOPPED, SandboxState.FAILED, SandboxState.REMOVAL_FAILED):
            # It may have ended by itself, and then nobody has released what it held.
            await entry.sandbox.stop(timeout_s)
            return
        entry.advance(SandboxTrigger.STOP)
        try:
            entry.try_save()
            failpoint(Failpoint.SANDBOX_STOPPING)
            await entry.sandbox.stop(timeout_s)
        except BaseException:
            if entry.state is SandboxState.STOPPING:
                entry.advance(SandboxTrigger.FAIL)
            raise
        entry.finish(0, time.time_ns())
        failpoint(Failpoint.SANDBOX_STOPPED)
        log.info("sandbox.stopped")

    async def _remove(self, entry: SandboxEntry) -> None:
        entry.advance(SandboxTrigger.REMOVE)
        removed = f"{self._state_dir}/{REMOVED_PREFIX}{os.path.basename(entry.directory)}"
        try:
            entry.try_save()
            failpoint(Failpoint.SANDBOX_REMOVING)
            await entry.sandbox.destroy()
            self._store.remove(entry.group)
            failpoint(Failpoint.SANDBOX_DESTROYED)
            # From here on there is no record, and whoever finds the files need not understand them.
            remove_files(removed)
            with contextlib.suppress(FileNotFoundError):
                os.rename(entry.directory, removed)
            failpoint(Failpoint.SANDBOX_REMOVED)
        except BaseException:
            entry.advance(SandboxTrigger.FAIL)
            raise
        remove_files(removed)
        self._entries.pop(entry.id, None)
        entry.finish(_ENDED_WITHOUT_US, time.time_ns())

    @staticmethod
    async def _try_removal(removal: Awaitable[None], entry: SandboxEntry) -> bool:
        """Remove a pod that nobody will ask for again; its failure is not the caller's."""
        try:
            await removal
        except (SandboxdError, OSError) as error:
            log.error("sandbox.not_removed", sandbox_id=entry.id, error=error)
            return False
        return True

    def _directory_name(self, sandbox_id: str) -> str:
        return pod_directory_name(self._state_dir, sandbox_id)


def _remove_unrecorded(directory: str) -> None:
    """Remove what a Create has left that was interrupted: the record is the first thing that is made.

    :raise OSError: something else is in there.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{directory}/{RECORD_FILE}.new")
    os.rmdir(directory)


def remove_files(directory: str) -> None:
    """Remove what is left of a pod; where something is mounted it is not the pod's alone, and stays."""
    if not os.path.lexists(directory):
        return
    mounts = mounts_below(os.path.realpath(directory))
    if mounts:
        log.error("sandbox.files_not_removed", directory=directory, mounts=mounts)
        return
    shutil.rmtree(directory, onerror=_log_remainder)


def _log_remainder(_: Any, path: str, failure: Any) -> None:
    log.error("sandbox.files_not_removed", path=path, error=failure[1])
