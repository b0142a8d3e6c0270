"""The OCI specification of a container: what engines give by default, what its image wants, what its plan asks for.

Source: OCI runtime-spec config.md and config-linux.md; the defaults are those of containerd's CRI plugin (engine
contract section 5), so that an image runs here as it does in a cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from common.errors import InvalidArgument
from sandboxctl.accounts import Account
from sandboxctl.embedded.image_layout import ImageConfig
from sandboxctl.embedded.plan import HOST_NETWORK, ContainerPlan, PodPlan
from sandboxctl.embedded.seccomp import default_profile

CAPABILITIES: Final = frozenset(
    {
        "CAP_AUDIT_WRITE",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_RAW",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT",
    }
)
_FURTHER_CAPABILITIES: Final = frozenset(
    {
        "CAP_AUDIT_CONTROL",
        "CAP_AUDIT_READ",
        "CAP_BLOCK_SUSPEND",
        "CAP_BPF",
        "CAP_CHECKPOINT_RESTORE",
        "CAP_DAC_READ_SEARCH",
        "CAP_IPC_LOCK",
        "CAP_IPC_OWNER",
        "CAP_LEASE",
        "CAP_LINUX_IMMUTABLE",
        "CAP_MAC_ADMIN",
        "CAP_MAC_OVERRIDE",
        "CAP_NET_ADMIN",
        "CAP_NET_BROADCAST",
        "CAP_PERFMON",
        "CAP_SYS_ADMIN",
        "CAP_SYS_BOOT",
        "CAP_SYSLOG",
        "CAP_SYS_MODULE",
        "CAP_SYS_NICE",
        "CAP_SYS_PACCT",
        "CAP_SYS_PTRACE",
        "CAP_SYS_RAWIO",
        "CAP_SYS_RESOURCE",
        "CAP_SYS_TIME",
        "CAP_SYS_TTY_CONFIG",
        "CAP_WAKE_ALARM",
    }
)
_ALL_CAPABILITIES: Final = CAPABILITIES | _FURTHER_CAPABILITIES

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MASKED_PATHS: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
_READONLY_PATHS: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_LOCKED: Final = ("nosuid", "noexec", "nodev")
# fmt: off
_MOUNTS: Final[tuple[tuple[str, str, str, tuple[str, ...]], ...]] = (
    ("/proc", "proc", "proc", _LOCKED),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    ("/dev/mqueue", "mqueue", "mqueue", _LOCKED),
    ("/sys", "sysfs", "sysfs", (*_LOCKED, "ro")),
    ("/sys/fs/cgroup", "cgroup", "cgroup", (*_LOCKED, "relatime", "ro")),
    ("/dev/shm", "tmpfs", "shm", (*_LOCKED, "mode=1777", "size=65536k")),
)
# fmt: on
# null, zero, full, random, urandom, tty, ptmx, and all of /dev/pts (devices.txt).
_DEVICES: Final = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, None))
_CPU_PERIOD_US: Final = 100_000
# The pod's namespaces are found by the daemon, which puts its own in place of this process's.
_OF_POD: Final = "/proc/0/ns"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a container is: its ids, its image's name, its cgroup, and whether its program is one of this kernel.

    `volumes` are (source, destination, read only).
    """

    pod_id: str
    container_id: str
    image: str
    cgroup: str
    volumes: Sequence[tuple[str, str, bool]]
    is_native: bool = True


def build_spec(
    pod: PodPlan, container: ContainerPlan, image: ImageConfig, account: Account, placement: Placement
) -> dict[str, Any]:
    """Return a container's specification.

    :raise InvalidArgument: there is no command, or a capability is unknown.
    """
    if container.must_not_be_root and account.uid == 0:
        raise InvalidArgument(f"container {container.name} would run as root, which runAsNonRoot forbids")
    capabilities = _capabilities(container)
    linux: dict[str, Any] = {
        "resources": _resources(container),
        "cgroupsPath": placement.cgroup,
        "namespaces": _namespaces(pod),
        "maskedPaths": list(_MASKED_PATHS),
        "readonlyPaths": list(_READONLY_PATHS),
    }
    if placement.is_native:
        linux["seccomp"] = default_profile(capabilities)
    return {
        "ociVersion": "1.1.0",
        "process": _process(container, image, account, sorted(capabilities)),
        "root": {"path": "rootfs", "readonly": container.read_only},
        "mounts": [
            *(
                {"destination": destination, "type": kind, "source": source, "options": list(options)}
                for destination, kind, source, options in _MOUNTS
            ),
            *(
                {
                    "destination": destination,
                    "type": "bind",
                    "source": source,
                    "options": ["rbind", "rprivate", "ro" if read_only else "rw"],
                }
                for source, destination, read_only in placement.volumes
            ),
        ],
        "annotations": {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": placement.pod_id,
            "io.kubernetes.cri.container-name": container.name,
            "io.kubernetes.cri.image-name": placement.image,
        },
        "linux": linux,
    }


def command_of(container: ContainerPlan, image: ImageConfig) -> list[str]:
    """Return what is executed: a command of one's own drops the image's arguments too (Kubernetes, "Define a command").

    :raise InvalidArgument: neither says anything.
    """
    entrypoint = image.entrypoint if container.command is None else container.command
    arguments = image.command if container.command is None else ()
    if container.arguments is not None:
        arguments = container.arguments
    if not (entrypoint or arguments):
        raise InvalidArgument(
            f"container {container.name}: its image names no command, so one must be given (after --)"
        )
    return [*entrypoint, *arguments]


def _process(
    container: ContainerPlan, image: ImageConfig, account: Account, capabilities: list[str]
) -> dict[str, Any]:
    environment = {"PATH": _PATH}
    if container.terminal:
        environment["TERM"] = "xterm"
    for entry in image.environment:
        name, _, value = entry.partition("=")
        environment[name] = value
    environment.update(container.environment)
    # As root all that it may have; as another user nothing but what set-user-ID programs may regain.
    held = {"bounding": capabilities, "inheritable": []}
    if account.uid == 0:
        held |= {"effective": capabilities, "permitted": capabilities}
    return {
        "terminal": container.terminal,
        "user": {
            "uid": account.uid,
            "gid": account.gid,
            "additionalGids": sorted({account.gid, *account.groups, *container.further_groups}),
        },
        "args": command_of(container, image),
        "env": [f"{name}={value}" for name, value in environment.items()],
        "cwd": container.working_directory or image.working_directory or "/",
        "capabilities": held,
        "noNewPrivileges": not container.may_gain_privileges,
        "oomScoreAdj": 0,
    }


def _capabilities(container: ContainerPlan) -> frozenset[str]:
    def named(names: Sequence[str]) -> frozenset[str]:
        full = {name if name.startswith("CAP_") else f"CAP_{name}" for name in map(str.upper, names)}
        if "CAP_ALL" in full:
            return _ALL_CAPABILITIES
        if unknown := full - _ALL_CAPABILITIES:
            raise InvalidArgument(
                f"container {container.name}: no such capability: {', '.join(sorted(unknown))}"
            )
        return frozenset(full)

    return (CAPABILITIES - named(container.capabilities_dropped)) | named(container.capabilities_added)


def _namespaces(pod: PodPlan) -> list[dict[str, str]]:
    namespaces = [{"type": "mount"}, {"type": "ipc", "path": f"{_OF_POD}/ipc"}]
    if pod.network != HOST_NETWORK:
        namespaces.append({"type": "network", "path": f"{_OF_POD}/net"})
        namespaces.append({"type": "uts", "path": f"{_OF_POD}/uts"})
    if pod.shares_pids:
        namespaces.append({"type": "pid", "path": f"{_OF_POD}/pid"})
    elif not pod.host_pid:
        namespaces.append({"type": "pid"})
    return [entry for entry in namespaces if not (pod.host_ipc and entry["type"] == "ipc")]


def _resources(container: ContainerPlan) -> dict[str, Any]:
    devices: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for major, minor in _DEVICES:
        device = {"allow": True, "type": "c", "major": major, "access": "rwm"}
        devices.append(device if minor is None else {**device, "minor": minor})
    resources: dict[str, Any] = {"devices": devices}
    if container.memory_bytes:
        resources["memory"] = {"limit": container.memory_bytes}
    cpu: dict[str, int] = {}
    if container.cpu_millis:
        cpu |= {"period": _CPU_PERIOD_US, "quota": container.cpu_millis * _CPU_PERIOD_US // 1000}
    if container.cpu_shares:
        cpu["shares"] = container.cpu_shares
    if cpu:
        resources["cpu"] = cpu
    return resources
