"""A pod in the host's kernel: namespaces without a process, shared files, and a Task service on its own socket.

<pod directory>/namespaces.json      how to know the pod's namespaces again
                etc/, shm/           what the containers share
                tasks/<container>/   what the Task service keeps of each container
                task.sock            the Task service
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from google.protobuf.message import Message

from common.cgroup import Hierarchies, read_metrics
from common.cgroup.paths import expand_slice
from common.errors import FailedPrecondition, status_of
from common.failpoints import Failpoint, failpoint
from common.journal import ConnectionJournal
from common.linux.namespaces import check_netns
from common.oci.spec import PodView
from common.process.exits import ExitStatus
from common.records import Record, read_record
from common.task.backend import TaskParts
from common.task.host_preparer import HostPreparer
from common.task.recovery import recover_containers
from common.task.service import TASK_METHODS, TASK_SERVICE_NAMES, TaskService
from common.task.unmade import RECORD_FILE as UNMADE_FILE
from common.task.unmade import UnmadeRecord
from common.ttrpc import Server, Service, only_root
from sandboxers.host.kept_pod import KeptPod, remove_console_sockets, shm_group
from sandboxers.host.pod_namespaces import RECORD_FILE as NAMESPACES_FILE
from sandboxers.host.pod_namespaces import NamespacesRecord, PodNamespaces
from sandboxers.host.shared_memory import HostSharedMemory, SharedMemory, SharedMemoryRecord
from sandboxers.pod_config import NamespaceMode, PodConfig, sysctls_of
from sandboxers.pod_files import pod_files, write_pod_files
from sandboxers.refusals import logged_status_of
from sandboxers.sandbox import Endpoint, SandboxExit
from sandboxers.task_sandbox import TaskSandbox

_RECORDS: dict[str, type[Record]] = {
    NAMESPACES_FILE: NamespacesRecord,
    "shm.json": SharedMemoryRecord,
    UNMADE_FILE: UnmadeRecord,
}


class PodSettings(NamedTuple):
    """What the configuration and the daemon say about all pods."""

    shm_size_mib: int
    stop_timeout_s: float
    unprivileged_ports: bool
    unprivileged_ping: bool
    may_raise_limits: bool
    hierarchies: Hierarchies
    journal: ConnectionJournal
    for_isulad: bool = False


class HostSandbox(TaskSandbox):
    """One pod (`Sandbox`)."""

    __slots__ = ("_namespaces", "_parts", "_settings", "_shm", "_tasks")

    def __init__(
        self, pod: PodConfig, directory: str, group: str, parts: TaskParts, settings: PodSettings
    ) -> None:
        """:param group: as `TaskSandbox` has it."""
        super().__init__(pod, directory, group, parts.store)
        self._parts = parts
        self._settings = settings
        self._namespaces = PodNamespaces(
            pod, parts.exits, self._on_init_death, needs_process=settings.for_isulad
        )
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
            failpoint(Failpoint.SANDBOX_NAMESPACES_MADE)
            write_pod_files(self._pod, f"{self._directory}/etc")
            failpoint(Failpoint.SANDBOX_FILES_WRITTEN)
            self._shm.make()
            undo.callback(self._shm.release)
            failpoint(Failpoint.SANDBOX_SHM_MADE)
            self._serve()
            undo.callback(self._close_server)
            failpoint(Failpoint.SANDBOX_LISTENING)
            self._keep()
            undo.callback(self._forget)
            failpoint(Failpoint.SANDBOX_DESCRIPTORS_KEPT)
            undo.pop_all()
        return self._endpoint_of(self._namespaces.init_pid)

    async def stop(self, timeout_s: float) -> None:
        """Kill what runs in the pod and release its namespaces; the Task service goes on answering."""
        await self._tasks.stop(timeout_s)
        failpoint(Failpoint.SANDBOX_CONTAINERS_KILLED)
        self._forget()
        try:
            async with asyncio.timeout(timeout_s):
                await self._namespaces.release()
        except TimeoutError:
            raise FailedPrecondition(
                f"killed, but still alive after {timeout_s:g} s: the pod's init"
            ) from None
        self._shm.release()
        self._keep_listener()

    async def destroy(self) -> None:
        """Stop, remove the containers, and stop listening; the directory itself is the registry's."""
        self._namespaces.find_init(self._directory)
        await self.stop(self._settings.stop_timeout_s)
        await self._tasks.delete_all()
        self._close_server()
        self._forget()

    async def recover(self, on_exit: SandboxExit, *, running: bool) -> Endpoint:
        """Take up the containers and connections that an earlier daemon has left, and listen on."""
        self._check_records()
        try:
            return await self._take_up(on_exit, running)
        except BaseException:
            self._tasks.let_go()
            raise

    def _check_records(self) -> None:
        """Read the records of all parts once, before anything is changed because of one of them."""
        for name, record_type in _RECORDS.items():
            with contextlib.suppress(FileNotFoundError):
                read_record(f"{self._directory}/{name}", record_type)

    async def _take_up(self, on_exit: SandboxExit, running: bool) -> Endpoint:
        self._on_exit = on_exit
        self._tasks.stopped = not running
        await recover_containers(self._tasks, f"{self._directory}/tasks")
        kept = KeptPod.take(self._store, self._group)
        if running:
            pids = self._tasks.live_pids()
            await self._namespaces.recover(
                pids, self._sysctls(), self._directory, kept.namespaces, kept.pidfd
            )
            self._shm.recover(pids, kept.shm)
            failpoint(Failpoint.RECOVERY_SHM_ATTACHED)
        else:
            kept.close()
        remove_console_sockets(self._directory)
        self._serve(kept.listener)
        if kept.listener is None:
            self._forget()
            self._keep()
        else:
            # Only the shared memory is another one: what had been kept is attached by now, and spent.
            self._store.remove(shm_group(self._group))
            self._keep_shm()
        failpoint(Failpoint.RECOVERY_SHM_KEPT)
        self._shm.settle()
        self._adopt_connections(self._settings.journal)
        return self._endpoint_of(self._namespaces.init_pid)

    async def forget_unlisted_execs(self, listed: Mapping[str, Collection[str]]) -> None:
        """Forget the execs that do not run and are not listed."""
        self._tasks.forget_unlisted_execs(listed)

    def abandoned(self) -> list[str]:
        """Return the containers that no engine seems to ask for any more."""
        return self._tasks.abandoned()

    async def collect(self, container_id: str) -> None:
        """Kill and remove an abandoned container."""
        await self._tasks.delete_container(self._tasks.container(container_id))

    def details(self) -> dict[str, Any]:
        """Tell where the pod's namespaces and containers are."""
        return {
            "namespaces": self._namespaces.joinable(),
            "containers": {
                c.id: self._details_of(c, c.init.state.value) for c in self._tasks.containers.values()
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

    def _sysctls(self) -> dict[str, str]:
        return sysctls_of(
            self._pod, ports=self._settings.unprivileged_ports, ping=self._settings.unprivileged_ping
        )

    def _make_server(self) -> Server:
        service = Service(TASK_METHODS, self._tasks)
        return Server(
            dict.fromkeys(TASK_SERVICE_NAMES, service),
            status_of=logged_status_of if self._settings.for_isulad else status_of,
            authorize=only_root,
            journal=self._settings.journal,
        )

    def _keep(self) -> None:
        """Let copies of what makes the pod be kept for a later daemon."""
        self._store.put(self._group, [self._listener, *self._namespaces.fds()])
        self._keep_shm()

    def _keep_shm(self) -> None:
        shm = self._shm.take_spare()
        if shm >= 0:
            self._store.put(shm_group(self._group), [shm])
            os.close(shm)

    def _forget(self) -> None:
        self._store.remove(self._group)
        self._store.remove(shm_group(self._group))

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
