"""What happens to pods and containers, seen from outside: the difference between two looks at the records.

Daemons write a record before and after everything that they do, whatever the isolation type, and go on to do so after
a restart; the kernel tells when a record has changed (inotify(7)). So nobody has to be asked, and nothing is missed
that lasts: of what has come and gone between two looks only the outcome is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from common.linux.inotify import IN_CREATE, IN_DELETE, IN_IGNORED, IN_MOVED_FROM, IN_MOVED_TO, Inotify
from sandboxctl.daemons import Daemon
from sandboxctl.pods import Container, Pod, list_pods
from sandboxers.states import SandboxState

_MASK = IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO
_LEVELS = 3
"""How deep below a state directory records are: <pod>/tasks/<container>."""
_NAMES = {
    state.value: state.name.lower().replace("_", "-")
    for state in SandboxState
    if state is not SandboxState.CREATED
}
_EXITED = "container.exited"
_STEPS: Mapping[str, Callable[[Container], bool]] = {
    "container.created": lambda _: True,
    "container.started": lambda container: container.record.started,
    "container.paused": lambda container: container.record.paused,
    "container.oom": lambda container: container.record.oom_kills > 0,
    _EXITED: lambda container: container.exit_code is not None,
}
"""What can be seen of a container, in the order in which it happens."""

Look = Mapping[str, Pod]
"""The pods by their directories, as they were at one time."""


class Change(NamedTuple):
    """Something that has happened, at the time in ns since the epoch at which it was seen or, for an exit, at which it
    was. `container` is None where it is about the whole pod; `exit_code` is None but for an end."""

    at_ns: int
    event: str
    pod: Pod
    container: Container | None = None
    exit_code: int | None = None


def look(daemons: Sequence[Daemon]) -> Look:
    """Read all records."""
    return {pod.directory: pod for pod in list_pods(daemons)}


def differences(before: Look, after: Look) -> Iterator[Change]:
    """Yield what has happened between two looks: a pod's beginning before its containers, its end after them."""
    now_ns = time.time_ns()
    for directory in dict.fromkeys([*before, *after]):
        old, new = before.get(directory), after.get(directory)
        pod_changes = list(_pod_changes(now_ns, old, new))
        container_changes = list(_container_changes(now_ns, old, new))
        begins = new is not None and new.exit_code is None
        yield from pod_changes + container_changes if begins else container_changes + pod_changes


def _pod_changes(now_ns: int, old: Pod | None, new: Pod | None) -> Iterator[Change]:
    if old is None and new is not None:
        yield Change(now_ns, "pod.created", new)
    if new is not None and new.state in _NAMES and (old is None or old.state != new.state):
        yield Change(now_ns, f"pod.{_NAMES[new.state]}", new, exit_code=new.exit_code)
    if new is None and old is not None:
        yield Change(now_ns, "pod.removed", old)


def _container_changes(now_ns: int, old: Pod | None, new: Pod | None) -> Iterator[Change]:
    before = {container.id: container for container in old.containers} if old else {}
    after = {container.id: container for container in new.containers} if new else {}
    for container in after.values():
        earlier = before.get(container.id)
        for event, is_so in _STEPS.items():
            if is_so(container) and not (earlier and is_so(earlier)):
                ended = event == _EXITED
                at_ns = container.record.exited_at_ns if ended else now_ns
                yield Change(at_ns, event, container.pod, container, container.exit_code if ended else None)
        if earlier and earlier.record.paused and not container.record.paused:
            yield Change(now_ns, "container.resumed", container.pod, container)
    for container in before.values():
        if container.id not in after:
            yield Change(now_ns, "container.removed", container.pod, container)


async def changes(daemons: Sequence[Daemon], before: Look) -> AsyncIterator[Change]:
    """Yield what happens from a look on, without end."""
    changed = asyncio.Event()
    inotify = Inotify(asyncio.get_running_loop())
    watched: set[str] = set()

    def watch(path: str) -> None:
        def on_event(mask: int) -> None:
            if mask & IN_IGNORED:
                watched.discard(path)
            changed.set()

        if path not in watched:
            with contextlib.suppress(FileNotFoundError, FileExistsError, NotADirectoryError):
                inotify.add_watch(path, _MASK, on_event)
                watched.add(path)

    try:
        while True:
            for daemon in daemons:
                for directory in _directories(daemon.config.state_dir, _LEVELS):
                    watch(directory)
            after = look(daemons)
            for change in differences(before, after):
                yield change
            before = after
            await changed.wait()
            changed.clear()
    finally:
        inotify.close()


def _directories(path: str, levels: int) -> Iterator[str]:
    """Yield a directory and those in it, each before it is read: what comes later is seen by who watches it."""
    yield path
    if not levels:
        return
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(path):
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield from _directories(entry.path, levels - 1)
