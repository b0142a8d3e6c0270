"""The interfaces that the Task service is assembled from, drawn where they are used.

| interface           | question it answers                                                    |
|---------------------|------------------------------------------------------------------------|
| `TaskBackend`       | what runs a container                                                  |
| `ContainerPreparer` | what must be true on this side before the backend runs                 |
| `EventSink`         | where /tasks/* events go                                               |
| `Primer`            | what can be begun before the next container is asked for               |

`TaskParts` holds them with what else all pods of a daemon share. Exits come from `common.process.exits`: whatever a
backend starts is a process with a pid on this kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import Message

from common.cgroup import Cgroup, Hierarchies, OomWatcher, read_metrics
from common.descriptors.store import DescriptorStore, NoStore
from common.linux.mounts import MountSpec
from common.process.exits import ExitWatcher
from common.records import RecordWriter, write_record
from common.task.stdio import Stdio, StdioSpec


@dataclass(frozen=True, slots=True)
class ContainerRequest:
    """What the engine says of a container at Create: its id, bundle directory, rootfs mounts and streams; and under
    which name a descriptor store keeps what its first process needs."""

    container_id: str
    bundle: str
    rootfs: tuple[MountSpec, ...]
    stdio: StdioSpec
    descriptors: str = ""


@dataclass(frozen=True, slots=True)
class PreparedContainer:
    """What a preparer leaves for the backend and the service.

    `directory` is our own bundle: config.json as rewritten, and all files of this container. `owner` is the
    host's (uid, gid) of the first process. `cgroups_path` is the specification's linux.cgroupsPath. `mapped`
    tells that ids are others inside (a user namespace), `mounted` that we have mounted the rootfs, and
    `keep_mounted` that hooks may look for it there later.
    """

    directory: str
    rootfs: str
    owner: tuple[int, int]
    cgroups_path: str
    private_pid_namespace: bool
    mapped: bool = True
    mounted: bool = False
    keep_mounted: bool = False


class ContainerPreparer(Protocol):
    """What must be true on this side before the backend runs."""

    async def prepare(
        self, request: ContainerRequest, undo: AsyncExitStack, is_pod_process: Callable[[int], bool]
    ) -> PreparedContainer:
        """Mount the rootfs, rewrite the spec, make the container's directory; each step pushes its undo."""
        ...

    async def settle(self, container: PreparedContainer) -> None:
        """Let go of what only the making of the container has needed."""
        ...

    async def release(self, container: PreparedContainer) -> None:
        """Take back all that prepare() did; idempotent."""
        ...

    def prepare_process(self, container: PreparedContainer, process: bytes) -> tuple[bytes, tuple[int, int]]:
        """Check the JSON of an Exec's process; return it as the backend shall run it, and its host's (uid, gid)."""
        ...


class TaskBackend(Protocol):
    """What runs containers. Each method is done when it returns; errors are those of `common.errors`."""

    async def create(self, container_id: str, container: PreparedContainer, stdio: Stdio) -> int:
        """Make the container, or nothing; return the pid of its first process, which waits for start()."""
        ...

    async def start(self, container_id: str, container: PreparedContainer) -> None:
        """Let the first process run the user's command."""
        ...

    async def is_started(self, container_id: str, container: PreparedContainer) -> bool:
        """Tell whether start() was done for a container, by whatever daemon."""
        ...

    def pid_of_exec(self, exec_id: str, container: PreparedContainer) -> int | None:
        """Tell how far an exec() came that a daemon's death has cut short: None if it was never begun, 0 if it
        failed, else the pid that it had started."""
        ...

    async def exec(
        self, container_id: str, exec_id: str, container: PreparedContainer, process: bytes, stdio: Stdio
    ) -> int:
        """Start one more process (JSON of the specification's Process) and return its pid."""
        ...

    def forget_exec(self, exec_id: str, container: PreparedContainer) -> None:
        """Remove what `pid_of_exec` looks at: the pid is on record now, or there is none."""
        ...

    async def delete(self, container_id: str, container: PreparedContainer) -> None:
        """Remove the container, killing what is left of it; idempotent."""
        ...

    async def pause(self, container_id: str, container: PreparedContainer) -> None:
        """Freeze all processes of the container."""
        ...

    async def resume(self, container_id: str, container: PreparedContainer) -> None:
        """Thaw all processes of the container."""
        ...

    async def update(self, container_id: str, container: PreparedContainer, resources: bytes) -> None:
        """Apply new limits (JSON of the specification's LinuxResources)."""
        ...


class EventSink(Protocol):
    """Where /tasks/* events go. Publishing never blocks and never fails."""

    def publish(self, topic: str, event: Message) -> None:
        """Queue one event."""
        ...

    async def flush(self, timeout_s: float) -> None:
        """Return when all that was published before is delivered or given up, at the latest after `timeout_s`."""
        ...


StdioFactory = Callable[[StdioSpec, tuple[int, int], str, DescriptorStore, str], Stdio]
"""Opens the streams of a process; the arguments are those of `Stdio`."""


class Primer(Protocol):
    """Begins, in the background, what the next container would have to wait for (`common.cgroup.primer`)."""

    def prime(self) -> None: ...
    def close(self) -> None: ...


class _NoPrimer:
    __slots__ = ()

    def prime(self) -> None:
        """There is nothing to wait for."""

    def close(self) -> None:
        """Nothing runs."""


class TaskParts:
    """What every pod's Task service of a daemon is assembled from; one object for all pods.

    `measure` returns the figures of a cgroup as the engine knows them.
    """

    __slots__ = (
        "backend",
        "events",
        "exits",
        "hierarchies",
        "measure",
        "ooms",
        "primer",
        "stdio",
        "store",
        "write_record",
    )

    def __init__(
        self,
        backend: TaskBackend,
        exits: ExitWatcher,
        events: EventSink,
        ooms: OomWatcher,
        hierarchies: Hierarchies,
        store: DescriptorStore | None = None,
        stdio: StdioFactory = Stdio,
        primer: Primer | None = None,
        measure: Callable[[Cgroup], Message] = read_metrics,
        write_record: RecordWriter = write_record,
    ) -> None:
        self.backend = backend
        self.exits = exits
        self.events = events
        self.ooms = ooms
        self.hierarchies = hierarchies
        self.store: DescriptorStore = store or NoStore()
        self.stdio = stdio
        self.primer: Primer = primer or _NoPrimer()
        self.measure = measure
        self.write_record = write_record
