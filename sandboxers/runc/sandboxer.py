"""The runc isolation type: pods of plain containers, made by an OCI runtime on the host."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Container

from common.cgroup import Hierarchies, OomWatcher
from common.errors import SandboxdError
from common.linux.procs import CAP_SYS_RESOURCE, has_capability
from common.log import get_logger
from common.oci.runtime import OciRuntime
from common.process.exits import ExitWatcher
from common.task.events import EnginePublisher, NullSink
from common.task.oci_backend import OciBackend
from common.task.pod import TaskParts
from sandboxers.isolation import Stray
from sandboxers.outlasting import Outlasting
from sandboxers.pod_config import PodConfig
from sandboxers.runc.config import RuncConfig
from sandboxers.runc.sandbox import PodSettings, RuncSandbox

_ENGINE_NAMESPACE = "k8s.io"

log = get_logger()


class RuncSandboxer:
    """Makes pods of plain containers (`Sandboxer`). Lives in the daemon's event loop."""

    name = "runc"

    def __init__(self, config: RuncConfig, outlasting: Outlasting) -> None:
        exits = ExitWatcher(outlasting.exit_log)
        runtime_root = config.runtime.root or f"{config.state_dir}/.oci"
        os.makedirs(runtime_root, 0o700, exist_ok=True)
        runtime = OciRuntime(config.runtime.binary, runtime_root, exits, config.runtime.timeout_s)
        address = config.engine.events_address
        self._events = EnginePublisher(address, _ENGINE_NAMESPACE) if address else NullSink()
        self._exits = exits
        self._state_dir = config.state_dir
        self._ooms = OomWatcher()
        hierarchies = Hierarchies.read()
        self._runtime = runtime
        self._parts = TaskParts(
            OciBackend(runtime),
            exits,
            self._events,
            self._ooms,
            hierarchies,
            outlasting.store,
        )
        may_raise_limits = has_capability(CAP_SYS_RESOURCE)
        if not may_raise_limits:
            log.warning(
                "daemon.no_cap_sys_resource",
                effect="oom_score_adj and rlimits of containers are lowered to ours",
            )
        self._settings = PodSettings(
            config.pod.shm_size_mib,
            config.pod.stop_timeout_s,
            config.pod.unprivileged_ports,
            config.pod.unprivileged_ping,
            may_raise_limits,
            hierarchies,
            outlasting.journal,
        )

    async def settle(self) -> None:
        """Let what an earlier daemon has begun with the runtime come to its end."""
        await self._runtime.settle()

    def sandbox(self, pod: PodConfig, directory: str, group: str) -> RuncSandbox:
        """Return an object for a pod of which nothing is made yet."""
        return RuncSandbox(pod, directory, group, self._parts, self._settings)

    async def strays(self, known: Container[str]) -> list[Stray]:
        """Return the containers in the runtime's state directory, if that is ours alone, that are not `known`."""
        root = self._runtime.root
        if not root.startswith(f"{self._state_dir}/") or not os.path.isdir(root):
            return []
        names = [name for name in sorted(os.listdir(root)) if not name.startswith(".") and name not in known]
        return [Stray(name, await self._bundle_of(name)) for name in names]

    async def remove_stray(self, container_id: str) -> None:
        """Let the runtime kill and remove a container."""
        with tempfile.TemporaryDirectory(prefix=".gc-", dir=self._state_dir) as log_directory:
            await self._runtime.delete(container_id, log_directory)

    async def _bundle_of(self, container_id: str) -> str:
        try:
            return await self._runtime.bundle(container_id)
        except SandboxdError:
            return ""

    def close(self) -> None:
        """Stop watching; what runs goes on."""
        self._events.close()
        self._ooms.close()
        self._parts.primer.close()
        self._exits.close()
