"""The pods of this node, read from the records that their daemons keep: quick, and also while none runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from common.errors import FailedPrecondition, InvalidArgument, NotFound
from common.records import UnreadableRecord
from sandboxctl.daemons import Daemon
from sandboxers.records import REMOVED_PREFIX, SandboxRecord, read_sandbox

UNREADABLE = "unreadable record"
_EARLIER_BOOT = "of an earlier boot"


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as it is on record. Without a record that can be understood, `problem` says why, and the id is the name
    of the directory."""

    daemon: Daemon
    directory: str
    record: SandboxRecord | None
    of_this_boot: bool = True
    problem: str = ""

    @property
    def id(self) -> str:
        return str(self.record.pod.get("sandbox_id")) if self.record else os.path.basename(self.directory)

    @property
    def name(self) -> str:
        """What the engine calls it, in Kubernetes with the namespace before it."""
        pod = self.record.pod if self.record else {}
        return "/".join(filter(None, (str(pod.get("namespace") or ""), str(pod.get("name") or ""))))

    @property
    def state(self) -> str:
        """A `SandboxState` in words, or why there is none."""
        if self.record is None:
            return UNREADABLE
        return self.record.state if self.of_this_boot else _EARLIER_BOOT

    @property
    def created_at_ns(self) -> int:
        return self.record.created_at_ns if self.record else 0


def list_pods(daemons: Iterable[Daemon]) -> list[Pod]:
    """Return the pods on record, the oldest first."""
    pods = [pod for daemon in daemons for pod in _pods_of(daemon)]
    return sorted(pods, key=lambda pod: (pod.created_at_ns, pod.id))


def find_pod(daemons: Iterable[Daemon], prefix: str) -> Pod:
    """Return the pod whose id is, or alone begins with, `prefix`.

    :raise NotFound: there is none.
    :raise InvalidArgument: there are several, or the prefix is empty.
    """
    pods = list_pods(daemons)
    return _one_of([pod for pod in pods if prefix and pod.id.startswith(prefix)], "pod", prefix)


def _one_of(found: list[Pod], kind: str, prefix: str) -> Pod:
    exact = [pod for pod in found if pod.id == prefix]
    found = exact or found
    if not found:
        raise NotFound(f"no {kind} has an id that begins with {prefix[:100]!r}")
    if len(found) > 1:
        raise InvalidArgument(
            f"{prefix!r} is not unique: the ids of {len(found)} {kind}s begin with it, such as {found[0].id}"
            f" and {found[1].id}"
        )
    return found[0]


def _pods_of(daemon: Daemon) -> Iterator[Pod]:
    state_dir = daemon.config.state_dir
    try:
        names = os.listdir(state_dir)
    except FileNotFoundError:
        return
    for name in names:
        directory = f"{state_dir}/{name}"
        if name.startswith((".", REMOVED_PREFIX)) or not os.path.isdir(directory):
            continue
        try:
            found = read_sandbox(directory)
        except (FailedPrecondition, UnreadableRecord) as error:
            yield Pod(daemon, directory, None, problem=str(error))
            continue
        if found is not None:
            yield Pod(daemon, directory, *found)
