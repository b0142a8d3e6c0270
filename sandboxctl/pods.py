"""The pods of this node and their containers, read from the records that their daemons keep: quick, and also while none
runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Protocol, TypeVar

from common.errors import FailedPrecondition, InvalidArgument, NotFound, SandboxdError
from common.identifiers import check_identifier
from common.records import UnreadableRecord, read_record
from sandboxctl.daemons import Daemon
from sandboxers.embedded import embedded_pods
from sandboxers.records import SandboxRecord, pod_directory_name, read_sandbox
from sandboxers.states import SandboxState

UNREADABLE = "unreadable record"
_EARLIER_BOOT = "of an earlier boot"
_CONTAINER_RECORDS = ("tasks/{}/container.json", "containers/{}/container.json")
"""Where in a pod's directory the record of a container is: on the host, or in a guest."""
_CRI = "io.kubernetes.cri."
"""How the annotations begin in which a CRI plugin describes a container."""


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """What the records of containers have in common, whatever the isolation type."""

    VERSION: ClassVar[int] = 2

    container_id: str
    bundle: str
    terminal: bool
    stdout: str = ""
    pid: int = 0
    start_time: int = 0
    started: bool = False
    paused: bool = False
    exit_code: int = -1
    exited_at_ns: int = 0
    oom_kills: int = 0


@dataclass(frozen=True, eq=False)
class Container:
    """A container as it is on record."""

    pod: Pod
    record: ContainerFacts

    @property
    def id(self) -> str:
        return self.record.container_id

    @property
    def exit_code(self) -> int | None:
        return self.record.exit_code if self.record.exit_code >= 0 else None

    @property
    def state(self) -> str:
        """One of "created", "running", "paused" and "exited"."""
        if self.exit_code is not None:
            return "exited"
        if self.record.started:
            return "paused" if self.record.paused else "running"
        return "created"

    @property
    def name(self) -> str:
        """What the engine calls it, or "" """
        return self.annotation("container-name")

    @property
    def image(self) -> str:
        """The name of its image, if its engine says that, or "" """
        return self.annotation("image-name")

    def annotation(self, key: str) -> str:
        """Return what a CRI plugin says of the container, or "" """
        annotations = self.spec.get("annotations")
        return str(annotations.get(_CRI + key, "")) if isinstance(annotations, dict) else ""

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The OCI specification that the engine has written, empty where it is gone."""
        try:
            with open(f"{self.record.bundle}/config.json", "rb") as file:
                spec = json.load(file)
        except (OSError, ValueError):
            return {}
        return spec if isinstance(spec, dict) else {}


@dataclass(frozen=True, eq=False)
class Pod:
    """A pod as it is on record. Without a record that can be understood, `problem` says why, and the id is the name
    of the directory."""

    daemon: Daemon
    directory: str
    record: SandboxRecord | None
    of_this_boot: bool = True
    problem: str = ""
    containers: list[Container] = field(default_factory=list)

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
    def exit_code(self) -> int | None:
        return self.record.exit_code if self.record and self.record.exit_code >= 0 else None

    @property
    def created_at_ns(self) -> int:
        return self.record.created_at_ns if self.record else 0


class _Identified(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...


IdentifiedT = TypeVar("IdentifiedT", bound=_Identified)


def list_pods(daemons: Iterable[Daemon]) -> list[Pod]:
    """Return the pods on record with their containers, the oldest first."""
    pods = [pod for daemon in daemons for pod in _pods_of(daemon)]
    return sorted(pods, key=lambda pod: (pod.created_at_ns, pod.id))


def list_unremoved(daemons: Iterable[Daemon]) -> list[Pod]:
    """Return the pods of `sandboxctl run` that their daemons have removed, but of which something else is left."""
    if not embedded_pods():
        return []
    from sandboxctl.embedded.records import list_records  # late: mostly there are none

    return [
        Pod(daemon, record.directory, _unremoved(record.pod_id, record.name, record.created_at_ns))
        for daemon in daemons
        for record in list_records()
        if record.config_file == os.path.abspath(daemon.config_file)
        and not record.is_attended
        and not os.path.isdir(_directory_of(daemon.config.state_dir, record.pod_id))
    ]


def _directory_of(state_dir: str, pod_id: str) -> str:
    return f"{state_dir}/{pod_directory_name(state_dir, pod_id)}"


def _unremoved(pod_id: str, name: str, created_at_ns: int) -> SandboxRecord:
    pod = {"sandbox_id": pod_id, "name": name}
    return SandboxRecord(pod, SandboxState.REMOVAL_FAILED.value, created_at_ns)


def find_pod(daemons: Iterable[Daemon], prefix: str) -> Pod:
    """Return the pod whose id is, or alone begins with, `prefix`, or which alone is called so.

    :raise NotFound: there is none.
    :raise InvalidArgument: there are several, or the prefix is empty.
    """
    return _one_of(list_pods(daemons), "pod", prefix)


def find_pod_or_container(
    daemons: Sequence[Daemon], prefix: str, *, unremoved: bool = False
) -> Pod | Container:
    """Return the pod or container whose id is, or alone begins with, `prefix`, or which alone is called so; raises like
    `find_pod`. With `unremoved` it may be one of which only something is left."""
    pods = list_pods(daemons) + (list_unremoved(daemons) if unremoved else [])
    things: list[Pod | Container] = [*pods, *(container for pod in pods for container in pod.containers)]
    return _one_of(things, "pod or container", prefix)


def find_container(daemons: Sequence[Daemon], prefix: str) -> Container:
    """Return the container whose id begins with `prefix`, or the only container of such a pod; raises like
    `find_pod`."""
    found = find_pod_or_container(daemons, prefix)
    if isinstance(found, Container):
        return found
    if len(found.containers) == 1:
        return found.containers[0]
    names = ", ".join(f"{container.id[:13]} {container.name}".rstrip() for container in found.containers)
    if not names:
        raise NotFound(f"pod {found.id} has no containers")
    raise InvalidArgument(f"pod {found.id} has several containers, name one of them: {names}")


def _one_of(things: Sequence[IdentifiedT], kind: str, prefix: str) -> IdentifiedT:
    found = [thing for thing in things if prefix and thing.id.startswith(prefix)]
    found = [thing for thing in found if thing.id == prefix] or found
    found = found or _called(things, prefix)
    if not found:
        raise NotFound(f"no {kind} has an id that begins with {prefix[:100]!r}, or is called so")
    if len(found) > 1:
        raise InvalidArgument(
            f"{prefix!r} is not unique: it stands for {len(found)}, such as {found[0].id} and {found[1].id}"
        )
    return found[0]


def _called(things: Sequence[IdentifiedT], name: str) -> list[IdentifiedT]:
    """Return the pods of a name, with or without their namespace, or else the containers."""
    named = [thing for thing in things if name and f"/{thing.name}".endswith(f"/{name}")]
    return [thing for thing in named if isinstance(thing, Pod)] or named


def _pods_of(daemon: Daemon) -> Iterator[Pod]:
    state_dir = daemon.config.state_dir
    try:
        names = os.listdir(state_dir)
    except FileNotFoundError:
        return
    for name in names:
        directory = f"{state_dir}/{name}"
        if name.startswith(".") or not os.path.isdir(directory):
            continue
        try:
            found = read_sandbox(directory)
        except (FailedPrecondition, UnreadableRecord) as error:
            yield Pod(daemon, directory, None, problem=str(error))
            continue
        if found is not None:
            pod = Pod(daemon, directory, *found)
            pod.containers.extend(_containers_of(pod))
            yield pod


def _containers_of(pod: Pod) -> Iterator[Container]:
    for record in _CONTAINER_RECORDS:
        parent, _, _ = record.partition("/")
        try:
            names = os.listdir(f"{pod.directory}/{parent}")
        except (FileNotFoundError, NotADirectoryError):
            continue
        for name in sorted(names):
            try:
                facts, _ = read_record(f"{pod.directory}/{record.format(name)}", ContainerFacts)
                check_identifier("container", facts.container_id)
            except (FileNotFoundError, NotADirectoryError, SandboxdError):
                continue  # `gc` tells of those that cannot be understood
            yield Container(pod, facts)
