"""What all pods of a daemon share that live in the host's kernel, assembled once around a task backend."""

from __future__ import annotations

from typing import Protocol

from common.cgroup import Hierarchies, OomWatcher, read_metrics, read_metrics_v1
from common.cgroup.primer import MigrationPrimer
from common.linux.procs import CAP_SYS_RESOURCE, has_capability
from common.log import get_logger
from common.process.exits import ExitWatcher
from common.task.backend import TaskBackend, TaskParts
from common.task.events import engine_sink
from sandboxers.config import EngineConfig, EngineKind, PodConfig
from sandboxers.host.sandbox import HostSandbox, PodSettings
from sandboxers.outlasting import Outlasting
from sandboxers.pod_config import PodConfig as Pod

log = get_logger()


class HostConfig(Protocol):
    """The parts of a type's configuration that its pods read."""

    @property
    def engine(self) -> EngineConfig: ...
    @property
    def pod(self) -> PodConfig: ...


class HostPods:
    """Makes pods whose containers a backend runs on this kernel. Lives in the daemon's event loop."""

    def __init__(
        self,
        config: HostConfig,
        outlasting: Outlasting,
        exits: ExitWatcher,
        hierarchies: Hierarchies,
        backend: TaskBackend,
    ) -> None:
        """:param exits: taken over, and closed with the pods."""
        self._events = engine_sink(config.engine.told_at)
        self._exits = exits
        self._ooms = OomWatcher()
        primer = MigrationPrimer(hierarchies)
        for_isulad = config.engine.kind is EngineKind.ISULAD
        self._parts = TaskParts(
            backend,
            exits,
            self._events,
            self._ooms,
            hierarchies,
            outlasting.store,
            primer=primer,
            measure=read_metrics_v1 if for_isulad else read_metrics,
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
            for_isulad,
        )

    def sandbox(self, pod: Pod, directory: str, group: str) -> HostSandbox:
        """Return an object for a pod of which nothing is made yet."""
        return HostSandbox(pod, directory, group, self._parts, self._settings)

    def close(self) -> None:
        """Stop watching; what runs goes on."""
        self._events.close()
        self._ooms.close()
        self._parts.primer.close()
        self._exits.close()
