"""What a specification asks for, as far as a module process can give it. Text to values, no system calls.

Source: OCI runtime-spec config.md, config-linux.md.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.cgroup.paths import parse_cgroups_path
from common.errors import InvalidArgument
from common.linux.container_root import InnerMount

# A module has no system calls that these could serve, and they would show it the host.
_KERNEL_FILESYSTEMS = frozenset({"proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue"})

_DEFAULT_UMASK = 0o022


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """One process: a container's first, or an exec."""

    args: list[str]
    env: dict[str, str]
    cwd: str
    uid: int
    gid: int
    groups: list[int]
    umask: int
    rlimits: list[tuple[int, int, int]]
    """Number (resource.RLIMIT_*), soft and hard limit."""
    oom_score_adj: int
    terminal: bool


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """A container: what its processes live in. `namespaces` are paths by type, "" for a new one."""

    rootfs: str
    readonly: bool
    mounts: list[InnerMount]
    namespaces: dict[str, str]
    cgroup_path: str
    resources: Mapping[str, Any]
    seccomp: Mapping[str, Any] | None

    @property
    def memory_limit_bytes(self) -> int:
        """The limit on memory; 0 where there is none."""
        limit = (self.resources.get("memory") or {}).get("limit")
        return limit if isinstance(limit, int) and limit > 0 else 0


def plan_container(spec: Mapping[str, Any]) -> ContainerPlan:
    """Return what a checked and rewritten specification asks for.

    :raise InvalidArgument: something of it that a module process cannot have.
    """
    linux = spec.get("linux") or {}
    namespaces = {entry["type"]: entry.get("path") or "" for entry in linux.get("namespaces") or []}
    if "user" in namespaces:
        raise InvalidArgument("user namespaces are not offered by the isolation type wasm")
    if "mount" not in namespaces or namespaces.pop("mount"):
        raise InvalidArgument("the container must have a mount namespace of its own")
    namespaces.pop("pid", None)  # that is the server's business, which forks
    namespaces.pop("time", None)
    root = spec["root"]
    cgroups_path = linux.get("cgroupsPath") or ""
    return ContainerPlan(
        root["path"],
        bool(root.get("readonly")),
        [_mount(entry) for entry in spec.get("mounts") or [] if _is_offered(entry)],
        namespaces,
        parse_cgroups_path(cgroups_path).path if cgroups_path else "",
        linux.get("resources") or {},
        linux.get("seccomp"),
    )


def pid_namespace(spec: Mapping[str, Any]) -> str | None:
    """Return the path of the PID namespace that a specification joins, "" for a new one, None for the host's."""
    for entry in (spec.get("linux") or {}).get("namespaces") or []:
        if entry.get("type") == "pid":
            return entry.get("path") or ""
    return None


def container_oom_score_adj(process: Mapping[str, Any], own: int) -> int:
    """Return how ready the kernel shall be to kill a process, and an exec beside it that does not say.

    :param own: that of the daemon, which may be exempt from being killed; nobody inherits that. A daemon that may
        not lower its own cannot give less.
    """
    wanted: int | None = process.get("oomScoreAdj")
    return max(own, 0) if wanted is None else wanted


def plan_process(process: Mapping[str, Any], default_oom_score_adj: int = 0) -> ProcessPlan:
    """Return what a checked process of a specification asks for.

    :raise InvalidArgument: it is malformed.
    """
    user = process.get("user") or {}
    oom_score_adj = process.get("oomScoreAdj")
    return ProcessPlan(
        args=list(process["args"]),
        env=dict(_environment(process)),
        cwd=process.get("cwd") or "/",
        uid=user.get("uid", 0),
        gid=user.get("gid", 0),
        groups=[int(group) for group in user.get("additionalGids") or []],
        umask=user.get("umask", _DEFAULT_UMASK),
        rlimits=[_limit(entry) for entry in process.get("rlimits") or []],
        oom_score_adj=default_oom_score_adj if oom_score_adj is None else oom_score_adj,
        terminal=bool(process.get("terminal")),
    )


def _is_offered(entry: Mapping[str, Any]) -> bool:
    return entry.get("type") not in _KERNEL_FILESYSTEMS


def _mount(entry: Mapping[str, Any]) -> InnerMount:
    options = tuple(str(option) for option in entry.get("options") or [])
    mount = InnerMount(
        entry["destination"], str(entry.get("type") or "bind"), str(entry.get("source") or ""), options
    )
    if not mount.is_bind and mount.type != "tmpfs":
        raise InvalidArgument(f"mounts of type {mount.type!r} are not offered: on {mount.destination}")
    return mount


def _environment(process: Mapping[str, Any]) -> Mapping[str, str]:
    found = {}
    for entry in process.get("env") or []:
        name, separator, value = str(entry).partition("=")
        if not name or not separator or "\0" in entry:
            raise InvalidArgument(f"{entry[:100]!r} is not an environment variable")
        found[name] = value
    # By which languages without a working directory of their own know it.
    if (cwd := process.get("cwd") or "/") != "/":
        found.setdefault("PWD", cwd)
    return found


def _limit(entry: Mapping[str, Any]) -> tuple[int, int, int]:
    name = str(entry.get("type", ""))
    number = getattr(resource, name, None) if name.startswith("RLIMIT_") else None
    if number is None:
        raise InvalidArgument(f"{name!r} is not a limit on resources")
    return number, _signed(entry.get("soft", 0)), _signed(entry.get("hard", 0))


def _signed(value: int) -> int:
    # The specification counts without a sign, and so infinity is the largest; Python has it as -1.
    return -1 if value >= 0xFFFFFFFFFFFFFFFF else value
