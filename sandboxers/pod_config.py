"""What a sandboxer wants to know of a pod, taken out of the engine's Create request and checked.

Source: engine contract section 2.1 (Create), CRI's PodSandboxConfig.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import StrEnum

from google.protobuf.message import DecodeError

from common.errors import InvalidArgument
from common.identifiers import check_identifier
from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2 as api
from proto.gen.runtime.v1 import api_pb2 as cri

POD_CONFIG_TYPE = "runtime.v1.PodSandboxConfig"
ANNOTATION_PREFIX = "sandboxd."
"""Of all annotations of pods those are ours that begin so."""
_MAX_HOSTNAME_BYTES = 64


class NamespaceMode(StrEnum):
    """Whose namespace the containers of a pod live in: the pod's, each its own, or the host's."""

    POD = "pod"
    CONTAINER = "container"
    NODE = "node"


_MODES = {
    cri.POD: NamespaceMode.POD,
    cri.CONTAINER: NamespaceMode.CONTAINER,
    cri.NODE: NamespaceMode.NODE,
    # Only containers have a target; for the pod's own namespaces it means that each has its own.
    cri.TARGET: NamespaceMode.CONTAINER,
}


@dataclass(frozen=True, slots=True)
class PodConfig:
    """A pod as its engine asks for it; small, since one is kept per pod, and JSON-able, since it is recorded.

    `uid_mappings` and `gid_mappings` are lists of [container id, host id, size]; empty without a user namespace.
    `cpu_millis` (thousandths of a CPU) and `memory_bytes` are the sums of the containers' limits; 0: none is set.
    `annotations` are those under `ANNOTATION_PREFIX`.
    """

    sandbox_id: str
    name: str = ""
    namespace: str = ""
    uid: str = ""
    hostname: str = ""
    netns_path: str = ""
    cgroup_parent: str = ""
    network: str = NamespaceMode.POD
    pid: str = NamespaceMode.POD
    ipc: str = NamespaceMode.POD
    dns_servers: list[str] = field(default_factory=list)
    dns_searches: list[str] = field(default_factory=list)
    dns_options: list[str] = field(default_factory=list)
    sysctls: dict[str, str] = field(default_factory=dict)
    uid_mappings: list[list[int]] = field(default_factory=list)
    gid_mappings: list[list[int]] = field(default_factory=list)
    cpu_millis: int = 0
    memory_bytes: int = 0
    annotations: dict[str, str] = field(default_factory=dict)

    @property
    def has_user_namespace(self) -> bool:
        return bool(self.uid_mappings)

    @property
    def has_host_network(self) -> bool:
        return self.network == NamespaceMode.NODE


def parse_create_request(request: api.ControllerCreateRequest) -> PodConfig:
    """Return the checked pod of a Create request; without options it is a pod on the host's network.

    :raise InvalidArgument: an id, path, name or mapping is malformed.
    """
    sandbox_id = check_identifier("sandbox", request.sandbox_id)
    options = request.options
    config = cri.PodSandboxConfig()
    if options.type_url not in ("", POD_CONFIG_TYPE):
        raise InvalidArgument(
            f"sandbox {sandbox_id}: options of type {options.type_url!r}, expected {POD_CONFIG_TYPE}"
        )
    try:
        config.ParseFromString(options.value)
    except DecodeError as error:
        raise InvalidArgument(
            f"sandbox {sandbox_id}: options are not a {POD_CONFIG_TYPE}: {error}"
        ) from error
    security = config.linux.security_context
    modes = security.namespace_options
    uid_mappings, gid_mappings = _user_namespace(sandbox_id, modes.userns_options)
    network = _MODES.get(modes.network, NamespaceMode.POD)
    if not request.netns_path and network is not NamespaceMode.NODE:
        if options.type_url or options.value:
            raise InvalidArgument(
                f"sandbox {sandbox_id}: netns_path is empty, but its options do not ask for the node's network"
            )
        network = NamespaceMode.NODE
    return PodConfig(
        sandbox_id=sandbox_id,
        name=config.metadata.name,
        namespace=config.metadata.namespace,
        uid=config.metadata.uid,
        hostname=_check_hostname(sandbox_id, config.hostname),
        netns_path=_check_path(sandbox_id, "netns_path", request.netns_path),
        cgroup_parent=_check_cgroup_parent(sandbox_id, config.linux.cgroup_parent),
        network=network,
        pid=_MODES.get(modes.pid, NamespaceMode.POD),
        ipc=_MODES.get(modes.ipc, NamespaceMode.POD),
        dns_servers=list(config.dns_config.servers),
        dns_searches=list(config.dns_config.searches),
        dns_options=list(config.dns_config.options),
        sysctls=dict(config.linux.sysctls),
        uid_mappings=uid_mappings,
        gid_mappings=gid_mappings,
        cpu_millis=_cpu_millis(config.linux.resources),
        memory_bytes=max(0, config.linux.resources.memory_limit_in_bytes),
        annotations={
            key: value for key, value in config.annotations.items() if key.startswith(ANNOTATION_PREFIX)
        },
    )


def _cpu_millis(resources: cri.LinuxContainerResources) -> int:
    if resources.cpu_quota <= 0 or resources.cpu_period <= 0:
        return 0
    return -(-resources.cpu_quota * 1000 // resources.cpu_period)


def _user_namespace(sandbox_id: str, options: cri.UserNamespace) -> tuple[list[list[int]], list[list[int]]]:
    if options.mode not in (cri.POD, cri.NODE):
        raise InvalidArgument(f"sandbox {sandbox_id}: a user namespace can only be the pod's or the node's")
    if options.mode == cri.NODE or not (options.uids or options.gids):
        return [], []
    mappings: list[list[list[int]]] = []
    for kind, entries in (("uid", options.uids), ("gid", options.gids)):
        if not entries or any(entry.length == 0 for entry in entries):
            raise InvalidArgument(f"sandbox {sandbox_id}: the user namespace has an empty {kind} mapping")
        if not any(entry.container_id == 0 for entry in entries):
            raise InvalidArgument(f"sandbox {sandbox_id}: the user namespace does not map {kind} 0")
        mappings.append([[entry.container_id, entry.host_id, entry.length] for entry in entries])
    return mappings[0], mappings[1]


def _check_hostname(sandbox_id: str, hostname: str) -> str:
    if len(hostname.encode()) > _MAX_HOSTNAME_BYTES or any(c.isspace() or c == "\0" for c in hostname):
        raise InvalidArgument(f"sandbox {sandbox_id}: {hostname[:100]!r} is not a host name")
    return hostname


def _check_path(sandbox_id: str, what: str, path: str) -> str:
    if path and (
        not path.startswith("/") or path.startswith("//") or os.path.normpath(path) != path or "\0" in path
    ):
        raise InvalidArgument(
            f"sandbox {sandbox_id}: {what} must be absolute and without '..': {path[:200]!r}"
        )
    return path


def _check_cgroup_parent(sandbox_id: str, parent: str) -> str:
    if ".." in parent.split("/") or "\0" in parent:
        raise InvalidArgument(f"sandbox {sandbox_id}: {parent[:200]!r} is not a cgroup_parent")
    return parent


def sysctls_of(pod: PodConfig, *, ports: bool, ping: bool) -> dict[str, str]:
    """Return the pod's sysctls over the defaults that engines give a pod with a network of its own.

    :param ports: whether it may bind ports below 1024 without privileges.
    :param ping: whether it may send ICMP echo requests without privileges.
    """
    defaults = {}
    if not pod.has_host_network:
        if ports:
            defaults["net.ipv4.ip_unprivileged_port_start"] = "0"
        if ping and not pod.has_user_namespace:
            defaults["net.ipv4.ping_group_range"] = "0 2147483647"
    return {**defaults, **pod.sysctls}
