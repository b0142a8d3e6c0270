"""What the host keeps of a container in a guest: the engine's strings, host resources, a pid of our own, the exit.

<pod directory>/containers/<container>/container.json    the record, written before anything is made
                                       execs/<exec>.json
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import ClassVar, Final

from common.task.container import AnyContainer, AnyProcess
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


class GuestProcess(AnyProcess):
    """One in a guest. `lost_streams` are those of which an earlier daemon has kept only a part; `state` is the one that
    it has until it ends, None if the guest alone knows."""

    __slots__ = ("lost_streams", "record", "state", "streams")

    def __init__(self, container_id: str, exec_id: str, pid: int, stdio_spec: StdioSpec) -> None:
        super().__init__(container_id, exec_id, stdio_spec, pid)
        self.streams: Streams | None = None
        self.lost_streams: Streams | None = None
        self.record: ExecRecord | ContainerRecord | None = None
        self.state: ProcessState | None = None

    @property
    def runs(self) -> bool:
        """Whether it was started and has not ended, as far as the host knows."""
        return self.exit is None and self.record is not None and self.record.started


class GuestContainer(AnyContainer[GuestProcess]):
    """One in a guest. `made` tells that the guest has it, or may have, `oom_told` that the engine has heard of a kill
    for want of memory."""

    __slots__ = ("made", "oom_told", "recovered")

    def __init__(self, container_id: str, bundle: str, init: GuestProcess) -> None:
        super().__init__(container_id, bundle, init)
        self.made = False
        self.recovered = False
        self.oom_told = False

    @property
    def state(self) -> str:
        """How far it is, as far as the host knows: a guest pauses and starts by itself."""
        if self.init.exit is not None:
            return ProcessState.STOPPED.value
        if self.init.record is not None and self.init.record.started:
            return ProcessState.RUNNING.value
        return ProcessState.CREATED.value
