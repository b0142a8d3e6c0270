"""The parts of a configuration that every isolation type has, with their defaults and their meanings."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from common.config import absolute_path, at_most_bytes, option, socket_path
from common.log import Format, Level
from sandboxers.metrics.address import check_address
from sandboxers.records import STATE_DIR_MAX_BYTES


def path_or_empty(value: str) -> str:
    """Check that a text is an absolute path, or empty; return what is wrong with it, or ""."""
    return absolute_path(value) if value else ""


def program(value: str) -> str:
    """Check that a text is a program's name or absolute path; return what is wrong with it, or ""."""
    return "" if value and "/" not in value else absolute_path(value)


def state_directory(value: str) -> str:
    """Check that a text is an absolute path below which sockets can be; return what is wrong with it, or ""."""
    if too_long := at_most_bytes(value, STATE_DIR_MAX_BYTES):
        return f"{too_long}: sockets are made below it, whose paths the kernel limits (unix(7))"
    return absolute_path(value)


def type_option(name: str) -> Any:
    """Declare the key that says of which type a file is."""
    return option(
        name,
        "The isolation type that this file configures.",
        check=lambda value: "" if value == name else f"this file configures the type {name!r}",
    )


def socket_option(name: str) -> Any:
    """Declare the key for the daemon's socket."""
    return option(
        f"/run/sandboxd/{name}.sock",
        "Where the Sandbox API is served: the address of containerd's proxy plugin.",
        check=socket_path,
    )


def state_dir_option(name: str) -> Any:
    """Declare the key for the daemon's state."""
    return option(
        f"/run/sandboxd/{name}",
        "Where live state is kept: on a tmpfs, since it describes processes, which end with the boot.",
        check=state_directory,
    )


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What the daemon writes to its standard error, one line per event."""

    level: Level = option(Level.INFO, "From which severity on; 'debug' adds tracebacks.")
    format: Format = option(Format.JSON, "'json' for collectors, 'console' for people.")


class EngineKind(StrEnum):
    """The engines that differ in what they expect."""

    CONTAINERD = "containerd"
    ISULAD = "isulad"


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The container engine that uses this sandboxer."""

    kind: EngineKind = option(
        EngineKind.CONTAINERD,
        "Which engine it is. 'isulad' (2.1.6 or later): a process stands for each pod, figures are those of cgroup v1"
        " on every host, virtual machines get their network after they have started, and no other key of this"
        " section is read, since iSulad neither tells what it knows nor takes events.",
    )
    address: str = option(
        "/run/containerd/containerd.sock",
        "The engine's gRPC socket, where it is asked which pods and tasks it knows: what it has forgotten is"
        " removed. Empty for an engine that is not containerd: nothing is ever taken for forgotten.",
        check=path_or_empty,
    )
    events_address: str = option(
        "/run/containerd/containerd.sock.ttrpc",
        "The engine's ttrpc socket, to which task events are published (containerd: its gRPC address with"
        " '.ttrpc' appended). Empty: nothing is published, and pods never show the reason OOMKilled.",
        check=path_or_empty,
    )

    @property
    def asked_at(self) -> str:
        """Where it is asked what it knows; empty if it cannot be, and then nothing is taken for forgotten."""
        return "" if self.kind is EngineKind.ISULAD else self.address

    @property
    def told_at(self) -> str:
        """Where events are published; empty if nobody takes them."""
        return "" if self.kind is EngineKind.ISULAD else self.events_address


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
class MetricsConfig:
    """Figures of the daemon for Prometheus: what each means is in docs/observability.md."""

    address: str = option(
        "",
        "Where GET /metrics is answered: 'unix:///run/sandboxd/runc-metrics.sock', for root alone, or"
        " 'tcp://127.0.0.1:9640', for whoever can connect. Empty: nowhere, and nothing is counted.",
        check=check_address,
    )
