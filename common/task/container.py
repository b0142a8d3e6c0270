"""A container and its processes: plain data with states, exits and who waits for them."""

from __future__ import annotations

import contextlib
import signal
from typing import Generic, TypeVar

from common.cgroup import Cgroup, OomWatch
from common.completion import Completion
from common.errors import FailedPrecondition, NotFound
from common.process.exits import ExitStatus, Watch
from common.states import advance
from common.task.backend import PreparedContainer
from common.task.records import ContainerRecord, ExecRecord
from common.task.states import (
    CONTAINER_TRANSITIONS,
    PROCESS_TRANSITIONS,
    ContainerState,
    ContainerTrigger,
    ProcessState,
    ProcessTrigger,
)
from common.task.stdio import Stdio, StdioSpec


class AnyProcess:
    """A container's first process (`exec_id` is empty) or one that Exec added, wherever it runs."""

    __slots__ = ("container_id", "end", "exec_id", "pid", "stdio_spec")

    def __init__(self, container_id: str, exec_id: str, stdio_spec: StdioSpec, pid: int = 0) -> None:
        """:param pid: 0 if it has none yet."""
        self.container_id = container_id
        self.exec_id = exec_id
        self.stdio_spec = stdio_spec
        self.pid = pid
        self.end: Completion[ExitStatus] = Completion()

    def __str__(self) -> str:
        what = f"container {self.container_id}"
        return f"exec {self.exec_id} of {what}" if self.exec_id else what

    @property
    def exit(self) -> ExitStatus | None:
        """How it ended, or None."""
        return self.end.value


class Process(AnyProcess):
    """One on this kernel. `owner` is the host's uid and gid of an exec, `record` what is on disk of it (its process's
    JSON until it is started).
    """

    __slots__ = ("owner", "record", "state", "stdin_closed", "stdio", "watch", "window")

    def __init__(self, container_id: str, exec_id: str, stdio_spec: StdioSpec) -> None:
        super().__init__(container_id, exec_id, stdio_spec)
        self.owner = (0, 0)
        self.state = ProcessState.CREATED
        self.record: ExecRecord | None = None
        self.watch: Watch | None = None
        self.stdio: Stdio | None = None
        self.stdin_closed = False
        self.window: tuple[int, int] | None = None

    @property
    def runs(self) -> bool:
        """Whether there is a process whose end is still to come."""
        return self.watch is not None and self.exit is None

    def advance(self, trigger: ProcessTrigger) -> None:
        """Change state, or raise FailedPrecondition."""
        self.state = advance(PROCESS_TRANSITIONS, self.state, trigger, str(self))

    def require(self, trigger: ProcessTrigger) -> None:
        """Raise FailedPrecondition unless the trigger is allowed now."""
        advance(PROCESS_TRANSITIONS, self.state, trigger, str(self))

    def finish(self, status: ExitStatus) -> None:
        """Record the end and wake everybody who waits for it."""
        self.advance(ProcessTrigger.EXIT)
        self.watch = None
        if self.stdio is not None:
            self.stdio.close_stdin()
        self.end.set(status)

    def signal(self, signum: int) -> None:
        """Send a signal.

        :raise NotFound: it has ended, or has never been started.
        """
        if self.watch is None:
            ended = "has already finished" if self.exit is not None else "has no process yet"
            raise NotFound(f"{self} {ended}")
        self.watch.signal(signum)

    def undo_start(self) -> None:
        """Kill what was started, if anything was, and let go of its streams: it can be started again."""
        if self.watch is not None:
            with contextlib.suppress(NotFound):
                self.watch.signal(signal.SIGKILL)
            self.watch.cancel()
            self.watch, self.pid = None, 0
        if self.stdio is not None:
            self.stdio.close()
            self.stdio = None

    def close(self) -> None:
        """Let go of streams and watch, and of who waits for the end; what runs goes on."""
        self.end.interrupt(NotFound(f"{self} has been deleted"))
        if self.watch is not None:
            self.watch.cancel()
            self.watch = None
        if self.stdio is not None:
            self.stdio.close()
            self.stdio = None


ProcessT = TypeVar("ProcessT", bound=AnyProcess)


class AnyContainer(Generic[ProcessT]):
    """A container, wherever it runs: its first process and its execs."""

    __slots__ = ("bundle", "execs", "id", "init")

    def __init__(self, container_id: str, bundle: str, init: ProcessT) -> None:
        self.id = container_id
        self.bundle = bundle
        self.init = init
        self.execs: dict[str, ProcessT] | None = None

    def process(self, exec_id: str) -> ProcessT:
        """Return the first process (empty id) or an exec.

        :raise NotFound: no such exec.
        """
        if not exec_id:
            return self.init
        try:
            return (self.execs or {})[exec_id]
        except KeyError:
            raise NotFound(f"no exec {exec_id[:100]!r} in container {self.id}") from None

    def processes(self) -> list[ProcessT]:
        """Return the first process and all execs."""
        return [self.init, *(self.execs or {}).values()]


class Container(AnyContainer[Process]):
    """One on this kernel, and what was prepared for it.

    `cgroup` is where its processes are (None until it is known); `oom_kills` counts those that were told.
    `creation` comes when it is made, or is not going to be.
    """

    __slots__ = ("cgroup", "creation", "oom_kills", "oom_watch", "prepared", "record", "state")

    def __init__(self, container_id: str, bundle: str, stdio_spec: StdioSpec) -> None:
        super().__init__(container_id, bundle, Process(container_id, "", stdio_spec))
        self.state = ContainerState.CREATING
        self.prepared: PreparedContainer | None = None
        self.record: ContainerRecord | None = None
        self.creation: Completion[bool] | None = None
        self.cgroup: Cgroup | None = None
        self.oom_watch: OomWatch | None = None
        self.oom_kills = 0

    def advance(self, trigger: ContainerTrigger) -> None:
        """Change state, or raise FailedPrecondition."""
        self.state = advance(CONTAINER_TRANSITIONS, self.state, trigger, f"container {self.id}")

    @property
    def ends_whole(self) -> bool:
        """Whether the kernel ends all processes with the first: it has a PID namespace of its own."""
        return self.prepared is not None and self.prepared.private_pid_namespace

    def ready(self) -> PreparedContainer:
        """Return what was prepared.

        :raise FailedPrecondition: the container is still being created, or already being deleted.
        """
        if self.state is not ContainerState.READY or self.prepared is None:
            raise FailedPrecondition(f"container {self.id} is {self.state.value}")
        return self.prepared
