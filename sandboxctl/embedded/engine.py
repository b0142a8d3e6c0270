"""Pods from plans, through the two sockets that any engine uses: Controller (gRPC) and Task (ttrpc).

A pod is written down before anything is made for it, and removed by what is written: after a failed start as after
its life, and again if that was interrupted.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from common.cgroup import Hierarchies, make_cgroup, remove_leaf
from common.errors import FailedPrecondition, NotFound, SandboxdError
from common.log import get_logger
from common.oci.bundle import write_spec
from common.process.exits import ExitWatcher
from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2 as controller
from proto.gen.containerd.task.v3 import shim_pb2 as task
from proto.gen.containerd.types.mount_pb2 import Mount
from proto.gen.runtime.v1 import api_pb2 as cri
from sandboxctl.accounts import find_account
from sandboxctl.client import controller_of
from sandboxctl.daemons import Daemon
from sandboxctl.embedded.cni import addresses_of
from sandboxctl.embedded.image_store import Image
from sandboxctl.embedded.network import make_network, planned_network, remove_network
from sandboxctl.embedded.plan import HOST_NETWORK, ContainerPlan, PodPlan
from sandboxctl.embedded.private_daemon import ensure_daemon, release_daemon
from sandboxctl.embedded.records import (
    ContainerRecord,
    PodRecord,
    add_record,
    containers_of,
    load_record,
    locked,
    remove_record,
)
from sandboxctl.embedded.spec import Placement, build_spec
from sandboxctl.embedded.streams import Streams
from sandboxctl.embedded.volumes import place_volumes, remove_volume_mounts
from sandboxctl.pods import Pod, find_pod
from sandboxctl.signals import signal_number
from sandboxctl.tasks import Tasks, tasks_of
from sandboxers.embedded import embedded_pods, is_embedded
from sandboxers.isolation import IsolationType, load_config

log = get_logger()

_MAKING_TIMEOUT_S = 120.0
_CONTROLLER_TIMEOUT_S = 180.0
_FIRST_SIGNAL = "SIGTERM"
_HOSTS = "/etc/hosts"

MakeStreams = Callable[[PodRecord, ContainerPlan, str], Streams]
"""Makes the streams of a container, in its bundle's directory."""


@dataclass(slots=True)
class RunningContainer:
    """A container of a pod that this process has started."""

    plan: ContainerPlan
    record: ContainerRecord
    streams: Streams


class EmbeddedEngine:
    """Starts, stops and removes pods on one daemon."""

    def __init__(self, daemon: Daemon, watcher: ExitWatcher) -> None:
        self._daemon = daemon
        self._watcher = watcher

    # -- starting ----------------------------------------------------------------------------------

    def register(self, plan: PodPlan, images: dict[str, Image]) -> PodRecord:
        """Write a new pod down; the caller holds the lock.

        :raise AlreadyExists: its name is taken.
        :raise NotFound, InvalidArgument: it asks for what cannot be had.
        :raise FailedPrecondition: an image was removed only just now (`unused_images`).
        """
        for image in images.values():
            if not os.path.isdir(image.rootfs):
                raise FailedPrecondition(f"image {image.name} was removed meanwhile: try again")
        network = planned_network(plan)
        pod_id = secrets.token_hex(6)
        record = PodRecord(
            pod_id=pod_id,
            name=plan.name or pod_id,
            type=self._daemon.type.value,
            config_file=os.path.abspath(self._daemon.config_file),
            created_at_ns=time.time_ns(),
            stop_timeout_s=plan.stop_timeout_s,
            network=network,
            ports=[dataclasses.asdict(port) for port in plan.ports] if network else [],
            containers=[
                dataclasses.asdict(_container_record(container, images[container.image]))
                for container in plan.all_containers
            ],
        )
        if plan.network != HOST_NETWORK:
            record = dataclasses.replace(record, netns=f"{record.directory}/netns")
        record = record.attended()
        add_record(record)
        return record

    async def start_pod(self, plan: PodPlan, record: PodRecord) -> PodRecord:
        """Make the pod without its containers; the caller removes it where this fails.

        :raise SandboxdError, OSError: something of it cannot be made.
        """
        make_cgroup(Hierarchies.read().at(record.cgroup))
        record = await make_network(record, self._watcher)
        options = AnyMessage(
            type_url="runtime.v1.PodSandboxConfig", value=_pod_config(plan, record).SerializeToString()
        )
        if record.netns:
            _write_hosts(record, plan.hostname or record.pod_id)
        await self._control(
            "Create",
            controller.ControllerCreateRequest(
                sandbox_id=record.pod_id, options=options, netns_path=record.netns
            ),
        )
        await self._control("Start", controller.ControllerStartRequest(sandbox_id=record.pod_id))
        return record

    async def start_container(
        self,
        tasks: Tasks,
        plan: PodPlan,
        container: ContainerPlan,
        record: PodRecord,
        image: Image,
        make_streams: MakeStreams,
    ) -> RunningContainer:
        """Make and start one container.

        :raise SandboxdError, OSError: it cannot be made, or its program cannot be executed.
        """
        entry = next(known for known in containers_of(record) if known.name == container.name)
        bundle = record.bundle(entry.id)
        os.makedirs(f"{bundle}/rootfs", 0o700)
        placement = Placement(
            record.pod_id,
            entry.id,
            entry.image,
            f"{record.cgroup}/{entry.id}",
            [
                *place_volumes(container, entry.id, record),
                *_pod_files(record, container),
            ],
            is_native=record.type == IsolationType.RUNC,
        )
        account = find_account(image.rootfs, container.user or image.config.user)
        write_spec(bundle, build_spec(plan, container, image.config, account, placement))
        streams = make_streams(record, container, bundle)
        try:
            names = streams.names
            request = task.CreateTaskRequest(
                id=entry.id,
                bundle=bundle,
                rootfs=[_make_layers(record, entry, image)],
                terminal=container.terminal,
                stdin=names.stdin,
                stdout=names.stdout,
                stderr=names.stderr,
            )
            await tasks.call("Create", request, task.CreateTaskResponse, _MAKING_TIMEOUT_S)
            streams.begin()
            await tasks.call("Start", task.StartRequest(id=entry.id), task.StartResponse, _MAKING_TIMEOUT_S)
        except BaseException:
            streams.close()
            raise
        return RunningContainer(container, entry, streams)

    def pod(self, record: PodRecord) -> Pod:
        """Return a pod as its daemon has it on record. Raises NotFound where that has none."""
        return find_pod([self._daemon], record.pod_id)

    # -- ending ------------------------------------------------------------------------------------

    async def stop(self, record: PodRecord, timeout_s: float | None = None) -> None:
        """Ask all containers to end, kill those that do not in time, and stop the pod. Idempotent.

        :raise SandboxdError: the daemon cannot be reached, or something does not die.
        """
        limit_s = record.stop_timeout_s if timeout_s is None else timeout_s
        with contextlib.suppress(SandboxdError):  # a pod that was never started has no Task service
            async with tasks_of(self.pod(record)) as tasks:
                ends = (_end(tasks, container, limit_s) for container in containers_of(record))
                await asyncio.gather(*ends, return_exceptions=True)
        await self._control("Stop", controller.ControllerStopRequest(sandbox_id=record.pod_id))
        # So that its ports are free for others. What fails is tried again, and told, when the pod is removed.
        await remove_network(record, self._watcher)

    async def remove(self, record: PodRecord) -> None:
        """Remove a pod and all that was made for it, and its daemon with the last of them. Idempotent.

        :raise SandboxdError: something could not be removed; then the record stays, and this can be repeated.
        """
        async with locked():
            if not is_embedded(record.pod_id):
                return
            # So that a removal that is interrupted, or fails, is repeated. It must do without where no space is left.
            with contextlib.suppress(SandboxdError, OSError):
                load_record(record.pod_id).attended().save()
            if self._daemon.is_private:
                await ensure_daemon(record.type, None, self._watcher)
        # Without the lock: a pod may take its time to end, and its record keeps the daemon.
        try:
            await self._control("Shutdown", controller.ControllerShutdownRequest(sandbox_id=record.pod_id))
        except SandboxdError:
            if is_embedded(record.pod_id):
                raise
            return  # somebody else has removed it meanwhile, and the daemon with it
        failures = await remove_network(record, self._watcher)
        _remove_cgroup(record)
        remove_volume_mounts(record)
        if failures:
            raise FailedPrecondition(
                f"pod {record.pod_id} has ended, but its network is not detached: {failures[0]}"
            )
        async with locked():
            remove_record(record)
            release_daemon(self._daemon)

    async def _control(self, method: str, request: Message) -> Any:
        def call() -> Any:
            with controller_of(self._daemon) as stub:
                return getattr(stub, method)(request, timeout=_CONTROLLER_TIMEOUT_S)

        # In a thread, so that signals are noticed meanwhile.
        return await asyncio.to_thread(call)


async def remove_abandoned(watcher: ExitWatcher) -> None:
    """Remove pods whose start or removal was begun by somebody who is no more; what cannot be is tried again another
    time."""
    for pod_id in embedded_pods():
        try:
            record = load_record(pod_id)
            if record.is_abandoned:
                kind, config = load_config(record.config_file)
                await EmbeddedEngine(Daemon(kind, record.config_file, config), watcher).remove(record)
        except Exception as error:  # one record stops neither the others nor the pod to be started
            if is_embedded(pod_id):  # else somebody else has removed it meanwhile
                log.error("pod.not_removed", pod_id=pod_id, error=error)


def collect_abandoned() -> None:
    """Do `remove_abandoned` from a program that has no event loop."""

    async def collect() -> None:
        watcher = ExitWatcher()
        try:
            await remove_abandoned(watcher)
        finally:
            watcher.close()

    asyncio.run(collect())


def stop_pod(daemon: Daemon, record: PodRecord, timeout_s: float) -> None:
    """Stop a pod from a program that has no event loop. Raises what `EmbeddedEngine.stop` does."""
    asyncio.run(_with_engine(daemon, lambda engine: engine.stop(record, timeout_s)))


def remove_pod(daemon: Daemon, record: PodRecord) -> None:
    """Remove a pod from a program that has no event loop. Raises what `EmbeddedEngine.remove` does."""
    asyncio.run(_with_engine(daemon, lambda engine: engine.remove(record)))


async def _with_engine(daemon: Daemon, action: Callable[[EmbeddedEngine], Awaitable[None]]) -> None:
    watcher = ExitWatcher()
    try:
        await action(EmbeddedEngine(daemon, watcher))
    finally:
        watcher.close()


async def _end(tasks: Tasks, container: ContainerRecord, limit_s: float) -> None:
    process = tasks.process(container.id)
    with contextlib.suppress(NotFound):  # it has ended already
        await process.kill(signal_number(container.stop_signal) or signal.SIGTERM)
    try:
        async with asyncio.timeout(limit_s):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(NotFound):
            await process.kill(signal.SIGKILL)


def _container_record(container: ContainerPlan, image: Image) -> ContainerRecord:
    stop_signal = image.config.stop_signal or _FIRST_SIGNAL
    return ContainerRecord(secrets.token_hex(6), container.name, image.name, image.digest, stop_signal)


def _pod_config(plan: PodPlan, record: PodRecord) -> cri.PodSandboxConfig:
    found = addresses_of(record.attachment)
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=record.name, uid=record.pod_id),
        hostname="" if plan.network == HOST_NETWORK else plan.hostname or record.pod_id,
        labels=plan.labels,
        dns_config=cri.DNSConfig(
            servers=plan.dns_servers or found.dns_servers,
            searches=plan.dns_searches or found.dns_searches,
            options=plan.dns_options,
        ),
    )
    linux = config.linux
    linux.cgroup_parent = record.cgroup
    linux.sysctls.update(plan.sysctls)
    modes = linux.security_context.namespace_options
    modes.network = cri.NODE if plan.network == HOST_NETWORK else cri.POD
    modes.pid = cri.POD if plan.shares_pids else cri.NODE if plan.host_pid else cri.CONTAINER
    modes.ipc = cri.NODE if plan.host_ipc else cri.POD
    # A virtual machine is made as large as its containers may become, if all of them have a limit.
    if all(container.memory_bytes for container in plan.containers):
        linux.resources.memory_limit_in_bytes = sum(c.memory_bytes for c in plan.containers)
    if all(container.cpu_millis for container in plan.containers):
        linux.resources.cpu_period = 100_000
        linux.resources.cpu_quota = sum(c.cpu_millis for c in plan.containers) * 100
    return config


def _write_hosts(record: PodRecord, hostname: str) -> None:
    """Write the names that a pod knows, its own among them, which Kubernetes does in a cluster (hosts(5))."""
    addresses = addresses_of(record.attachment).addresses or ("127.0.1.1",)
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{address} {hostname}" for address in addresses]
    with open(record.hosts_file, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write("".join(f"{line}\n" for line in lines))


def _pod_files(record: PodRecord, container: ContainerPlan) -> list[tuple[str, str, bool]]:
    """Return the volume that puts the pod's names into a container, unless it brings its own."""
    taken = any(volume.destination == _HOSTS for volume in container.volumes)
    return [(record.hosts_file, _HOSTS, False)] if record.netns and not taken else []


def _make_layers(record: PodRecord, container: ContainerRecord, image: Image) -> Mount:
    """Make what a container writes to, above its image, and return the mount of both."""
    own = f"{record.data_directory}/layers/{container.id}"
    for name in ("upper", "work"):
        os.makedirs(f"{own}/{name}", 0o700)
    # The root directory of a container is that of its upper layer.
    status = os.stat(image.rootfs)
    os.chown(f"{own}/upper", status.st_uid, status.st_gid)
    os.chmod(f"{own}/upper", status.st_mode & 0o7777)
    escaped = image.rootfs.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")
    options = [f"lowerdir={escaped}", f"upperdir={own}/upper", f"workdir={own}/work"]
    return Mount(type="overlay", source="overlay", options=options)


def _remove_cgroup(record: PodRecord) -> None:
    hierarchies = Hierarchies.read()
    remove_leaf(hierarchies.at(record.cgroup))
    # That of all such pods, when it was the last one.
    for directory in hierarchies.at(os.path.dirname(record.cgroup)).directories():
        with contextlib.suppress(OSError):
            os.rmdir(directory)
