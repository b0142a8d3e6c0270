"""A pod of plain containers: namespaces without a process, shared files, and a Task service on its own socket.

<pod directory>/namespaces.json      how to know the pod's namespaces again
                etc/, shm/           what the containers share
                tasks/<container>/   what the Task service keeps of each container
                task.sock            the Task service
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from google.protobuf.message import Message

from common.cgroup import Hierarchies, read_metrics
from common.cgroup.paths import expand_slice
from common.errors import FailedPrecondition, status_of
from common.linux.namespaces import check_netns
from common.oci.spec import PodView
from common.process.exits import ExitStatus
from common.task.host_preparer import HostPreparer
from common.task.pod import TaskParts
from common.task.service import TASK_METHODS, TASK_SERVICE_NAMES, TaskService
from common.ttrpc import PeerCredentials, Server, Service
from sandboxers.pod_config import NamespaceMode, PodConfig
from sandboxers.registry import TASK_SOCKET
from sandboxers.runc.pod_files import pod_files, write_pod_files
from sandboxers.runc.pod_namespaces import PodNamespaces
from sandboxers.runc.shared_memory import HostSharedMemory, SharedMemory
from sandboxers.sandbox import Endpoint, SandboxExit

_LISTEN_BACKLOG = 128


class PodSettings(NamedTuple):
    """What the configuration and the daemon say about all pods."""

    shm_size_mib: int
    stop_timeout_s: float
    unprivileged_ports: bool
    unprivileged_ping: bool
    may_raise_limits: bool
    hierarchies: Hierarchies


class RuncSandbox:
    """One pod (`Sandbox`)."""

    __slots__ = (
        "_directory",
        "_namespaces",
        "_on_exit",
        "_parts",
        "_pod",
        "_server",
        "_settings",
        "_shm",
        "_tasks",
    )

    def __init__(self, pod: PodConfig, directory: str, parts: TaskParts, settings: PodSettings) -> None:
        self._pod = pod
        self._directory = directory
        self._parts = parts
        self._settings = settings
        self._server: Server | None = None
        self._namespaces = PodNamespaces(pod, parts.exits, self._on_init_death)
        self._on_exit: SandboxExit | None = None
        self._shm = _shared_memory(pod, f"{directory}/shm", settings.shm_size_mib)
        preparer = HostPreparer(
            self._view, self._shm, f"{directory}/tasks", settings.hierarchies, settings.may_raise_limits
        )
        self._tasks = TaskService(pod.sandbox_id, parts, preparer, directory)

    async def start(self, on_exit: SandboxExit) -> Endpoint:
        """Make namespaces, files, shared memory and the Task service's socket, in this order, or nothing."""
        self._on_exit = on_exit
        if self._pod.netns_path:
            check_netns(self._pod.netns_path)
        self._parts.primer.prime()
        async with AsyncExitStack() as undo:
            await self._namespaces.make(self._sysctls(), self._directory)
            undo.push_async_callback(self._namespaces.release)
            write_pod_files(self._pod, f"{self._directory}/etc")
            self._shm.make()
            undo.callback(self._shm.release)
            self._listen()
            undo.pop_all()
        return self._endpoint

    async def stop(self, timeout_s: float) -> None:
        """Kill what runs in the pod and release its namespaces; the Task service goes on answering."""
        await self._tasks.stop(timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                await self._namespaces.release()
        except TimeoutError:
            raise FailedPrecondition(
                f"killed, but still alive after {timeout_s:g} s: the pod's init"
            ) from None
        self._shm.release()

    async def destroy(self) -> None:
        """Stop, remove the containers, and stop listening; the directory itself is the registry's."""
        self._namespaces.find_init(self._directory)
        await self.stop(self._settings.stop_timeout_s)
        await self._tasks.delete_all()
        if self._server is not None:
            self._server.close()
            self._server = None

    async def recover(self, on_exit: SandboxExit, *, running: bool) -> Endpoint:
        """Listen again on the same path, and take up the containers that an earlier daemon has left."""
        self._on_exit = on_exit
        self._tasks.stopped = not running
        await self._tasks.recover(f"{self._directory}/tasks")
        if running:
            pids = self._tasks.live_pids()
            await self._namespaces.recover(pids, self._sysctls(), self._directory)
            self._shm.recover(pids)
        self._listen()
        return self._endpoint

    def details(self) -> dict[str, Any]:
        """Tell where the pod's namespaces and containers are."""
        return {
            "namespaces": self._namespaces.joinable(),
            "containers": {
                c.id: {"pid": c.init.pid, "state": c.init.state.value}
                for c in self._tasks.containers.values()
            },
        }

    def metrics(self) -> Message | None:
        """Measure the pod's cgroup, which is the engine's; None if it has given none."""
        parent = self._pod.cgroup_parent
        if not parent:
            return None
        path = parent if "/" in parent or not parent.endswith(".slice") else expand_slice(parent)
        return read_metrics(self._settings.hierarchies.at(path))

    # -- what is made ------------------------------------------------------------------------------

    @property
    def _endpoint(self) -> Endpoint:
        return Endpoint(f"ttrpc+unix://{self._directory}/{TASK_SOCKET}", self._namespaces.init_pid)

    def _sysctls(self) -> dict[str, str]:
        """Return the pod's sysctls over the defaults that engines give a pod with a network of its own."""
        defaults = {}
        if not self._pod.has_host_network:
            if self._settings.unprivileged_ports:
                defaults["net.ipv4.ip_unprivileged_port_start"] = "0"
            if self._settings.unprivileged_ping and not self._pod.has_user_namespace:
                defaults["net.ipv4.ping_group_range"] = "0 2147483647"
        return {**defaults, **self._pod.sysctls}

    def _listen(self) -> None:
        path = f"{self._directory}/{TASK_SOCKET}"
        if os.path.lexists(path):
            os.unlink(path)
        listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        old_mask = os.umask(0o177)
        try:
            listener.bind(path)
            listener.listen(_LISTEN_BACKLOG)
        except BaseException:
            listener.close()
            raise
        finally:
            os.umask(old_mask)
        service = Service(TASK_METHODS, self._tasks)
        self._server = Server(
            dict.fromkeys(TASK_SERVICE_NAMES, service), status_of=status_of, authorize=_is_root
        )
        self._server.listen(listener)

    def _on_init_death(self, status: ExitStatus) -> None:
        """The kernel has killed all containers with it: the pod is no more."""
        if self._on_exit is not None:
            self._on_exit(status.code, status.exited_at_ns or time.time_ns())

    def _view(self) -> PodView:
        return PodView(self._namespaces.joinable(), pod_files(f"{self._directory}/etc"), self._shm.path)


def _shared_memory(pod: PodConfig, path: str, size_mib: int) -> SharedMemory | HostSharedMemory:
    if pod.ipc == NamespaceMode.NODE:
        return HostSharedMemory()
    owner = (_root_of(pod.uid_mappings), _root_of(pod.gid_mappings))
    return SharedMemory(path, size_mib << 20, owner)


def _root_of(mappings: list[list[int]]) -> int:
    return next((outside for inside, outside, _ in mappings if inside == 0), 0)


def _is_root(peer: PeerCredentials) -> bool:
    return peer.uid == 0
