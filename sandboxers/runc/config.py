"""The configuration of the runc sandboxer: every key that it reads, with its default and its meaning."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import option
from sandboxers.config import (
    EngineConfig,
    GarbageConfig,
    LogConfig,
    MetricsConfig,
    PodConfig,
    path_or_empty,
    program,
    socket_option,
    state_dir_option,
    type_option,
)


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """The OCI runtime that makes the containers."""

    binary: str = option(
        "crun",
        "A name on PATH or an absolute path: crun, runc, or any other program with their command line.",
        check=program,
    )
    root: str = option(
        "",
        "The runtime's own state directory. Empty: '.oci' inside 'state_dir'.",
        check=path_or_empty,
    )
    timeout_s: float = option(
        60.0,
        "How long one invocation of the runtime may take before it is killed.",
        minimum=1.0,
        maximum=3600.0,
    )


@dataclass(frozen=True, slots=True)
class RuncConfig:
    """Configuration of the runc sandboxer. Every key is shown with its default; a key that is left out has
    that value, and an unknown one is an error."""

    type: str = type_option("runc")
    socket: str = socket_option("runc")
    state_dir: str = state_dir_option("runc")
    log: LogConfig = LogConfig()
    engine: EngineConfig = EngineConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    pod: PodConfig = PodConfig()
    gc: GarbageConfig = GarbageConfig()
    metrics: MetricsConfig = MetricsConfig()
