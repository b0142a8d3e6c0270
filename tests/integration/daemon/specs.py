"""OCI specifications as containerd's CRI writes them, and CRI pod configurations."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from proto.gen.runtime.v1 import api_pb2 as cri
from tests.integration.daemon.lab import CGROUP_PARENT

CAPABILITIES = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
]
MASKED_PATHS = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/sys/firmware",
]
READONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]

_LOCKED = ["nosuid", "noexec", "nodev"]

# fmt: off
MOUNTS = [
    {"destination": "/proc", "type": "proc", "source": "proc", "options": _LOCKED},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
     "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
     "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
    {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": _LOCKED},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*_LOCKED, "ro"]},
    {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
     "options": [*_LOCKED, "mode=1777", "size=65536k"]},
]
# fmt: on
DEVICES = [
    {"allow": False, "access": "rwm"},
    *(
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
        for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2))
    ),
    {"allow": True, "type": "c", "major": 136, "access": "rwm"},
]


class PodLike(Protocol):
    """What a spec says of its pod."""

    @property
    def id(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def config(self) -> cri.PodSandboxConfig: ...


def process_spec(
    args: Sequence[str],
    *,
    terminal: bool = False,
    uid: int = 0,
    gid: int = 0,
    cwd: str = "/",
    env: Sequence[str] = (),
) -> dict[str, Any]:
    """An OCI process."""
    return {
        "terminal": terminal,
        "user": {"uid": uid, "gid": gid, "additionalGids": [gid]},
        "args": list(args),
        "env": ["PATH=/bin", "HOSTNAME=test", *env],
        "cwd": cwd,
        "capabilities": {kind: CAPABILITIES for kind in ("bounding", "effective", "permitted")},
        "noNewPrivileges": True,
        "oomScoreAdj": 1000,
    }


def container_spec(
    pod: PodLike, container_id: str, args: Sequence[str], *, linux: Mapping[str, Any], **process: Any
) -> dict[str, Any]:
    """What containerd's CRI writes into config.json for a container of a pod."""
    options = pod.config.linux.security_context.namespace_options
    namespaces: list[dict[str, str]] = [
        {"type": "mount"},
        {"type": "network", "path": f"/proc/{pod.pid}/ns/net"},
        {"type": "ipc", "path": f"/proc/{pod.pid}/ns/ipc"},
        {"type": "uts", "path": f"/proc/{pod.pid}/ns/uts"},
        {"type": "pid"}
        if options.pid == cri.CONTAINER
        else {"type": "pid", "path": f"/proc/{pod.pid}/ns/pid"},
    ]
    mappings: dict[str, Any] = {}
    if options.userns_options.uids:
        namespaces.append({"type": "user", "path": f"/proc/{pod.pid}/ns/user"})
        for kind in ("uid", "gid"):
            mappings[f"{kind}Mappings"] = [
                {"containerID": entry.container_id, "hostID": entry.host_id, "size": entry.length}
                for entry in getattr(options.userns_options, f"{kind}s")
            ]
    resources = {"memory": {"limit": 128 << 20}, "cpu": {"shares": 204}, "pids": {"limit": 200}}
    base: dict[str, Any] = {
        "resources": {**resources, "devices": DEVICES},
        "cgroupsPath": f"{CGROUP_PARENT}/{container_id}",
        "namespaces": namespaces,
        "maskedPaths": MASKED_PATHS,
        "readonlyPaths": READONLY_PATHS,
        **mappings,
    }
    return copy.deepcopy(
        {
            "ociVersion": "1.2.1",
            "process": process_spec(args, **process),
            "root": {"path": "rootfs"},
            "mounts": MOUNTS,
            "annotations": {
                "io.kubernetes.cri.container-type": "container",
                "io.kubernetes.cri.sandbox-id": pod.id,
                "io.kubernetes.cri.container-name": container_id,
            },
            "linux": {**base, **linux, "resources": {**base["resources"], **linux.get("resources", {})}},
        }
    )


def pod_config(
    name: str,
    *,
    network: cri.NamespaceMode = cri.POD,
    pid: cri.NamespaceMode = cri.CONTAINER,
    ipc: cri.NamespaceMode = cri.POD,
    hostname: str = "",
    sysctls: Mapping[str, str] | None = None,
    user_namespace: tuple[int, int] | None = None,
    dns: cri.DNSConfig | None = None,
) -> cri.PodSandboxConfig:
    """A pod as the kubelet asks for it; `user_namespace` is (first host id, how many)."""
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="default", attempt=0),
        hostname=hostname or ("" if network == cri.NODE else "pod-host"),
        dns_config=dns,
    )
    config.linux.cgroup_parent = CGROUP_PARENT
    config.linux.sysctls.update(sysctls or {})
    options = config.linux.security_context.namespace_options
    options.network, options.pid, options.ipc = network, pid, ipc
    if user_namespace is not None:
        first, length = user_namespace
        options.userns_options.mode = cri.POD
        for ids in (options.userns_options.uids, options.userns_options.gids):
            ids.add(container_id=0, host_id=first, length=length)
    return config
