"""Reading an engine's config.json and rewriting it for the pod that its container joins.

The engine is half trusted: it is root on the node, but what it copies into a spec comes from images and pod
authors. Sources: OCI runtime-spec config.md and config-linux.md; engine contract section 5.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import InvalidArgument
from common.linux.oom_score import oom_score_adj

Spec = dict[str, Any]

_OCI_VERSION = "1.0.2"

_NO_ID = 0xFFFFFFFF  # chown(2): -1 means "leave as it is"


@dataclass(frozen=True, slots=True)
class PodView:
    """What a pod has ready for each of its containers.

    `namespaces` maps an OCI namespace type ("network", "ipc", "uts", "pid", "user") to the file to join, or to
    None where the pod lives in the host's. `files` maps a destination inside the container to a host file.
    `shm_path` is the directory behind /dev/shm: the pod's own tmpfs, or the host's for a pod with the host's IPC.
    """

    namespaces: Mapping[str, str | None]
    files: Mapping[str, str]
    shm_path: str


def parse_spec(text: bytes, source: str) -> Spec:
    """Return the spec as a dictionary whose main parts have the right shapes; null counts as absent.

    :raise InvalidArgument: it is not JSON, or not the shape that the OCI runtime specification demands.
    """
    spec = _parse_object(text, source)
    for key, shape in (("root", dict), ("linux", dict), ("mounts", list), ("annotations", dict)):
        _expect(spec.get(key, shape()), shape, source, key)
    linux = spec["linux"] = _without_nulls(spec.get("linux", {}))
    _expect(linux.get("cgroupsPath", ""), str, source, "linux.cgroupsPath")
    for entry in _entries(linux, "namespaces", source, "linux.namespaces"):
        _expect(entry.get("type"), str, source, "the type of a namespace")
        _expect(entry.get("path") or "", str, source, "the path of a namespace")
    for key in ("uidMappings", "gidMappings"):
        for entry in _entries(linux, key, source, f"linux.{key}"):
            for member in ("containerID", "hostID", "size"):
                _expect(entry.get(member, 0), int, source, f"{member} of linux.{key}")
    for mount in _entries(spec, "mounts", source, "mounts"):
        _expect(mount.get("destination"), str, source, "the destination of a mount")
    if not isinstance(spec.get("process"), dict):
        raise InvalidArgument(f"{source} has no process")
    return spec


def parse_process(text: bytes, source: str) -> dict[str, Any]:
    """Return the process of an Exec request as a dictionary, checked like that of a container."""
    process = _parse_object(text, source)
    check_process(process, source)
    return process


def check_resources(text: bytes, source: str) -> None:
    """Refuse limits (JSON of LinuxResources) that a runtime may overlook rather than report.

    :raise InvalidArgument: they are not JSON, or a group of them is not of the right shape.
    """
    resources = _parse_object(text, source)
    for key in ("memory", "cpu", "pids", "blockIO"):
        _expect(resources.get(key, {}), dict, source, key)


def check_process(process: Mapping[str, Any], source: str) -> None:
    """Refuse a process that no container should run.

    :raise InvalidArgument: it has no arguments, its user or limits are malformed, or its working directory is
        relative or lies in /proc, through which descriptors of the runtime could be reached (CVE-2024-21626).
    """
    args = process.get("args")
    if not isinstance(args, list) or not args or not all(isinstance(arg, str) for arg in args):
        raise InvalidArgument(f"{source} has no command: process.args must be a list of at least one string")
    cwd = process.get("cwd") or "/"
    if not isinstance(cwd, str) or not _is_plain_path(cwd):
        raise InvalidArgument(f"{source} has a working directory that is not allowed: {str(cwd)[:200]!r}")
    user = _expect(process.get("user") or {}, dict, source, "process.user")
    for key in ("uid", "gid"):
        _expect(user.get(key, 0), int, source, f"process.user.{key}")
    for limit in _entries(process, "rlimits", source, "process.rlimits"):
        for key in ("soft", "hard"):
            _expect(limit.get(key, 0), int, source, f"{key} of process.rlimits")


def host_id(mappings: list[dict[str, Any]], container_id: int) -> int:
    """Return the host's uid or gid for a container's, through `linux.uidMappings` or `linux.gidMappings`.

    :raise InvalidArgument: the id is not mapped.
    """
    host = container_id if not mappings else None
    for entry in mappings:
        offset = container_id - entry.get("containerID", 0)
        if 0 <= offset < entry.get("size", 0):
            host = entry.get("hostID", 0) + offset
            break
    if host is None:
        raise InvalidArgument(f"id {container_id} is not mapped in the container's user namespace")
    if not 0 <= host < _NO_ID:
        raise InvalidArgument(f"{host} is not a user or group id")
    return host


def process_owner(spec: Spec, process: Mapping[str, Any]) -> tuple[int, int]:
    """Return the host's uid and gid of a process of this container."""
    user = process.get("user") or {}
    linux = spec.get("linux") or {}
    return (
        host_id(linux.get("uidMappings") or [], user.get("uid", 0)),
        host_id(linux.get("gidMappings") or [], user.get("gid", 0)),
    )


def has_private_pid_namespace(spec: Spec) -> bool:
    """Tell whether the death of the container's first process takes all others along (pid_namespaces(7))."""
    return any(
        ns.get("type") == "pid" and not ns.get("path")
        for ns in (spec.get("linux") or {}).get("namespaces", [])
    )


def has_late_hooks(spec: Spec) -> bool:
    """Tell whether hooks run on the host after the container was created, which may look at its rootfs there."""
    hooks = spec.get("hooks")
    return isinstance(hooks, dict) and bool(hooks.get("poststart") or hooks.get("poststop"))


def join_pod(spec: Spec, pod: PodView, is_pod_process: Callable[[int], bool]) -> None:
    """Point the container's namespaces, files and shared memory at its pod's, in place.

    `is_pod_process` tells whether a pid is the first process of a running container of the same pod: only such
    a process's PID namespace may be joined by path (CRI's TARGET mode).

    :raise InvalidArgument: a namespace path under /proc is left that is not the pod's; joining it could put
        the container into a stranger's namespace. Or a namespace is not named that the pod does not share
        with the host: without it the container would live in the host's.
    """
    linux = spec.setdefault("linux", {})
    joined = []
    for entry in linux.get("namespaces") or []:
        kind, path = entry.get("type"), entry.get("path")
        if not path:
            joined.append(entry)
        elif (named := _process_namespace(path)) is None:
            if not _is_plain_path(path):
                raise InvalidArgument(f"namespace path {path!r} of the container is not one of its pod's")
            joined.append(entry)
        elif kind in pod.namespaces:
            pinned = pod.namespaces[kind]
            if pinned is not None:
                joined.append({"type": kind, "path": pinned})
        elif kind == named[1] == "pid" and is_pod_process(named[0]):
            joined.append(entry)
        else:
            raise InvalidArgument(f"namespace path {path} of the container is not one of its pod's")
    own = {"mount", "pid"} | pod.namespaces.keys()
    shared_with_host = {kind for kind, pinned in pod.namespaces.items() if pinned is None}
    if missing := own - shared_with_host - {entry.get("type") for entry in joined}:
        raise InvalidArgument(
            f"the container names no {', '.join(sorted(missing))} namespace and would get the host's"
        )
    linux["namespaces"] = joined
    _inject_files(spec, pod)


def _process_namespace(path: str) -> tuple[int, str] | None:
    """Return pid and name of /proc/<pid>/ns/<name>; None for another path."""
    match path.split("/"):
        case ["", "proc", pid, "ns", name] if pid.isdecimal() and name.replace("_", "").isalpha():
            return int(pid), name
    return None


def _inject_files(spec: Spec, pod: PodView) -> None:
    mounts = spec.setdefault("mounts", [])
    taken = {_normal(mount["destination"]) for mount in mounts}
    access = "ro" if (spec.get("root") or {}).get("readonly") else "rw"
    for destination, source in pod.files.items():
        if destination not in taken:
            mounts.append(
                {
                    "destination": destination,
                    "type": "bind",
                    "source": source,
                    "options": ["rbind", "rprivate", access],
                }
            )
    shared = {
        "destination": "/dev/shm",
        "type": "bind",
        "source": pod.shm_path,
        "options": ["rbind", "rprivate", "rw"],
    }
    for index, mount in enumerate(mounts):
        if _normal(mount["destination"]) == "/dev/shm":
            # The engine's default is a tmpfs private to the container; a volume that the pod's author put there stays.
            if mount.get("type") == "tmpfs" and mount.get("source") == "shm":
                mounts[index] = shared
            return
    mounts.append(shared)


def set_version(spec: Spec) -> None:
    """Declare the oldest version of the specification, in place: crun 1.8 (Debian 12) refuses those after 1.1,
    and newer runtimes use all they find whatever it says."""
    spec["ociVersion"] = _OCI_VERSION


def fit_to_privileges(process: dict[str, Any]) -> list[str]:
    """Lower what a daemon without CAP_SYS_RESOURCE cannot grant a process, in place; return what was lowered.

    Source: capabilities(7), setrlimit(2), proc(5) on oom_score_adj.
    """
    import resource  # late: most daemons may grant everything

    lowered = []
    wanted = process.get("oomScoreAdj")
    if isinstance(wanted, int) and wanted < (own := oom_score_adj()):
        process["oomScoreAdj"] = own
        lowered.append(f"oomScoreAdj {wanted} -> {own}")
    for limit in process.get("rlimits") or []:
        name = str(limit.get("type", ""))
        number = getattr(resource, name, None) if name.startswith("RLIMIT_") else None
        if number is None:
            continue
        own = resource.getrlimit(number)[1]
        if own != resource.RLIM_INFINITY and limit.get("hard", 0) > own:
            lowered.append(f"{limit['type']} {limit['hard']} -> {own}")
            limit["hard"] = own
            limit["soft"] = min(limit.get("soft", own), own)
    return lowered


def _is_plain_path(path: str) -> bool:
    """Tell whether a path is absolute, has no '..', and does not lie in /proc, however it is spelled."""
    if not path.startswith("/") or ".." in path.split("/"):
        return False
    return not f"{_normal(path)}/".startswith("/proc/")


def _normal(path: str) -> str:
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def _parse_object(text: bytes, source: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{source} is not JSON: {error}") from error
    return _without_nulls(_expect(document, dict, source, "the document"))


def _without_nulls(mapping: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if value is not None}


def _entries(parent: Mapping[str, Any], key: str, source: str, what: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = _expect(parent.get(key) or [], list, source, what)
    for entry in entries:
        _expect(entry, dict, source, f"an entry of {what}")
    return entries


def _expect(value: Any, shape: type, source: str, what: str) -> Any:
    if not isinstance(value, shape):
        raise InvalidArgument(f"{source}: {what} must be a JSON {shape.__name__}, not {type(value).__name__}")
    return value
