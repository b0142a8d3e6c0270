"""The Sandbox service: what a host says to its guest about the pod as a whole (proto/sandboxd/agent/v1/agent.proto)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from google.protobuf.empty_pb2 import Empty

from common.errors import FailedPrecondition, InvalidArgument, SandboxdError
from common.identifiers import check_identifier
from common.linux.mounts import mount_tmpfs, unmount_stack
from common.linux.sysctls import write_sysctls
from common.log import get_logger
from common.oci.spec import PodView
from common.process.exits import ExitWatcher
from common.task.service import TaskService
from common.ttrpc import CallContext, Method
from proto.gen.sandboxd.agent.v1 import agent_pb2 as api
from vmm.agent import clock, devices, identity, network
from vmm.agent.kernel_files import read
from vmm.agent.preparer import SharedMemory, pod_view
from vmm.agent.streams import Streams

_STOP_TIMEOUT_S = 5.0
_SHM_LIMIT_BYTES = 1 << 40
_TICKS = os.sysconf("SC_CLK_TCK")
_BUSY_FIELDS = (0, 1, 2, 5, 6, 7)  # /proc/stat: user, nice, system, irq, softirq, steal

log = get_logger()


class SandboxService:
    """The pod of this guest. Each method may be called again with the same request."""

    __slots__ = ("_configured", "_directory", "_end", "_exits", "_pid_namespace", "_streams", "shm", "tasks")

    def __init__(self, directory: str, streams: Streams, exits: ExitWatcher, end: Callable[[], None]) -> None:
        """:param end: resets the machine."""
        self._directory = directory
        self._streams = streams
        self._exits = exits
        self._end = end
        self._configured: bytes | None = None
        self._pid_namespace: str | None = None
        self.shm = SharedMemory(f"{directory}/shm")
        self.tasks: TaskService | None = None
        """Set by whoever assembles both: the Task service, which asks this one for the view of the pod."""

    def view(self) -> PodView:
        """Return what the pod has ready.

        :raise FailedPrecondition: the host has not said what it is.
        """
        if self._configured is None:
            raise FailedPrecondition("the guest is not configured yet: Sandbox.Configure comes first")
        return pod_view(f"{self._directory}/pod", self.shm, self._pid_namespace)

    async def configure(self, request: api.ConfigureRequest, _: CallContext) -> Empty:
        """Become a pod, or hear once more which one.

        :raise FailedPrecondition: this is another pod already.
        """
        check_identifier("sandbox", request.sandbox_id)
        identity.seed(request.entropy)
        if request.clock_ns:
            clock.set_clock(request.clock_ns)
        request.ClearField("entropy")
        request.ClearField("clock_ns")
        wanted = request.SerializeToString(deterministic=True)
        if self._configured is None:
            await self._become(request)
            self._configured = wanted
            log.info("sandbox.configured", sandbox_id=request.sandbox_id)
        elif self._configured != wanted:
            raise FailedPrecondition("the guest is configured already, and differently")
        return Empty()

    async def _become(self, request: api.ConfigureRequest) -> None:
        identity.set_hostname(request.hostname)
        identity.write_files(
            f"{self._directory}/pod",
            {
                "hostname": (request.hostname or os.uname().nodename) + "\n",
                "hosts": request.hosts,
                "resolv.conf": request.resolv_conf,
            },
        )
        self._mount_shm(request.shm_size_bytes)
        write_sysctls(request.sysctls)
        await network.raise_loopback()
        for interface in request.interfaces:
            await network.add_interface(interface)
        await network.add_routes(request.routes, request.neighbours)
        for share in request.shares:
            await devices.mount_share(share.tag, read_only=share.read_only)
        if request.shared_pid_namespace and self._pid_namespace is None:
            from vmm.agent.pid_namespace import make_pid_namespace  # late: few pods share one

            self._pid_namespace = make_pid_namespace(self._exits)

    def _mount_shm(self, size_bytes: int) -> None:
        if not 0 < size_bytes <= _SHM_LIMIT_BYTES:
            raise InvalidArgument(f"/dev/shm cannot have {size_bytes} bytes")
        os.makedirs(self.shm.path, 0o700, exist_ok=True)
        unmount_stack(self.shm.path)
        mount_tmpfs(self.shm.path, size_bytes, 0o1777)

    async def set_clock(self, request: api.SetClockRequest, _: CallContext) -> api.SetClockResponse:
        """Set the clock."""
        drift_ns, source = clock.set_clock(request.clock_ns)
        log.info("clock.set", drift_ns=drift_ns, source=source)
        return api.SetClockResponse(drift_ns=drift_ns, source=source)

    async def add_interface(self, request: api.Interface, _: CallContext) -> Empty:
        """Set up a network device."""
        await network.add_interface(request)
        return Empty()

    async def remove_interface(self, request: api.RemoveInterfaceRequest, _: CallContext) -> Empty:
        """Let go of a network device."""
        await network.remove_interface(request.mac)
        return Empty()

    async def mount_share(self, request: api.MountShareRequest, _: CallContext) -> Empty:
        """Mount a share."""
        await devices.mount_share(request.tag, read_only=request.read_only)
        return Empty()

    async def unmount_share(self, request: api.UnmountShareRequest, _: CallContext) -> Empty:
        """Unmount a share."""
        devices.unmount_share(request.tag)
        return Empty()

    async def find_disk(self, request: api.FindDiskRequest, _: CallContext) -> api.FindDiskResponse:
        """Find a disk."""
        disk = await devices.find_disk(request.serial)
        return api.FindDiskResponse(path=disk.path, major=disk.major, minor=disk.minor)

    async def online(self, request: api.OnlineRequest, _: CallContext) -> api.OnlineResponse:
        """Use what was plugged in."""
        cpus, memory_bytes = await devices.bring_online(request.cpus, request.memory_bytes)
        return api.OnlineResponse(cpus=cpus, memory_bytes=memory_bytes)

    async def stats(self, _request: Empty, _: CallContext) -> api.StatsResponse:
        """Tell the machine's own figures."""
        memory = meminfo(read("/proc/meminfo"))
        resident_pages = int((read("/proc/self/statm").split() or ["0", "0"])[1])
        return api.StatsResponse(
            clock_ns=time.time_ns(),
            memory_total_bytes=memory.get("MemTotal", 0),
            memory_available_bytes=memory.get("MemAvailable", 0),
            cpu_busy_ns=busy_ticks(read("/proc/stat")) * 1_000_000_000 // _TICKS,
            agent_memory_bytes=resident_pages * os.sysconf("SC_PAGE_SIZE"),
        )

    async def end_stream(self, request: api.StreamEnd, _: CallContext) -> Empty:
        """Hear that a stream from the host ends."""
        self._streams.end(check_identifier("stream", request.id), request.length)
        return Empty()

    async def shutdown(self, _request: Empty, _: CallContext) -> Empty:
        """End the containers and the machine, the latter after this was answered."""
        try:
            if self.tasks is not None:
                await self.tasks.stop(_STOP_TIMEOUT_S)
        except SandboxdError as error:
            log.warning("sandbox.not_stopped", error=error)
        self._end()
        return Empty()


def meminfo(text: str) -> dict[str, int]:
    """Return the figures of /proc/meminfo in bytes (proc(5))."""
    figures = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            figures[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return figures


def busy_ticks(text: str) -> int:
    """Return the ticks that all CPUs have worked since boot, out of /proc/stat (proc(5))."""
    words = text.partition("\n")[0].split()[1:]
    return sum(int(words[field]) for field in _BUSY_FIELDS if field < len(words))


SANDBOX_METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "Configure": Method(api.ConfigureRequest, SandboxService.configure),
        "SetClock": Method(api.SetClockRequest, SandboxService.set_clock),
        "AddInterface": Method(api.Interface, SandboxService.add_interface),
        "RemoveInterface": Method(api.RemoveInterfaceRequest, SandboxService.remove_interface),
        "MountShare": Method(api.MountShareRequest, SandboxService.mount_share),
        "UnmountShare": Method(api.UnmountShareRequest, SandboxService.unmount_share),
        "FindDisk": Method(api.FindDiskRequest, SandboxService.find_disk),
        "Online": Method(api.OnlineRequest, SandboxService.online),
        "Stats": Method(Empty, SandboxService.stats),
        "EndStream": Method(api.StreamEnd, SandboxService.end_stream),
        "Shutdown": Method(Empty, SandboxService.shutdown),
    }
)
"""Every method of the service."""
