"""The processes of one machine: on record before they run, watched together, ended together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from common.errors import DeadlineExceeded, NotFound
from common.log_files import LogFiles
from common.process.exits import ExitStatus, ExitWatcher
from common.process.held import Confinement, Held, hold
from common.process.spawn import Child
from vmm.hypervisors.last_words import last_words, thread_has_panicked
from vmm.hypervisors.machine import Place


class DriverParts(NamedTuple):
    """What a driver has from its daemon: who tells of ends, and who keeps logs short."""

    exits: ExitWatcher
    logs: LogFiles


OnEnd = Callable[[str, ExitStatus], None]


class MachineProcesses:
    """A process per role. `on_end` is called with the role of each that ends, unless it was dismissed before;
    `on_gone` after the end of the last.
    """

    __slots__ = (
        "_children",
        "_dismissed",
        "_held",
        "_on_end",
        "_on_gone",
        "_parts",
        "_place",
        "_start_times",
    )

    def __init__(self, parts: DriverParts, place: Place, on_end: OnEnd, on_gone: Callable[[], None]) -> None:
        self._parts = parts
        self._place = place
        self._on_end = on_end
        self._on_gone = on_gone
        self._children: dict[str, Child] = {}
        self._held: dict[str, Held] = {}
        self._dismissed: set[Child] = set()
        self._start_times: dict[str, int] = {}

    def pids(self) -> dict[str, int]:
        """Return the pids of those that live, by role."""
        return {role: child.pid for role, child in self._children.items()}

    def identities(self) -> dict[str, list[int]]:
        """Return pid and start time by role, as `adopt` takes them."""
        return {role: [child.pid, self._start_times[role]] for role, child in self._children.items()}

    def hold(
        self,
        role: str,
        argv: Sequence[str],
        *,
        in_netns: bool = False,
        capabilities: bool = False,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Make the process of a role, which waits for `release`; raises what `spawn` raises."""
        netns_path = self._place.netns_path if in_netns else ""
        # Emptied: what another process of this role has said is not about this one.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        log = os.open(self.log_path(role), flags, 0o600)
        try:
            held = hold(
                argv,
                watcher=self._parts.exits,
                confinement=Confinement(netns_path, self._place.cgroups, capabilities),
                stderr=log,
                pass_fds=pass_fds,
            )
        finally:
            os.close(log)
        self._held[role] = held
        self._start_times[role] = held.start_time
        self._watch(role, held.child)

    def release(self, role: str) -> None:
        """Let it run; harmless when it has ended."""
        if (held := self._held.pop(role, None)) is not None:
            held.release()

    def adopt(self, identities: Mapping[str, Sequence[int]]) -> list[str]:
        """Take up processes of an earlier daemon; return the roles of those that have ended."""
        missing = []
        for role, (pid, started) in identities.items():
            try:
                child = Child.adopt(self._parts.exits, pid, started, role)
            except NotFound:
                missing.append(role)
                continue
            self._start_times[role] = started
            self._watch(role, child)
        return missing

    def lives(self, role: str) -> bool:
        """Tell whether the process of a role is there."""
        return role in self._children

    async def ended(self, role: str) -> ExitStatus | None:
        """Wait for the end of a role's process; None if it has ended before."""
        child = self._children.get(role)
        return await child.wait() if child is not None else None

    def dismiss(self, role: str) -> None:
        """Kill the process of a role; its end is nobody's concern, and another may have the role at once."""
        if (child := self._children.pop(role, None)) is not None:
            self._dismissed.add(child)
            self._release_rest(role)
            _kill(child)

    def kill(self) -> None:
        """Send SIGKILL to all."""
        for child in self._all():
            _kill(child)

    async def gone(self, timeout_s: float) -> None:
        """Wait until all have ended. Raises DeadlineExceeded naming those that have not."""
        try:
            async with asyncio.timeout(timeout_s):
                for child in self._all():
                    await child.wait()
        except TimeoutError:
            pids = ", ".join(str(child.pid) for child in self._all())
            raise DeadlineExceeded(f"still there {timeout_s:g} s after SIGKILL: {pids}") from None

    def forget(self) -> None:
        """Watch them no more; they run on."""
        for role in self._children:
            self._parts.logs.forget(self.log_path(role))
        for child in self._all():
            child.forget()
        self._children.clear()
        self._dismissed.clear()
        for held in self._held.values():
            held.close()
        self._held.clear()

    def log_path(self, role: str) -> str:
        """Return the file that a process writes its messages to."""
        return f"{self._place.directory}/{role}.log"

    def words(self, role: str) -> str:
        """Return the last that a process has said, on one line; empty if it has said nothing."""
        return last_words(self.log_path(role))

    def _watch(self, role: str, child: Child) -> None:
        self._children[role] = child
        self._parts.logs.watch(self.log_path(role), partial(self._look_at_words, role, child))
        child.on_exit = partial(self._on_exit, role, child)

    def _look_at_words(self, role: str, child: Child) -> None:
        # A helper one of whose threads is gone stays, and serves nobody: that is its end.
        if thread_has_panicked(self.log_path(role)):
            _kill(child)

    def _on_exit(self, role: str, child: Child, status: ExitStatus) -> None:
        if child in self._dismissed:
            self._dismissed.remove(child)
        else:
            del self._children[role]
            self._release_rest(role)
            self._on_end(role, status)
        if not self._all():
            self._on_gone()

    def _release_rest(self, role: str) -> None:
        self._parts.logs.forget(self.log_path(role))
        if (held := self._held.pop(role, None)) is not None:
            held.close()

    def _all(self) -> list[Child]:
        return [*self._children.values(), *self._dismissed]


def _kill(child: Child) -> None:
    with contextlib.suppress(NotFound):
        child.signal(signal.SIGKILL)
