"""The configuration of the runc sandboxer: every key that it reads, with its default and its meaning."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import absolute_path, option
from common.log import Format, Level


def _path_or_empty(value: str) -> str:
    return absolute_path(value) if value else ""


def _program(value: str) -> str:
    return "" if value and "/" not in value else absolute_path(value)


def _type(value: str) -> str:
    return "" if value == "runc" else "this file configures the type 'runc'"


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What the daemon writes to its standard error, one line per event."""

    level: Level = option(Level.INFO, "From which severity on; 'debug' adds tracebacks.")
    format: Format = option(Format.JSON, "'json' for collectors, 'console' for people.")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The container engine that uses this sandboxer."""

    address: str = option(
        "/run/containerd/containerd.sock",
        "The engine's gRPC socket, where it is asked which pods and tasks it knows: what it has forgotten is"
        " removed. Empty for an engine that is not containerd: nothing is ever taken for forgotten.",
        check=_path_or_empty,
    )
    events_address: str = option(
        "/run/containerd/containerd.sock.ttrpc",
        "The engine's ttrpc socket, to which task events are published (containerd: its gRPC address with"
        " '.ttrpc' appended). Empty: nothing is published, and pods never show the reason OOMKilled.",
        check=_path_or_empty,
    )


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """The OCI runtime that makes the containers."""

    binary: str = option(
        "crun",
        "A name on PATH or an absolute path: crun, runc, or any other program with their command line.",
        check=_program,
    )
    root: str = option(
        "",
        "The runtime's own state directory. Empty: '.oci' inside 'state_dir'.",
        check=_path_or_empty,
    )
    timeout_s: float = option(
        60.0,
        "How long one invocation of the runtime may take before it is killed.",
        minimum=1.0,
        maximum=3600.0,
    )


@dataclass(frozen=True, slots=True)
class PodConfig:
    """What each pod gets and how it ends."""

    shm_size_mib: int = option(64, "The size of the /dev/shm that the pod's containers share.", minimum=1)
    stop_timeout_s: float = option(
        10.0,
        "How long stopping a pod may take in all; what is left of it then is killed.",
        minimum=0.0,
        maximum=600.0,
    )
    unprivileged_ports: bool = option(
        True, "Whether a pod with its own network may bind ports below 1024 without CAP_NET_BIND_SERVICE."
    )
    unprivileged_ping: bool = option(
        True, "Whether a pod with its own network may send ICMP echo requests without CAP_NET_RAW."
    )


@dataclass(frozen=True, slots=True)
class GarbageConfig:
    """When pods and containers are removed that the engine has forgotten."""

    interval_s: float = option(
        60.0,
        "How often to look for such; the engine is asked only if nobody waits for some pod or container. 0: never.",
        minimum=0.0,
        maximum=86400.0,
    )
    grace_s: float = option(
        300.0,
        "How long, at least, the engine must have been reachable and not have known them.",
        minimum=0.0,
        maximum=86400.0,
    )


@dataclass(frozen=True, slots=True)
class RuncConfig:
    """Configuration of the runc sandboxer. Every key is shown with its default; a key that is left out has
    that value, and an unknown one is an error."""

    type: str = option("runc", "The isolation type that this file configures.", check=_type)
    socket: str = option(
        "/run/sandboxd/runc.sock",
        "Where the Sandbox API is served: the address of containerd's proxy plugin.",
        check=absolute_path,
    )
    state_dir: str = option(
        "/run/sandboxd/runc",
        "Where live state is kept: on a tmpfs, since it describes processes, which end with the boot.",
        check=absolute_path,
    )
    log: LogConfig = LogConfig()
    engine: EngineConfig = EngineConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    pod: PodConfig = PodConfig()
    gc: GarbageConfig = GarbageConfig()
