"""The interface between the Controller, written once, and the isolation types.

A `Sandboxer` is a type, a `Sandbox` one pod of it. The Controller owns ids, order, states, records and
waiting; a sandbox owns what it makes in its directory and on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from google.protobuf.message import Message

from sandboxers.pod_config import PodConfig

CONSOLE_FILE = "machine/console.log"
"""Where in its directory a pod has the console of its guest, if it has one."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a started sandbox offers: `address` of its Task service as the engine dials it ("ttrpc+unix:///..."),
    and `pid` of the process that stands for the pod, 0 where none does."""

    address: str
    pid: int = 0


SandboxExit = Callable[[int, int], None]
"""Called with the exit code and the time in ns since the epoch when a sandbox ends by itself."""


class Sandbox(Protocol):
    """One pod. The Controller never calls two of start, stop and destroy at once for the same sandbox."""

    async def start(self, on_exit: SandboxExit) -> Endpoint:
        """Make the pod, all or nothing: after an error nothing of it exists."""
        ...

    async def stop(self, timeout_s: float) -> None:
        """End everything that runs in the pod; afterwards nobody holds its network namespace. Idempotent."""
        ...

    async def destroy(self) -> None:
        """Stop, and remove everything that was made for the pod. Idempotent."""
        ...

    async def recover(self, on_exit: SandboxExit, *, running: bool) -> Endpoint:
        """Take up what an earlier daemon has made.

        `running` tells whether the pod had not been stopped. Raises FailedPrecondition or UnreadableRecord, before
        anything is changed, if the records of a part cannot be understood.
        """
        ...

    async def forget_unlisted_execs(self, listed: Mapping[str, Collection[str]]) -> None:
        """Forget the execs that do not run and are not among those listed, by container; bounded."""
        ...

    def abandoned(self) -> list[str]:
        """Return the containers that no engine seems to ask for any more."""
        ...

    async def collect(self, container_id: str) -> None:
        """Kill and remove an abandoned container."""
        ...

    def details(self) -> dict[str, Any]:
        """Return what an operator may want to see, as JSON-able data."""
        ...

    def metrics(self) -> Message | None:
        """Return the figures of the pod's cgroup, or None where there are none."""
        ...


class Sandboxer(Protocol):
    """An isolation type."""

    @property
    def name(self) -> str:
        """The name of the type: of its module, its configuration and its unit."""
        ...

    def sandbox(self, pod: PodConfig, directory: str, group: str) -> Sandbox:
        """Return an object for a pod, of which nothing is made yet; raise InvalidArgument if it asks for what
        the type cannot give.

        `group` is the name under which a descriptor store keeps what the pod needs to outlive this process.
        """
        ...


class Stray(NamedTuple):
    """A container that no record names; `directory` is the one it was made from, "" where that is not known."""

    container_id: str
    directory: str


class Daemonised(Sandboxer, Protocol):
    """A sandboxer that a daemon can be built around, made of its configuration and of what outlasts the daemon."""

    async def settle(self) -> None:
        """Let come to its end what an earlier daemon has begun outside of itself."""
        ...

    async def strays(self, known: Container[str]) -> list[Stray]:
        """Return what the type's tools hold, for this state directory, of containers that are not `known`."""
        ...

    async def remove_stray(self, container_id: str) -> None:
        """Kill and remove such a container; raise SandboxdError or OSError where that fails."""
        ...

    def close(self) -> None:
        """Stop watching; what runs goes on."""
        ...
