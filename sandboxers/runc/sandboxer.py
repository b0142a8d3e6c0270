"""The runc isolation type: pods of plain containers, made by an OCI runtime on the host."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Container

from common.cgroup import Hierarchies
from common.errors import SandboxdError
from common.oci.runtime import OciRuntime
from common.process.exits import ExitWatcher
from common.task.oci_backend import OciBackend
from sandboxers.host.pods import HostPods
from sandboxers.host.sandbox import HostSandbox
from sandboxers.outlasting import Outlasting
from sandboxers.pod_config import PodConfig
from sandboxers.runc.config import RuncConfig
from sandboxers.sandbox import Stray


class RuncSandboxer:
    """Makes pods of plain containers (`Sandboxer`). Lives in the daemon's event loop."""

    name = "runc"

    def __init__(self, config: RuncConfig, outlasting: Outlasting) -> None:
        exits = ExitWatcher(outlasting.exit_log)
        runtime_root = config.runtime.root or f"{config.state_dir}/.oci"
        os.makedirs(runtime_root, 0o700, exist_ok=True)
        self._runtime = OciRuntime(config.runtime.binary, runtime_root, exits, config.runtime.timeout_s)
        self._runtime.load()
        self._state_dir = config.state_dir
        self._pods = HostPods(config, outlasting, exits, Hierarchies.read(), OciBackend(self._runtime))

    async def settle(self) -> None:
        """Let what an earlier daemon has begun with the runtime come to its end."""
        await self._runtime.settle()

    def sandbox(self, pod: PodConfig, directory: str, group: str) -> HostSandbox:
        """Return an object for a pod of which nothing is made yet."""
        return self._pods.sandbox(pod, directory, group)

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
        self._pods.close()
        self._runtime.close()
