"""The namespaces of a pod, without a process that keeps them: this process holds them open.

A new daemon finds them in the descriptor store, or in whatever runs in the pod. Where there is neither, there is
nothing in them either, and new ones are as good. The network namespace is the engine's, by its path.

An engine that wants to be told of a live process gets the init of a PID namespace that nobody else is in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from common.linux import namespaces
from common.linux.namespaces import Kind
from common.linux.pidfd import is_same_process, start_time
from common.log import get_logger
from common.process.exits import ExitStatus, ExitWatcher
from common.records import read_record, write_record
from sandboxers.host.pod_init import PodInit
from sandboxers.pod_config import NamespaceMode, PodConfig

RECORD_FILE = "namespaces.json"
_OCI_NAMES = {Kind.IPC: "ipc", Kind.UTS: "uts", Kind.PID: "pid", Kind.USER: "user"}

log = get_logger()


@dataclass(frozen=True, slots=True)
class NamespacesRecord:
    """By which a new daemon knows a pod's namespaces again: their inodes, and the init of a shared PID namespace."""

    VERSION: ClassVar[int] = 1

    inodes: dict[str, int]
    init_pid: int = 0
    init_start_time: int = 0


class PodNamespaces:
    """Owns a descriptor of each namespace, and the init of a PID namespace, if there is one."""

    __slots__ = ("_exits", "_held", "_init", "_needs_process", "_on_init_death", "_pod")

    def __init__(
        self,
        pod: PodConfig,
        exits: ExitWatcher,
        on_init_death: Callable[[ExitStatus], None],
        *,
        needs_process: bool = False,
    ) -> None:
        """:param on_init_death: called when the init of a shared PID namespace dies without release(); all
            containers die with it.
        :param needs_process: whether an init is wanted where the containers share no PID namespace, too.
        """
        self._pod = pod
        self._needs_process = needs_process
        self._exits = exits
        self._held: dict[Kind, int] = {}
        self._init: PodInit | None = None
        self._on_init_death = on_init_death

    @property
    def init_pid(self) -> int:
        """The pid of the init, or 0."""
        return self._init.pid if self._init is not None else 0

    def joinable(self) -> dict[str, str | None]:
        """Return {OCI namespace type: path that a runtime can join, or None for the host's}."""
        pod = self._pod
        found: dict[str, str | None] = {
            _OCI_NAMES[kind]: namespaces.path_of(fd) for kind, fd in self._held.items()
        }
        found["network"] = pod.netns_path or None
        if pod.has_host_network:
            # A host name belongs to the machine as long as its network does (engine contract section 5).
            found["uts"] = None
        if pod.ipc == NamespaceMode.NODE:
            found["ipc"] = None
        if pod.pid == NamespaceMode.NODE:
            found["pid"] = None
        return found

    async def make(self, sysctls: dict[str, str], directory: str) -> None:
        """Make them with these sysctls, and record them in `directory`; all or nothing."""
        pod, kinds = self._pod, self._kinds()
        hostname = pod.hostname if Kind.UTS in kinds and pod.hostname else None
        try:
            if Kind.USER in kinds or Kind.PID in kinds or self._needs_process:
                await self._hold(kinds, hostname, sysctls, directory)
            else:
                self._held = namespaces.create(kinds, hostname, sysctls, pod.netns_path or None)
                _save(directory, self._held)
        except BaseException:
            await self.release()
            raise

    def fds(self) -> list[int]:
        """Return the descriptors that a later daemon would need."""
        return [*self._held.values(), *([self._init.pidfd] if self._init is not None else [])]

    async def recover(
        self,
        pids: Iterable[int],
        sysctls: dict[str, str],
        directory: str,
        kept: Mapping[Kind, int],
        init_pidfd: int | None,
    ) -> None:
        """Hold again what an earlier daemon has made.

        :param pids: those that run in the pod.
        :param kept: descriptors of namespaces that were kept, which are taken over, as is the init's pidfd.
        """
        self._held.update(kept)
        try:
            record, _ = read_record(f"{directory}/{RECORD_FILE}", NamespacesRecord)
        except FileNotFoundError:
            record = NamespacesRecord({})
        if record.init_pid and is_same_process(record.init_pid, record.init_start_time):
            self._init = PodInit(self._exits, record.init_pid, init_pidfd, self._on_death)
            pids = [record.init_pid, *pids]
        elif record.init_pid:
            ended = self._exits.ended(record.init_pid, record.init_start_time, init_pidfd)
            if init_pidfd is not None:
                os.close(init_pidfd)
            self._on_death(ended or ExitStatus(255, 0, known=False))
            if self._shares_pids:
                return
        for pid in pids:
            self._hold_again(pid, record)
        if set(self._kinds()) - self._held.keys():
            namespaces.close_all(self._held)
            await self.make(sysctls, directory)

    def find_init(self, directory: str) -> None:
        """Take charge of an init that a daemon has left that was killed in the middle of a start."""
        if self._init is not None:
            return
        try:
            record, of_this_boot = read_record(f"{directory}/{RECORD_FILE}", NamespacesRecord)
        except FileNotFoundError:
            return
        if of_this_boot and record.init_pid and is_same_process(record.init_pid, record.init_start_time):
            self._init = PodInit(self._exits, record.init_pid, None, self._on_death)

    async def release(self) -> None:
        """Kill the init and let go of the namespaces. Idempotent."""
        if self._init is not None:
            await self._init.destroy()
            self._init = None
        namespaces.close_all(self._held)

    def _kinds(self) -> list[Kind]:
        pod, kinds = self._pod, []
        if pod.has_user_namespace:
            kinds.append(Kind.USER)
        if pod.ipc != NamespaceMode.NODE:
            kinds.append(Kind.IPC)
        if not pod.has_host_network:
            kinds.append(Kind.UTS)
        if self._shares_pids:
            kinds.append(Kind.PID)
        return kinds

    @property
    def _shares_pids(self) -> bool:
        return self._pod.pid == NamespaceMode.POD

    async def _hold(
        self, kinds: list[Kind], hostname: str | None, sysctls: dict[str, str], directory: str
    ) -> None:
        # Few pods need the helper process: what drives it is loaded with the first of them.
        from common.linux.pod_holder import HolderRequest, IdMapping, hold_namespaces

        pod, netns_path = self._pod, self._pod.netns_path or None
        userns_fd: int | None = None
        uids: tuple[IdMapping, ...] = ()
        gids: tuple[IdMapping, ...] = ()
        if Kind.USER in kinds:
            if netns_path is not None:
                userns_fd = _owner_of(netns_path)
            else:
                uids, gids = _mappings(pod.uid_mappings), _mappings(pod.gid_mappings)
        try:
            wanted = {*kinds, Kind.PID} if self._needs_process else kinds
            request = HolderRequest(wanted, hostname, sysctls, netns_path, userns_fd, uids, gids)
            held = await hold_namespaces(
                request, self._exits, lambda made: _save(directory, made.namespaces, made.pid)
            )
        finally:
            if userns_fd is not None:
                os.close(userns_fd)
        self._held = held.namespaces
        if not self._shares_pids and Kind.PID in self._held:
            os.close(self._held.pop(Kind.PID))
        if held.pid:
            self._init = PodInit(self._exits, held.pid, held.pidfd, self._on_death)

    def _hold_again(self, pid: int, record: NamespacesRecord) -> None:
        for kind in self._kinds():
            if kind not in self._held:
                try:
                    opened = namespaces.open_all({kind: f"/proc/{pid}/ns/{kind}"})
                except (FileNotFoundError, ProcessLookupError):
                    return
                if namespaces.namespace_id(opened[kind])[1] == record.inodes.get(kind.value):
                    self._held.update(opened)
                else:
                    namespaces.close_all(opened)

    def _on_death(self, status: ExitStatus) -> None:
        self._init = None
        if self._shares_pids:
            self._on_init_death(status)
        else:
            log.warning("sandbox.process_ended", sandbox_id=self._pod.sandbox_id, exit_code=status.code)


def _save(directory: str, held: dict[Kind, int], init_pid: int = 0) -> None:
    inodes = {kind.value: namespaces.namespace_id(fd)[1] for kind, fd in held.items()}
    init_start_time = start_time(init_pid) if init_pid else 0
    write_record(f"{directory}/{RECORD_FILE}", NamespacesRecord(inodes, init_pid, init_start_time))


def _owner_of(netns_path: str) -> int:
    fd = os.open(netns_path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return namespaces.owner_userns(fd)
    finally:
        os.close(fd)


def _mappings(entries: list[list[int]]) -> tuple[tuple[int, int, int], ...]:
    return tuple((inside, outside, count) for inside, outside, count in entries)
