"""What lies in a state directory and belongs to nobody: found, shown, and removed by `sandboxctl gc`.

Three things are compared: the ledger (what records say), the host (processes by pid and start time, mounts, files,
what the OCI runtime holds) and what the engine knows. Removed is what

* is ours: it lies in our state directory, or the runtime that keeps its state there made it from a bundle there;
* is no running daemon's: we own the state directory while we look and remove, or we ask the daemon to do it;
* is none of the engine's: a reachable one does not know it, or it is of an earlier boot and nothing of it is alive.

A record that cannot be understood is shown, and nothing that it may stand for is removed.
"""

from __future__ import annotations

import contextlib
import enum
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from common.errors import FailedPrecondition, SandboxdError, Unavailable
from common.linux.mounts import mounts_below, umount
from common.linux.pidfd import is_same_process
from common.records import UnreadableRecord, read_record
from common.task.records import RECORD_FILE as CONTAINER_FILE
from common.task.records import ContainerRecord
from sandboxers.records import RECORD_FILE, REMOVED_PREFIX, SandboxRecord, pod_directory_name, read_sandbox

if TYPE_CHECKING:
    from sandboxers.engine import EngineList
    from sandboxers.sandbox import Daemonised

_TASKS: Final = "tasks"

AskEngine = Callable[[], Awaitable["EngineList"]]
"""Returns what the engine knows; raises Unavailable."""


class Kind(enum.StrEnum):
    """What is left over."""

    POD = "pod"
    CONTAINER = "container"
    MOUNT = "mount"
    FILES = "files"


class Action(enum.StrEnum):
    """What is to be done about it."""

    REMOVE = "remove"
    ASK = "ask sandboxd to remove"
    KEEP = "keep"


class Leftover(NamedTuple):
    """A row of the table. `what` is an id or a path; `where` a directory's name in the state directory."""

    kind: Kind
    what: str
    why: str
    action: Action
    where: str = ""


@dataclass(slots=True)
class _Pod:
    """A directory as it was found: its record, or why there is none, and the containers recorded below it."""

    name: str
    record: SandboxRecord | None = None
    of_this_boot: bool = True
    problem: str = ""
    containers: list[ContainerRecord] = field(default_factory=list)
    container_names: list[str] = field(default_factory=list)

    @property
    def sandbox_id(self) -> str:
        return str(self.record.pod.get("sandbox_id", "")) if self.record is not None else ""

    @property
    def alive(self) -> list[str]:
        """The containers whose first process is alive, by pid and start time."""
        return [c.container_id for c in self.containers if c.pid and is_same_process(c.pid, c.start_time)]


class Survey:
    """One look at a state directory.

    :param sandboxer: None while a daemon runs, which owns what its type holds.
    """

    def __init__(
        self, state_dir: str, grace_s: float, ask_engine: AskEngine, sandboxer: Daemonised | None
    ) -> None:
        self._state_dir = os.path.realpath(state_dir)
        self._grace_s = grace_s
        self._ask_engine = ask_engine
        self._sandboxer = sandboxer
        self._engine: EngineList | None = None
        self.engine_error = ""

    @property
    def _served(self) -> bool:
        return self._sandboxer is None

    async def find(self) -> list[Leftover]:
        """Return what is left over."""
        pods = self._read_ledger()
        # After the ledger: an engine knows a pod before we do.
        try:
            self._engine = await self._ask_engine()
        except Unavailable as error:
            self.engine_error = str(error)
        found = [leftover for pod in pods for leftover in self._judge(pod)]
        found += self._other_entries()
        found += await self._strays({name for pod in pods for name in pod.container_names})
        return found

    # -- the ledger --------------------------------------------------------------------------------

    def _read_ledger(self) -> list[_Pod]:
        return [
            self._read_pod(name)
            for name in sorted(os.listdir(self._state_dir))
            if not name.startswith(".") and self._is_directory(name)
        ]

    def _read_pod(self, name: str) -> _Pod:
        pod = _Pod(name)
        try:
            found = read_sandbox(f"{self._state_dir}/{name}")
        except (FailedPrecondition, UnreadableRecord) as error:
            pod.problem = str(error)
        else:
            if found is not None:
                pod.record, pod.of_this_boot = found
        tasks = f"{self._state_dir}/{name}/{_TASKS}"
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            pod.container_names = sorted(os.listdir(tasks))
        for container in pod.container_names:
            try:
                pod.containers.append(
                    read_record(f"{tasks}/{container}/{CONTAINER_FILE}", ContainerRecord)[0]
                )
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (FailedPrecondition, UnreadableRecord) as error:
                pod.problem = pod.problem or str(error)
        return pod

    def _is_directory(self, name: str) -> bool:
        path = f"{self._state_dir}/{name}"
        return os.path.isdir(path) and not os.path.islink(path)

    # -- what is to be thought of it ---------------------------------------------------------------

    def _judge(self, pod: _Pod) -> Iterator[Leftover]:
        if pod.problem:
            yield Leftover(Kind.POD, pod.sandbox_id or pod.name, pod.problem, Action.KEEP, pod.name)
        elif pod.record is None:
            yield from self._judge_unrecorded(pod)
        elif not pod.of_this_boot:
            yield self._pod(pod, "of an earlier boot")
        elif self._engine is None or time.time_ns() - pod.record.created_at_ns < self._grace_s * 1e9:
            return
        elif pod.sandbox_id not in self._engine.sandboxes:
            yield self._pod(pod, "the engine does not know it", forgotten=True)
        else:
            yield from self._judge_containers(pod, self._engine)

    def _pod(self, pod: _Pod, why: str, *, forgotten: bool = False) -> Leftover:
        alive = pod.alive
        if alive:
            why += f"; still alive: {', '.join(alive)}"
        action = Action.ASK if self._served else Action.REMOVE
        if alive and not forgotten:
            action = Action.KEEP
        return Leftover(Kind.POD, pod.sandbox_id, why, action, pod.name)

    def _judge_unrecorded(self, pod: _Pod) -> Iterator[Leftover]:
        directory = f"{self._state_dir}/{pod.name}"
        why, action = "no record of a pod", Action.KEEP
        if self._served:
            why += ", but a daemon that may be writing it"
        elif set(os.listdir(directory)) <= {f"{RECORD_FILE}.new"}:
            action = Action.REMOVE
        elif pod.alive:
            why += f"; still alive: {', '.join(pod.alive)}"
        elif self._engine is None:
            why += ", and no engine to ask"
        elif pod.name in {pod_directory_name(self._state_dir, known) for known in self._engine.sandboxes}:
            why += " that the engine knows"
        else:
            action = Action.REMOVE
        yield from self._files(directory, why, action)

    def _judge_containers(self, pod: _Pod, engine: EngineList) -> Iterator[Leftover]:
        for container in pod.containers:
            if container.container_id not in engine.tasks and not os.path.lexists(container.bundle):
                why = "the engine does not know it; its pod's daemon removes it after the period of grace"
                yield Leftover(Kind.CONTAINER, container.container_id, why, Action.KEEP, pod.name)

    def _other_entries(self) -> Iterator[Leftover]:
        for name in sorted(os.listdir(self._state_dir)):
            path = f"{self._state_dir}/{name}"
            if name.startswith(REMOVED_PREFIX) and self._is_directory(name):
                action = Action.KEEP if self._served else Action.REMOVE
                yield from self._files(path, "of a pod that was being removed", action)
            elif not name.startswith(".") and not self._is_directory(name):
                yield Leftover(Kind.FILES, path, "not made by sandboxd", Action.KEEP, name)

    def _files(self, directory: str, why: str, action: Action) -> Iterator[Leftover]:
        name = os.path.basename(directory)
        for point in mounts_below(directory):
            yield Leftover(Kind.MOUNT, point, why, action, name)
        yield Leftover(Kind.FILES, directory, why, action, name)

    async def _strays(self, known: set[str]) -> list[Leftover]:
        if self._sandboxer is None:
            return []
        found = []
        for container_id, directory in await self._sandboxer.strays(known):
            why, action = "no record names it", Action.KEEP
            if not os.path.realpath(directory).startswith(f"{self._state_dir}/"):
                why += f", and it was not made by us but from {directory or 'nobody knows where'}"
            elif self._engine is None:
                why += ", and no engine to ask"
            elif container_id in self._engine.tasks:
                why += ", but the engine knows it"
            else:
                action = Action.REMOVE
            found.append(Leftover(Kind.CONTAINER, container_id, why, action))
        return found


async def remove_unserved(
    leftovers: list[Leftover], sandboxer: Daemonised, state_dir: str, stop_timeout_s: float
) -> dict[Leftover, str]:
    """Remove what is to be removed, while we own the state directory; return why something could not be."""
    from sandboxers.registry import SandboxRegistry, remove_files  # late: mostly one only looks

    failures: dict[Leftover, str] = {}
    doomed = [leftover for leftover in leftovers if leftover.action is Action.REMOVE]
    registry = SandboxRegistry(sandboxer, state_dir, stop_timeout_s)
    for leftover in reversed(doomed):
        # The last first: one may be mounted inside or on top of another.
        if leftover.kind is Kind.MOUNT:
            with _noting(failures, leftover):
                umount(leftover.what)
    await sandboxer.settle()
    await registry.recover({leftover.where for leftover in doomed if leftover.kind is Kind.POD})
    for leftover in doomed:
        with _noting(failures, leftover):
            if leftover.kind is Kind.POD:
                await registry.shutdown(leftover.what)
            elif leftover.kind is Kind.FILES:
                remove_files(leftover.what)
            elif leftover.kind is Kind.CONTAINER:
                await sandboxer.remove_stray(leftover.what)
        directory = f"{state_dir}/{leftover.where}"
        if leftover.kind in (Kind.POD, Kind.FILES) and os.path.lexists(directory):
            failures.setdefault(leftover, f"{directory} is still there")
    return failures


@contextlib.contextmanager
def _noting(failures: dict[Leftover, str], leftover: Leftover) -> Iterator[None]:
    try:
        yield
    except (SandboxdError, OSError) as error:
        failures[leftover] = str(error)
