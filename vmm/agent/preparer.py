"""What must be true in a guest before a container runs: as on a host, with a spec that was written for a host."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Final, NamedTuple

from common.cgroup import Hierarchies
from common.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument
from common.linux.mounts import unmount_all
from common.log import get_logger
from common.oci.spec import PodView, Spec
from common.records import write_no_record
from common.task.backend import ContainerRequest, PreparedContainer
from common.task.host_preparer import HostPreparer
from vmm.agent.aside import Aside
from vmm.agent.devices import settle_share
from vmm.agent.runtime import MountNamespaces

POD_FILES: Final = ("hostname", "hosts", "resolv.conf")

# The guest is the pod: these are its own, and containers live in them.
_SHARED_NAMESPACES: Final = ("network", "ipc", "uts")

# Labels and profiles of modules that guard the host.
_PROCESS_KEYS: Final = ("apparmorProfile", "selinuxLabel")
_LINUX_KEYS: Final = ("mountLabel", "intelRdt")

# Engines, and the host's part, have 10 s for all that the end of a container takes.
_LET_GO_TIMEOUT_S: Final = 4.0

log = get_logger()


class SharedMemory:
    """The directory behind the pod's /dev/shm: always there, since nobody else reads this machine's mount table."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    def attach(self, user: str) -> None:
        """It is attached."""

    def detach(self, user: str) -> None:
        """It stays."""


class Directories(NamedTuple):
    """Where containers get a directory of their own, below which every bundle must lie, and their parent cgroup."""

    tasks: str
    shares: str
    cgroup: str


class GuestPreparer(HostPreparer):
    """Prepares the containers of the guest's pod (`ContainerPreparer`)."""

    __slots__ = ("_aside", "_directories", "_namespaces", "_released")

    def __init__(
        self,
        view: Callable[[], PodView],
        shm: SharedMemory,
        directories: Directories,
        hierarchies: Hierarchies,
        may_raise_limits: bool,
        namespaces: MountNamespaces,
    ) -> None:
        """:param namespaces: those of the containers; the other arguments are those of `HostPreparer`."""
        super().__init__(view, shm, directories.tasks, hierarchies, may_raise_limits, write_no_record)
        self._directories = directories
        self._namespaces = namespaces
        self._released: set[str] = set()
        self._aside = Aside()

    def check_request(self, request: ContainerRequest) -> None:
        """Refuse a bundle that is not in a share, however it is spelled, or that an earlier container still has.

        :raise InvalidArgument: it is not in a share.
        :raise FailedPrecondition: the earlier container is let go of at this moment.
        """
        if self._aside.is_busy(request.bundle):
            raise FailedPrecondition(
                f"the files of an earlier container in {request.bundle} are still open:"
                " the host does not answer for them; try again when it does"
            )
        shares = self._directories.shares
        if os.path.realpath(request.bundle) != request.bundle or not request.bundle.startswith(f"{shares}/"):
            raise InvalidArgument(f"the bundle {request.bundle[:200]!r} is not in a share below {shares}")

    def adjust(self, request: ContainerRequest, spec: Spec, undo: AsyncExitStack) -> None:
        """Take out of the spec what is about the host, in place; what it names in the share is mounted.

        :raise InvalidArgument: it has hooks, which are programs of the host.
        """
        if any((spec.get("hooks") or {}).values()):
            raise InvalidArgument(
                f"container {request.container_id} has hooks: they are programs of the host"
            )
        undo.push_async_callback(self._let_go, request.container_id, request.bundle)
        _mount_submounts(request.bundle, spec)
        process, linux = spec["process"], spec["linux"]
        for key in _PROCESS_KEYS:
            process.pop(key, None)
        for key in _LINUX_KEYS:
            linux.pop(key, None)
        linux["cgroupsPath"] = f"{self._directories.cgroup}/{request.container_id}"
        resources = linux.get("resources")
        cpu = resources.get("cpu") if isinstance(resources, dict) else None
        if isinstance(cpu, dict):
            # Numbers of the host's CPUs and memory nodes.
            cpu.pop("cpus", None)
            cpu.pop("mems", None)

    async def release(self, container: PreparedContainer) -> None:
        """Let go of the bundle as well: what this kernel knows of it is open, and mounted, on the host."""
        await super().release(container)
        bundle = os.path.dirname(container.rootfs)
        if bundle.startswith(f"{self._directories.shares}/"):
            await self._let_go(os.path.basename(container.directory), bundle)

    async def _let_go(self, container_id: str, bundle: str) -> None:
        if not self._aside.is_busy(bundle):
            # Both names may be another container's by the time that the host answers: it has the descriptor alone.
            namespace = self._namespaces.take(container_id)
            self._aside.start(bundle, lambda: self._let_go_of_bundle(bundle, namespace))
        try:
            await self._aside.wait(bundle, _LET_GO_TIMEOUT_S)
        except DeadlineExceeded as error:
            # When the host answers again it is done: nothing of the container is left to wait for.
            log.warning("container.bundle_held", container_id=container_id, error=error)

    def _let_go_of_bundle(self, bundle: str, namespace: int | None) -> None:
        """In a thread: of what is the loop's it uses the set alone, in steps that are each a whole one."""
        try:
            settle_share(os.path.dirname(bundle))
        finally:
            if namespace is not None:
                os.close(namespace)
        unmount_all(bundle)
        # It forgets what it looks for and does not find. The host removes a bundle after this: the next time, then.
        self._released.difference_update([path for path in list(self._released) if not os.path.lexists(path)])
        self._released.add(bundle)


def _mount_submounts(bundle: str, spec: Spec) -> None:
    """Let this kernel mount what the host has mounted in a bundle, which it does when somebody comes by.

    Were that a process of the container, its end would be the end of the mount as well, while the host is still asked
    for files that it had open (`settle_share`).
    """
    sources = [str(mount.get("source")) for mount in spec.get("mounts") or []]
    for path in (f"{bundle}/rootfs", *(source for source in sources if source.startswith(f"{bundle}/"))):
        with contextlib.suppress(OSError):
            os.stat(f"{path}/.")  # stat(2) of the path itself mounts nothing


def pod_view(files: str, shm: SharedMemory, pid_namespace: str | None) -> PodView:
    """Return what the pod has ready: its files below the directory, and the namespaces of this machine."""
    namespaces: dict[str, str | None] = dict.fromkeys(_SHARED_NAMESPACES)
    if pid_namespace is not None:
        namespaces["pid"] = pid_namespace
    paths: Mapping[str, str] = {f"/etc/{name}": f"{files}/{name}" for name in POD_FILES}
    return PodView(namespaces, paths, shm.path)
