"""What is to be run: a pod and its containers, as a command line or a manifest asks for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

NO_NETWORK: Final = "none"
HOST_NETWORK: Final = "host"


@dataclass(frozen=True, slots=True)
class Port:
    """A port of this machine that leads to one of the pod. An empty `host_ip` stands for all addresses."""

    host_port: int
    container_port: int
    protocol: str = "tcp"
    host_ip: str = ""


@dataclass(frozen=True, slots=True)
class Volume:
    """A place in a container where something outside of its root file system is: a path of this machine, or, where
    `source` is empty, the pod's own directory `scratch`, which goes with the pod. `part` is a relative path in it,
    empty for all of it; what is on that path may be what containers have written."""

    destination: str
    source: str = ""
    scratch: str = ""
    part: str = ""
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """One container. What is None or empty is as the image has it.

    `command` and `arguments` stand for the image's Entrypoint and Cmd. Limits: 0 for none; `cpu_millis` are
    thousandths of a CPU.
    """

    name: str
    image: str
    command: tuple[str, ...] | None = None
    arguments: tuple[str, ...] | None = None
    environment: tuple[tuple[str, str], ...] = ()
    working_directory: str = ""
    user: str = ""
    volumes: tuple[Volume, ...] = ()
    memory_bytes: int = 0
    cpu_millis: int = 0
    cpu_shares: int = 0
    stdin: bool = False
    terminal: bool = False
    read_only: bool = False
    capabilities_added: tuple[str, ...] = ()
    capabilities_dropped: tuple[str, ...] = ()
    may_gain_privileges: bool = True
    must_not_be_root: bool = False
    further_groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PodPlan:
    """A pod. `network` is "none", "host", or what names a CNI configuration; `init_containers` run first, each to its
    end. Without a name or host name it is called by its id."""

    name: str
    containers: tuple[ContainerPlan, ...]
    init_containers: tuple[ContainerPlan, ...] = ()
    network: str = NO_NETWORK
    ports: tuple[Port, ...] = ()
    hostname: str = ""
    shares_pids: bool = False
    host_pid: bool = False
    host_ipc: bool = False
    sysctls: dict[str, str] = field(default_factory=dict)
    dns_servers: tuple[str, ...] = ()
    dns_searches: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    stop_timeout_s: float = 10.0
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def all_containers(self) -> tuple[ContainerPlan, ...]:
        """In the order in which they start."""
        return (*self.init_containers, *self.containers)
