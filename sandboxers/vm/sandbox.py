"""A pod in a virtual machine of its own, whatever the hypervisor.

<pod directory>/machine/             the hypervisor's: sockets, console, logs, record
                bundles/, share/     what the guest sees of the host (`share.py`)
                containers/<id>/     what the relay keeps of each container
                task.sock            the Task service
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
import time
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final, NamedTuple

from google.protobuf.message import Message

from common.cgroup import Hierarchies, read_metrics
from common.descriptors.store import DescriptorStore
from common.errors import DeadlineExceeded, SandboxdError, Unavailable, status_of
from common.failpoints import Failpoint, failpoint
from common.journal import ConnectionJournal
from common.linux.namespaces import check_netns
from common.log import bound, get_logger
from common.task.backend import EventSink
from common.task.service import TASK_SERVICE_NAMES
from common.transport import transport_of
from common.ttrpc import Service, only_root
from common.ttrpc.relay import RelayServer
from proto.gen.sandboxd.agent.v1 import agent_pb2 as agent
from sandboxers.pod_config import NamespaceMode, PodConfig, sysctls_of
from sandboxers.pod_files import pod_file_texts
from sandboxers.refusals import logged_status_of
from sandboxers.sandbox import Endpoint, SandboxExit
from sandboxers.task_sandbox import TaskSandbox
from sandboxers.vm.boot import image_boot
from sandboxers.vm.config import GuestConfig, SizeConfig
from sandboxers.vm.containers import PidSource
from sandboxers.vm.late_network import LateNetwork
from sandboxers.vm.network import AttachedInterface, attach_network, detach_network, network_devices
from sandboxers.vm.overhead import MachineCgroup
from sandboxers.vm.port_forward import PortForward
from sandboxers.vm.preparer import GuestPreparer
from sandboxers.vm.recovery import adopt_containers, read_containers
from sandboxers.vm.share import SHARE_TAG, PodShare
from sandboxers.vm.sizing import size_of
from sandboxers.vm.tasks import GUEST_TASK_METHODS, GuestTasks
from vmm.guest.client import GuestClient
from vmm.guest.reception import Reception
from vmm.hypervisors.hypervisor import ExitReason, GuestExit, Hypervisor, VirtualMachine
from vmm.hypervisors.machine import Device, Place, Share, Vsock
from vmm.image.manifest import load
from vmm.protocol import HOST_PORT, HOST_PORT_PARAMETER

_CONFIGURE_TIMEOUT_S: Final = 30.0
# Long: an engine that has restarted takes a failed Wait for the end of its container, and guests may be slow.
_CONNECT_TIMEOUT_S: Final = 30.0
_ENTROPY_BYTES: Final = 64
_LAST_WORDS_S: Final = 1.0
_EXIT_CODES: Final = {ExitReason.STOPPED: 0, ExitReason.GUEST_ENDED: 0}
_EXIT_CODE: Final = 255
_GUEST_GROUP: Final = "g"
_KERNEL_VSOCK: Final = "vsock://"

log = get_logger()


class VmSettings(NamedTuple):
    """What the configuration and the daemon say about all pods."""

    guest: GuestConfig
    size: SizeConfig
    shm_size_mib: int
    stop_timeout_s: float
    unprivileged_ports: bool
    unprivileged_ping: bool
    hierarchies: Hierarchies
    journal: ConnectionJournal
    store: DescriptorStore
    events: EventSink
    pids: PidSource
    for_isulad: bool = False


class MachineTransport:
    """The way to a machine's ports (`Transport`), which a new daemon learns when it recovers the machine."""

    __slots__ = ("_machine", "_store")

    def __init__(self, machine: VirtualMachine, store: DescriptorStore) -> None:
        self._machine = machine
        self._store = store

    async def connect(self, port: int, timeout_s: float) -> socket.socket:
        """Connect to a port of the guest."""
        return await transport_of(self._machine.vsock, self._store).connect(port, timeout_s)

    def listen(self, port: int) -> socket.socket:
        """Listen on a port for the guest."""
        return transport_of(self._machine.vsock).listen(port)

    def is_peer(self, sock: socket.socket) -> bool:
        """Tell whether a connection comes from this guest."""
        return transport_of(self._machine.vsock).is_peer(sock)


class VmSandbox(TaskSandbox):
    """One pod (`Sandbox`)."""

    __slots__ = (
        "_cgroup",
        "_condemned",
        "_ending",
        "_guest",
        "_machine",
        "_ports",
        "_reception",
        "_settings",
        "_share",
        "_tasks",
        "_transport",
    )

    _server: RelayServer | None

    def __init__(
        self, pod: PodConfig, directory: str, group: str, hypervisor: Hypervisor, settings: VmSettings
    ) -> None:
        """:param group: as `TaskSandbox` has it."""
        super().__init__(pod, directory, group, settings.store)
        self._settings = settings
        self._cgroup = MachineCgroup(settings.hierarchies, pod.cgroup_parent, pod.sandbox_id)
        self._share = PodShare(directory)
        self._machine = hypervisor.machine(
            Place(f"{directory}/machine", pod.netns_path, self._cgroup.directories())
        )
        self._transport = MachineTransport(self._machine, settings.store)
        self._guest = GuestClient(self._transport)
        self._reception: Reception | None = None
        self._condemned = ""
        self._ending: asyncio.Task[None] | None = None
        self._ports = PortForward(pod.netns_path, self._guest) if pod.netns_path else None
        network = None
        if settings.for_isulad and pod.netns_path:
            network = LateNetwork(pod.netns_path, self._machine, self._guest)
        preparer = GuestPreparer(self._share, self._guest, self._machine, network)
        self._tasks = GuestTasks(
            pod.sandbox_id,
            f"{directory}/containers",
            self._guest,
            preparer,
            settings.events,
            settings.store,
            settings.pids,
            self._condemn,
            stats_as_v1=settings.for_isulad,
        )

    async def start(self, on_exit: SandboxExit) -> Endpoint:
        """Boot the machine, make it the pod's, and serve its containers; all or nothing."""
        self._on_exit = on_exit
        if self._pod.netns_path:
            check_netns(self._pod.netns_path)
        image = load(self._settings.guest.image)
        size = size_of(self._pod, self._settings.size)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._cgroup.remove)
            self._cgroup.make()
            failpoint(Failpoint.SANDBOX_CGROUP_MADE)
            undo.callback(self._share.remove)
            self._share.make()
            failpoint(Failpoint.SANDBOX_SHARE_MADE)
            taps = undo.enter_context(contextlib.ExitStack())
            interfaces = self._attach_network(undo, taps)
            failpoint(Failpoint.SANDBOX_NETWORK_ATTACHED)
            for name in ("machine", "containers"):
                os.makedirs(f"{self._directory}/{name}", 0o700, exist_ok=True)
            undo.callback(_remove_files, f"{self._directory}/machine")
            self._receive(None)
            undo.callback(self._close_reception)
            devices: list[Device] = [Vsock(), Share(SHARE_TAG, self._share.path)]
            devices += network_devices(interfaces)
            undo.callback(self._guest.close)
            undo.push_async_callback(self._machine.stop, 0)
            arguments = self._settings.guest.kernel_arguments.split()
            if self._host_port != HOST_PORT:
                arguments.append(f"{HOST_PORT_PARAMETER}={self._host_port}")
            boot = dataclasses.replace(
                image_boot(image, arguments),
                vcpus=size.vcpus,
                memory_mib=size.memory_mib,
                slots=self._settings.size.slots,
            )
            await self._machine.start(boot, devices, self._on_machine_exit)
            # The hypervisor has its own copies, with which the taps go.
            taps.close()
            failpoint(Failpoint.SANDBOX_MACHINE_STARTED)
            await self._announced()
            failpoint(Failpoint.SANDBOX_GUEST_ANNOUNCED)
            await self._configure(interfaces)
            failpoint(Failpoint.SANDBOX_GUEST_CONFIGURED)
            if self._ports is not None:
                self._ports.listen()
                undo.callback(self._ports.close)
            self._serve()
            undo.callback(self._close_server)
            failpoint(Failpoint.SANDBOX_LISTENING)
            self._keep()
            undo.callback(self._forget)
            failpoint(Failpoint.SANDBOX_DESCRIPTORS_KEPT)
            undo.pop_all()
        return self._endpoint_of(self._machine.pids().get("qemu", 0))

    async def stop(self, timeout_s: float) -> None:
        """End the machine and with it all containers; the Task service goes on answering."""
        self._tasks.stopped = True
        grace_s = timeout_s / 2 if await self._has_asked_to_end(timeout_s / 2) else 0.0
        await self._machine.stop(grace_s)
        failpoint(Failpoint.SANDBOX_CONTAINERS_KILLED)
        self._end("the pod was stopped")
        if self._ports is not None:
            self._ports.close()
        if self._pod.netns_path:
            detach_network(self._pod.netns_path)
        await self._cgroup.remove()
        self._forget()
        self._close_reception()
        self._keep_listener()

    async def destroy(self) -> None:
        """Stop, release what was prepared for containers, stop listening; the directory itself is the registry's."""
        await self.stop(self._settings.stop_timeout_s)
        for container in list(self._tasks.containers.values()):
            await self._tasks.release(container)
        self._share.remove()
        self._close_server()
        self._guest.close()
        self._forget()

    async def recover(self, on_exit: SandboxExit, *, running: bool) -> Endpoint:
        """Take up the machine, containers and connections that an earlier daemon has left."""
        self._on_exit = on_exit
        self._tasks.stopped = not running
        # Records first, those of containers and then the machine's: what cannot be understood is left as it is.
        containers = read_containers(self._tasks.directory)
        alive = await self._machine.recover(self._on_machine_exit)
        adopt_containers(self._tasks, containers)
        listener, reception = self._take_kept()
        if alive:
            self._receive(reception)
            self._adopt_guest_connections()
            if self._ports is not None and running:
                self._ports.listen()
        elif reception is not None:
            reception.close()
        self._serve(listener)
        self._forget()
        self._keep()
        ended = self._machine.exit
        if not alive or ended is not None:
            # Perhaps only just, when nothing of it was taken up yet.
            self._end(ended.message if ended else "the machine ended while no sandboxd watched")
        self._adopt_connections(self._settings.journal)
        if not alive and running:
            on_exit(_EXIT_CODE, ended.exited_at_ns if ended else time.time_ns())
        return self._endpoint_of(self._machine.pids().get("qemu", 0))

    async def forget_unlisted_execs(self, listed: Mapping[str, Collection[str]]) -> None:
        """Forget the execs that do not run and are not listed."""
        await self._tasks.forget_unlisted_execs(listed)

    def abandoned(self) -> list[str]:
        """Return the containers of an earlier daemon that no engine seems to ask for any more."""
        return self._tasks.abandoned()

    async def collect(self, container_id: str) -> None:
        """Kill and remove an abandoned container."""
        await self._tasks.collect(container_id)

    def details(self) -> dict[str, Any]:
        """Tell where the machine and its containers are."""
        ended = self._machine.exit
        return {
            "machine": self._machine.pids(),
            "console": self._machine.console_path,
            "ended": self._tasks.ended if ended else "",
            "containers": {c.id: self._details_of(c, c.state) for c in self._tasks.containers.values()},
        }

    def metrics(self) -> Message | None:
        """Measure the pod's cgroup, which is the engine's; None if it has given none."""
        return read_metrics(self._cgroup.parent) if self._cgroup.parent is not None else None

    # -- the machine -----------------------------------------------------------------------------------

    def _attach_network(self, undo: AsyncExitStack, taps: contextlib.ExitStack) -> list[AttachedInterface]:
        if not self._pod.netns_path:
            return []
        interfaces = attach_network(self._pod.netns_path)
        undo.callback(detach_network, self._pod.netns_path)
        for each in interfaces:
            taps.callback(os.close, each.tap_fd)
        return interfaces

    async def _announced(self) -> None:
        assert self._reception is not None
        announcement = await self._reception.announcement(self._settings.guest.start_timeout_s)
        log.debug(
            "guest.announced",
            sandbox_id=self._pod.sandbox_id,
            agent=announcement.agent_version,
            kernel=announcement.kernel_release,
            booted_ms=announcement.ready_ns // 10**6,
        )

    async def _configure(self, interfaces: list[AttachedInterface]) -> None:
        texts = pod_file_texts(self._pod)
        settings = self._settings
        sysctls = sysctls_of(self._pod, ports=settings.unprivileged_ports, ping=settings.unprivileged_ping)
        request = agent.ConfigureRequest(
            sandbox_id=self._pod.sandbox_id,
            hostname=texts["hostname"].strip(),
            hosts=texts["hosts"],
            resolv_conf=texts["resolv.conf"],
            sysctls=sysctls,
            shm_size_bytes=settings.shm_size_mib << 20,
            entropy=os.urandom(_ENTROPY_BYTES),
            interfaces=[each.interface for each in interfaces],
            shares=[agent.MountShareRequest(tag=SHARE_TAG)],
            shared_pid_namespace=self._pod.pid == NamespaceMode.POD,
        )
        await self._guest.configure(request, _CONFIGURE_TIMEOUT_S)
        reading = await self._guest.set_clock(_CONFIGURE_TIMEOUT_S)
        log.debug(
            "guest.clock_set",
            sandbox_id=self._pod.sandbox_id,
            drift_us=reading.drift_ns // 1000,
            source=reading.source,
        )

    async def _has_asked_to_end(self, timeout_s: float) -> bool:
        """Let a guest write back what it holds of its disks, if it has any: nothing else of it is not on the host."""
        ended = self._machine.exit is not None or not self._machine.pids()
        if ended or not self._machine.devices() - {"vsock", SHARE_TAG} - {f"net{n}" for n in range(16)}:
            return False
        try:
            await self._guest.shutdown(timeout_s)
        except SandboxdError as error:
            log.warning("guest.not_shut_down", sandbox_id=self._pod.sandbox_id, error=error)
            return False
        return True

    def _on_machine_exit(self, ended: GuestExit) -> None:
        """Called once when the machine has ended, for whatever reason."""
        message = self._condemned or ended.message
        code = _EXIT_CODE if self._condemned else _EXIT_CODES.get(ended.reason, _EXIT_CODE)
        with bound(sandbox_id=self._pod.sandbox_id):
            if ended.reason is not ExitReason.STOPPED:
                log.warning("machine.ended", reason=ended.reason.value, message=message)
            if self._reception is not None:
                self._reception.lose(Unavailable(message))
            self._end(message, ended.exited_at_ns)
            if self._on_exit is not None:
                self._on_exit(code, ended.exited_at_ns)

    def _end(self, reason: str, exited_at_ns: int = 0) -> None:
        self._guest.lose(reason)
        self._tasks.end(reason, exited_at_ns or time.time_ns())
        if self._server is not None:
            self._server.bereave(reason)

    def _condemn(self, reason: str) -> None:
        """The agent has broken its word, or its connection: nothing it says counts any more."""
        self._ending = asyncio.get_running_loop().create_task(self._end_condemned(reason))

    async def _end_condemned(self, reason: str) -> None:
        try:
            # Where the machine is ending, its own end is the reason.
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._machine.wait()
        except TimeoutError:
            self._condemned = f"the guest's agent cannot be trusted any more: {reason}"
            log.error("guest.condemned", sandbox_id=self._pod.sandbox_id, reason=reason)
            with contextlib.suppress(SandboxdError):
                await self._machine.stop(0)

    # -- who talks to us -------------------------------------------------------------------------------

    def _receive(self, listener: socket.socket | None) -> None:
        self._reception = Reception(
            self._transport,
            self._tasks.on_event,
            listener,
            port=self._host_port,
            journal=self._settings.journal,
        )

    def _adopt_guest_connections(self) -> None:
        assert self._reception is not None
        name = self._reception.listener.getsockname()
        # Others than unix sockets have no path, and are connected anew by the guest.
        if isinstance(name, str):
            self._settings.journal.adopt_into(self._reception.server, name)

    @property
    def _host_port(self) -> int:
        """Where the guest finds this daemon. The kernel's vsock has one port for all machines: there it is the CID."""
        address = self._machine.vsock
        return int(address.removeprefix(_KERNEL_VSOCK)) if address.startswith(_KERNEL_VSOCK) else HOST_PORT

    def _close_reception(self) -> None:
        if self._reception is not None:
            self._reception.close()
            self._reception = None

    def _make_server(self) -> RelayServer:
        service = Service(GUEST_TASK_METHODS, self._tasks)
        return RelayServer(
            dict.fromkeys(TASK_SERVICE_NAMES, service),
            links=self._settings.journal,
            connect=self._connect,
            on_lost=self._condemn,
            status_of=logged_status_of if self._settings.for_isulad else status_of,
            authorize=only_root,
        )

    async def _connect(self) -> socket.socket:
        try:
            return await self._guest.open_tasks(_CONNECT_TIMEOUT_S)
        except DeadlineExceeded:
            self._tasks.doubt()
            raise

    def _keep(self) -> None:
        """Let copies of what makes the pod be kept for a later daemon."""
        self._store.put(self._group, [self._listener])
        if self._reception is not None:
            self._store.put(_GUEST_GROUP + self._group[1:], [self._reception.listener.fileno()])

    def _forget(self) -> None:
        self._store.remove(self._group)
        self._store.remove(_GUEST_GROUP + self._group[1:])

    def _take_kept(self) -> tuple[socket.socket | None, socket.socket | None]:
        kept = []
        for name in (self._group, _GUEST_GROUP + self._group[1:]):
            fds = self._store.take(name)
            kept.append(socket.socket(fileno=fds[0]) if fds else None)
        return kept[0], kept[1]


def _remove_files(directory: str) -> None:
    for name in os.listdir(directory):
        os.unlink(f"{directory}/{name}")
    os.rmdir(directory)
