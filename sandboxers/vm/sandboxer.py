"""What all pods of a daemon share that live in virtual machines, assembled once around a hypervisor."""

from __future__ import annotations

from collections.abc import Container
from typing import Protocol

from common.cgroup import Hierarchies
from common.errors import InvalidArgument, NotFound, SandboxdError
from common.log import get_logger
from common.process.exits import ExitWatcher
from common.task.events import engine_sink
from common.transport.hybrid import await_answers
from sandboxers.config import EngineConfig, EngineKind, PodConfig
from sandboxers.outlasting import Outlasting
from sandboxers.pod_config import NamespaceMode
from sandboxers.pod_config import PodConfig as Pod
from sandboxers.sandbox import Stray
from sandboxers.vm.config import GuestConfig, SizeConfig
from sandboxers.vm.containers import PidSource
from sandboxers.vm.sandbox import VmSandbox, VmSettings
from sandboxers.vm.sizing import size_of
from vmm.hypervisors.hypervisor import Hypervisor
from vmm.image.manifest import load

log = get_logger()


class VmConfig(Protocol):
    """The parts of a type's configuration that its pods read."""

    @property
    def state_dir(self) -> str: ...
    @property
    def engine(self) -> EngineConfig: ...
    @property
    def guest(self) -> GuestConfig: ...
    @property
    def size(self) -> SizeConfig: ...
    @property
    def pod(self) -> PodConfig: ...


class VmSandboxer:
    """Makes pods in virtual machines, for a subclass that names the hypervisor. Lives in the daemon's event loop."""

    name = ""

    def __init__(
        self, config: VmConfig, outlasting: Outlasting, exits: ExitWatcher, hypervisor: Hypervisor
    ) -> None:
        """:param exits: taken over, and closed with the pods."""
        self._events = engine_sink(config.engine.told_at)
        self._exits = exits
        self._hypervisor = hypervisor
        self._image = config.guest.image
        self._settings = VmSettings(
            config.guest,
            config.size,
            config.pod.shm_size_mib,
            config.pod.stop_timeout_s,
            config.pod.unprivileged_ports,
            config.pod.unprivileged_ping,
            Hierarchies.read(),
            outlasting.journal,
            outlasting.store,
            self._events,
            PidSource(),
            config.engine.kind is EngineKind.ISULAD,
        )

    async def settle(self) -> None:
        """See to what an earlier daemon has asked guests for, and find out what the hypervisor can do here."""
        await_answers(self._settings.store)
        try:
            image = load(self._image)
        except SandboxdError as error:
            log.warning("guest.image_unusable", error=error)
            return
        await self._hypervisor.prepare(str(image.kernel))
        log.info("hypervisor.ready", accelerator=self._hypervisor.capabilities.accelerator.value)

    def sandbox(self, pod: Pod, directory: str, group: str) -> VmSandbox:
        """Return an object for a pod of which nothing is made yet.

        :raise InvalidArgument: the pod is to live in one of the host's namespaces, or asks for a size it cannot have.
        """
        for field, mode in (("hostNetwork", pod.network), ("hostPID", pod.pid), ("hostIPC", pod.ipc)):
            if mode == NamespaceMode.NODE:
                raise InvalidArgument(
                    f"pod {pod.sandbox_id}: {field}: true cannot be had in a virtual machine, which has a kernel of"
                    " its own: remove the field, or use a runtime class without virtual machines"
                )
        if pod.has_user_namespace:
            raise InvalidArgument(
                f"pod {pod.sandbox_id}: hostUsers: false is not offered in a virtual machine: its root is not the"
                " host's anyway"
            )
        size_of(pod, self._settings.size)
        return VmSandbox(pod, directory, group, self._hypervisor, self._settings)

    async def strays(self, known: Container[str]) -> list[Stray]:
        """Containers live in the machines of pods, of which each has a record: none can be on its own."""
        return []

    async def remove_stray(self, container_id: str) -> None:
        """There are none."""
        raise NotFound(f"no container {container_id} outside of a pod")

    def close(self) -> None:
        """Stop watching; what runs goes on."""
        self._events.close()
        self._hypervisor.close()
        self._exits.close()
