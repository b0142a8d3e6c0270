"""What the embedded engine knows of its pods, on disk, since no process of it lives on.

/run/sandboxd/embedded/<pod>/            the record, the network namespace, bundles, mounts: ends with the boot
/var/lib/sandboxd/embedded/<pod>/        what containers write to: logs, layers, scratch volumes, names of hosts
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from common.errors import AlreadyExists, FailedPrecondition, NotFound, SandboxdError
from common.linux.mounts import mounts_below
from common.linux.pidfd import is_same_process, start_time
from common.records import from_data, read_record, write_record
from sandboxctl.embedded.lock import locked_file
from sandboxctl.embedded.plan import Port
from sandboxers.embedded import BUNDLES, EMBEDDED_DIR, RECORD_FILE, embedded_pods

DATA_DIR: Final = "/var/lib/sandboxd/embedded"
_DATA_RECORD_FILE: Final = ".pod.json"


@dataclass(frozen=True, slots=True)
class PodRecord:
    """One pod. `type` is of its isolation, `config_file` that of the daemon; `network` a CNI configuration, empty for
    none and for the host's; `ports` and `containers` are `Port` and `ContainerRecord` as data. `actor` is who is
    starting or removing it, by pid and start time (ticks since boot), and empty while nobody is."""

    VERSION: ClassVar[int] = 1

    pod_id: str
    name: str
    type: str
    config_file: str
    created_at_ns: int
    stop_timeout_s: float
    netns: str = ""
    network: dict[str, Any] = field(default_factory=dict)
    attachment: dict[str, Any] = field(default_factory=dict)
    ports: list[dict[str, Any]] = field(default_factory=list)
    containers: list[dict[str, Any]] = field(default_factory=list)
    actor: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse what could be read, and not be used.

        :raise TypeError, ValueError: a part of it is not what it should be.
        """
        if len(self.actor) not in (0, 2):
            raise ValueError("actor is no pid with a start time")
        containers_of(self)
        ports_of(self)

    @property
    def is_attended(self) -> bool:
        """Whether another process is starting or removing it."""
        return bool(self.actor) and self.actor[0] != os.getpid() and is_same_process(*self.actor)

    @property
    def is_abandoned(self) -> bool:
        """Whether whoever has begun to start or to remove it is no more, so that nobody goes on with it."""
        return bool(self.actor) and not is_same_process(*self.actor)

    @property
    def directory(self) -> str:
        return f"{EMBEDDED_DIR}/{self.pod_id}"

    @property
    def data_directory(self) -> str:
        return f"{DATA_DIR}/{self.pod_id}"

    @property
    def cgroup(self) -> str:
        return f"/sandboxd-embedded/{self.pod_id}"

    @property
    def hosts_file(self) -> str:
        """What the pod's containers have as /etc/hosts, and may write to: not in memory."""
        return f"{self.data_directory}/hosts"

    @property
    def volumes_directory(self) -> str:
        """Where parts of volumes are mounted."""
        return f"{self.directory}/volumes"

    def log_file(self, container_name: str) -> str:
        """Where a container's output is, as it came."""
        return f"{self.data_directory}/{container_name}.log"

    def bundle(self, container_id: str) -> str:
        """A container's bundle directory."""
        return f"{self.directory}/{BUNDLES}/{container_id}"

    def attended(self) -> PodRecord:
        """Return the record of a pod that this process starts or removes."""
        return dataclasses.replace(self, actor=[os.getpid(), start_time(os.getpid())])

    def settle(self) -> None:
        """Write down that the pod has been started: from now on it does not depend on who has done so."""
        dataclasses.replace(self, actor=[]).save()

    def save(self) -> None:
        """Write the record."""
        write_record(f"{self.directory}/{RECORD_FILE}", self)


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """A container of a pod. `digest` is its image's, empty for a directory."""

    id: str
    name: str
    image: str
    digest: str
    stop_signal: str


@dataclass(frozen=True, slots=True)
class DataRecord:
    """Whose the files of a data directory are; as every record it tells in which boot it was written."""

    VERSION: ClassVar[int] = 1

    pod_id: str


def containers_of(record: PodRecord) -> list[ContainerRecord]:
    """Return a pod's containers, in the order in which they were started."""
    return [from_data(ContainerRecord, entry) for entry in record.containers]


def ports_of(record: PodRecord) -> list[Port]:
    """Return what leads to ports of the pod."""
    return [from_data(Port, entry) for entry in record.ports]


def list_records() -> list[PodRecord]:
    """Return all pods whose records can be read, the oldest first."""
    records = []
    for pod_id in embedded_pods():
        with contextlib.suppress(NotFound, SandboxdError):
            records.append(load_record(pod_id))
    return sorted(records, key=lambda record: record.created_at_ns)


def load_record(pod_id: str) -> PodRecord:
    """Return a pod's record.

    :raise NotFound: the embedded engine has no such pod.
    :raise FailedPrecondition, UnreadableRecord: it cannot be understood.
    """
    try:
        return read_record(f"{EMBEDDED_DIR}/{pod_id}/{RECORD_FILE}", PodRecord)[0]
    except FileNotFoundError:
        raise NotFound(f"no pod {pod_id[:100]} was started with 'sandboxctl run'") from None


def add_record(record: PodRecord) -> None:
    """Write down a new pod, before anything is made for it; the caller holds the lock.

    :raise AlreadyExists: its name is taken.
    """
    for other in list_records():
        if other.name == record.name:
            raise AlreadyExists(
                f"a pod {record.name} runs already: remove it with 'sandboxctl rm {other.pod_id}', or choose another"
                " --name"
            )
    os.mkdir(record.directory, 0o700)
    os.makedirs(DATA_DIR, 0o700, exist_ok=True)
    record.save()
    os.mkdir(record.data_directory, 0o700)
    write_record(f"{record.data_directory}/{_DATA_RECORD_FILE}", DataRecord(record.pod_id))


def remove_record(record: PodRecord) -> None:
    """Remove a pod's files, the record last, so that an interrupted removal can be repeated.

    :raise FailedPrecondition: something is mounted there, which is not ours to remove.
    """
    # What is mounted in a bundle may lie on the data.
    _require_nothing_mounted(record.directory)
    remove_tree(record.data_directory)
    remove_tree(f"{record.directory}/{BUNDLES}")
    remove_tree(record.directory)


def remove_tree(path: str) -> None:
    """Remove a directory of the embedded engine with all that is in it, if it exists.

    :raise FailedPrecondition: something is mounted there, whose files are not ours to remove.
    """
    _require_nothing_mounted(path)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def _require_nothing_mounted(path: str) -> None:
    if mounts := mounts_below(os.path.realpath(path)):
        raise FailedPrecondition(
            f"the files in {path} stay: {mounts[0]} is mounted there; unmount it and try again"
        )


@contextlib.asynccontextmanager
async def locked() -> AsyncIterator[None]:
    """Be the only one who adds or removes pods or daemons of the embedded engine."""
    os.makedirs(EMBEDDED_DIR, 0o700, exist_ok=True)
    async with locked_file(f"{EMBEDDED_DIR}/.lock"):
        yield


def sweep_data() -> None:
    """Remove what pods of earlier boots have written, and nothing that does not say so; the caller holds the lock."""
    known = set(embedded_pods())
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(DATA_DIR):
            if name not in known and _is_of_earlier_boot(f"{DATA_DIR}/{name}"):
                with contextlib.suppress(FailedPrecondition):
                    remove_tree(f"{DATA_DIR}/{name}")


def _is_of_earlier_boot(directory: str) -> bool:
    try:
        return not read_record(f"{directory}/{_DATA_RECORD_FILE}", DataRecord)[1]
    except (OSError, SandboxdError):
        return False
