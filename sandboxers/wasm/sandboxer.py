"""The wasm isolation type: pods of WebAssembly modules, a process each."""

from __future__ import annotations

from collections.abc import Container

from common.cgroup import Hierarchies
from common.errors import InvalidArgument
from common.process.exits import ExitWatcher
from common.process.orphans import outlive
from sandboxers.host.pods import HostPods
from sandboxers.host.sandbox import HostSandbox
from sandboxers.outlasting import Outlasting
from sandboxers.pod_config import PodConfig
from sandboxers.sandbox import Stray
from sandboxers.wasm.backend import WasmBackend
from sandboxers.wasm.cache import Cache
from sandboxers.wasm.compiler import Compiler
from sandboxers.wasm.config import WasmConfig
from sandboxers.wasm.fork_server import NAME, ForkServer

_SETTLE_TIMEOUT_S = 10.0


class WasmSandboxer:
    """Makes pods of modules (`Sandboxer`). Lives in the daemon's event loop."""

    name = "wasm"

    def __init__(self, config: WasmConfig, outlasting: Outlasting) -> None:
        self._exits = ExitWatcher(outlasting.exit_log)
        self._state_dir = config.state_dir
        modules = config.modules
        self._cache = Cache(modules.cache_dir, modules.cache_size_mib << 20)
        self._server = ForkServer(self._exits, config.state_dir, modules.engine, modules.cache_dir)
        compiler = Compiler(modules, self._cache, self._exits, self._server)
        hierarchies = Hierarchies.read()
        backend = WasmBackend(self._server, compiler, hierarchies)
        self._pods = HostPods(config, outlasting, self._exits, hierarchies, backend)

    async def settle(self) -> None:
        """Let an earlier daemon's fork server end, with what it keeps ahead or has in hand, and start ours.

        :raise Unimplemented: the configured engine is not installed.
        """
        await outlive([NAME, self._state_dir], _SETTLE_TIMEOUT_S)
        self._cache.prepare()
        await self._server.start()

    def sandbox(self, pod: PodConfig, directory: str, group: str) -> HostSandbox:
        """Return an object for a pod of which nothing is made yet.

        :raise InvalidArgument: the pod has a user namespace, which this type does not offer.
        """
        if pod.has_user_namespace:
            raise InvalidArgument(
                f"sandbox {pod.sandbox_id}: user namespaces are not offered by the isolation type wasm"
            )
        return self._pods.sandbox(pod, directory, group)

    async def strays(self, known: Container[str]) -> list[Stray]:
        """Return none: all that is made for a container lies in its directory and its cgroup."""
        return []

    async def remove_stray(self, container_id: str) -> None:
        """Do nothing: there are none."""

    def close(self) -> None:
        """Stop watching; what runs goes on."""
        self._server.close()
        self._pods.close()
