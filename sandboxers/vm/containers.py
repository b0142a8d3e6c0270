"""What the host keeps of a container in a guest: the engine's strings, host resources, a pid of our own, the exit.

<pod directory>/containers/<container>/container.json    the record, written before anything is made
                                       execs/<exec>.json
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import ClassVar, Final

from common.completion import Completion
from common.errors import NotFound
from common.process.exits import ExitStatus
from common.task.states import ProcessState
from common.task.stdio import StdioSpec
from sandboxers.vm.streams import Streams

HIGHEST_HOST_PID: Final = 1 << 22
"""PID_MAX_LIMIT (kernel, include/linux/threads.h): no process of the host has a higher pid."""


class PidSource:
    """Gives pids that no process of the host and no other process of a guest has."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = itertools.count(HIGHEST_HOST_PID + 1)

    def new(self) -> int:
        """Return one that was not given before."""
        return next(self._next)

    def reserve(self, pid: int) -> None:
        """Give none up to this one: it stands in a record."""
        self._next = itertools.count(max(next(self._next), pid + 1))


@dataclass(frozen=True, slots=True)
class ExecRecord:
    """One exec. `streams` are names in the descriptor store, `lengths` how much the guest has written in all to those
    that have ended; `made` tells that the guest has it; `exit_code` is -1 until it is known."""

    VERSION: ClassVar[int] = 1

    exec_id: str
    pid: int
    terminal: bool
    stdin: str
    stdout: str
    stderr: str
    streams: list[str]
    lengths: dict[str, int] = field(default_factory=dict)
    made: bool = False
    started: bool = False
    stdin_closed: bool = False
    exit_code: int = -1
    exited_at_ns: int = 0


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """One container. `prepared` tells that its bundle is in the share, `made` that the guest has it; `disks` are the
    ids of devices that were plugged in for it."""

    VERSION: ClassVar[int] = 1

    container_id: str
    bundle: str
    pid: int
    terminal: bool
    stdin: str
    stdout: str
    stderr: str
    streams: list[str]
    disks: list[str]
    lengths: dict[str, int] = field(default_factory=dict)
    prepared: bool = False
    made: bool = False
    started: bool = False
    stdin_closed: bool = False
    exit_code: int = -1
    exited_at_ns: int = 0


class GuestProcess:
    """A container's first process (`exec_id` is empty) or an exec. `lost_streams` are those of which an earlier daemon
    has kept only a part. `state` is the one that it has until it ends; None: the guest alone knows."""

    __slots__ = (
        "container_id",
        "end",
        "exec_id",
        "lost_streams",
        "pid",
        "record",
        "state",
        "stdio",
        "streams",
    )

    def __init__(self, container_id: str, exec_id: str, pid: int, stdio: StdioSpec) -> None:
        self.container_id = container_id
        self.exec_id = exec_id
        self.pid = pid
        self.stdio = stdio
        self.streams: Streams | None = None
        self.lost_streams: Streams | None = None
        self.record: ExecRecord | ContainerRecord | None = None
        self.end: Completion[ExitStatus] = Completion()
        self.state: ProcessState | None = None

    def __str__(self) -> str:
        what = f"container {self.container_id}"
        return f"exec {self.exec_id} of {what}" if self.exec_id else what

    @property
    def exit(self) -> ExitStatus | None:
        """How it has ended, as far as the host knows."""
        return self.end.value

    @property
    def runs(self) -> bool:
        """Whether it was started and has not ended, as far as the host knows."""
        return self.exit is None and self.record is not None and self.record.started


class GuestContainer:
    """A container in the guest. `made` tells that the guest has it, or may have, `oom_told` that the engine has heard
    of a kill for want of memory."""

    __slots__ = ("bundle", "execs", "id", "init", "made", "oom_told", "recovered")

    def __init__(self, container_id: str, bundle: str, init: GuestProcess) -> None:
        self.id = container_id
        self.bundle = bundle
        self.init = init
        self.made = False
        self.recovered = False
        self.oom_told = False
        self.execs: dict[str, GuestProcess] | None = None

    @property
    def state(self) -> str:
        """How far it is, as far as the host knows: a guest pauses and starts by itself."""
        if self.init.exit is not None:
            return ProcessState.STOPPED.value
        if self.init.record is not None and self.init.record.started:
            return ProcessState.RUNNING.value
        return ProcessState.CREATED.value

    def process(self, exec_id: str) -> GuestProcess:
        """Return the first process (empty id) or an exec.

        :raise NotFound: no such exec.
        """
        if not exec_id:
            return self.init
        try:
            return (self.execs or {})[exec_id]
        except KeyError:
            raise NotFound(f"no exec {exec_id[:100]!r} in container {self.id}") from None

    def processes(self) -> list[GuestProcess]:
        """Return the first process and all execs."""
        return [self.init, *(self.execs or {}).values()]
