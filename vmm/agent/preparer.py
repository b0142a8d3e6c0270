"""What must be true in a guest before a container runs: as on a host, with a spec that was written for a host."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Final

from common.cgroup import Hierarchies
from common.errors import InvalidArgument
from common.oci.spec import PodView, Spec
from common.task.backend import ContainerRequest
from common.task.host_preparer import HostPreparer
from vmm.agent.boot import POD_CGROUP

POD_FILES: Final = ("hostname", "hosts", "resolv.conf")

# The guest is the pod: these are its own, and containers live in them.
_SHARED_NAMESPACES: Final = ("network", "ipc", "uts")

# Labels and profiles of modules that guard the host.
_PROCESS_KEYS: Final = ("apparmorProfile", "selinuxLabel")
_LINUX_KEYS: Final = ("mountLabel", "intelRdt")


class SharedMemory:
    """The directory behind the pod's /dev/shm: always there, since nobody else reads this machine's mount table."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    def attach(self, user: str) -> None:
        """It is attached."""

    def detach(self, user: str) -> None:
        """It stays."""


class GuestPreparer(HostPreparer):
    """Prepares the containers of the guest's pod (`ContainerPreparer`)."""

    __slots__ = ("_shares",)

    def __init__(
        self,
        view: Callable[[], PodView],
        shm: SharedMemory,
        directory: str,
        shares: str,
        hierarchies: Hierarchies,
        may_raise_limits: bool,
    ) -> None:
        """:param shares: the directory below which every bundle must lie; the others are those of `HostPreparer`."""
        super().__init__(view, shm, directory, hierarchies, may_raise_limits)
        self._shares = shares

    def check_request(self, request: ContainerRequest) -> None:
        """Refuse a bundle that is not in a share, however it is spelled, and mounts from elsewhere.

        :raise InvalidArgument: it is.
        """
        if os.path.realpath(request.bundle) != request.bundle or not request.bundle.startswith(
            f"{self._shares}/"
        ):
            raise InvalidArgument(
                f"the bundle {request.bundle[:200]!r} is not in a share below {self._shares}"
            )

    def adjust(self, request: ContainerRequest, spec: Spec) -> None:
        """Take out of the spec what is about the host, in place.

        :raise InvalidArgument: it has hooks, which are programs of the host.
        """
        if any((spec.get("hooks") or {}).values()):
            raise InvalidArgument(
                f"container {request.container_id} has hooks: they are programs of the host"
            )
        process, linux = spec["process"], spec["linux"]
        for key in _PROCESS_KEYS:
            process.pop(key, None)
        for key in _LINUX_KEYS:
            linux.pop(key, None)
        linux["cgroupsPath"] = f"{POD_CGROUP}/{request.container_id}"
        resources = linux.get("resources")
        cpu = resources.get("cpu") if isinstance(resources, dict) else None
        if isinstance(cpu, dict):
            # Numbers of the host's CPUs and memory nodes.
            cpu.pop("cpus", None)
            cpu.pop("mems", None)


def pod_view(files: str, shm: SharedMemory, pid_namespace: str | None) -> PodView:
    """Return what the pod has ready: its files below the directory, and the namespaces of this machine."""
    namespaces: dict[str, str | None] = dict.fromkeys(_SHARED_NAMESPACES)
    if pid_namespace is not None:
        namespaces["pid"] = pid_namespace
    paths: Mapping[str, str] = {f"/etc/{name}": f"{files}/{name}" for name in POD_FILES}
    return PodView(namespaces, paths, shm.path)
