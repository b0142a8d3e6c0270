"""Rewriting an engine's spec for a container that runs in the pod's own virtual machine.

What names the host is replaced by what is the same in the guest, or dropped where the guest has none of it, or
refused where the container would silently get something else. Functions from spec to spec, without I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from common.errors import InvalidArgument
from common.oci.spec import Spec, set_version

_GUEST_FILESYSTEMS: Final = frozenset(
    {"proc", "sysfs", "tmpfs", "mqueue", "devpts", "cgroup", "cgroup2", "devtmpfs", "overlay"}
)

# What the host's side of a volume sees to (`find_binds`). Were it read-only in the guest, so would be what is mounted
# below it, which the guest mounts when it is first looked at, like its parent.
_HOSTS_OPTIONS: Final = frozenset({"slave", "rslave", "ro"})

# Character devices that every kernel has: memory (null, zero, random), terminals, and by minor fuse, tun.
_COMMON_MAJORS: Final = frozenset({1, 5})
_COMMON_MISC: Final = frozenset({200, 229})
_MISC_MAJOR: Final = 10


class BindMount(NamedTuple):
    """A bind mount of the spec: its place in `mounts`, and what of the host it shows; `recursively` read-only is also
    what is mounted below it.
    """

    position: int
    source: str
    read_only: bool = False
    recursively: bool = False


class BlockDevice(NamedTuple):
    """A block device of the spec: its place in `linux.devices`, and its numbers on the host."""

    position: int
    path: str
    major: int
    minor: int


def find_binds(spec: Spec) -> list[BindMount]:
    """Return the mounts whose source is a path of the host.

    :raise InvalidArgument: one is of a kind that cannot be given to a guest.
    """
    found = []
    for index, mount in enumerate(spec.get("mounts") or []):
        options = mount.get("options") or []
        destination = mount["destination"]
        if mount.get("type") in ("bind", "rbind") or "bind" in options or "rbind" in options:
            source = mount.get("source") or ""
            if not source.startswith("/") or ".." in source.split("/"):
                raise InvalidArgument(f"the mount at {destination} has no absolute source: {source[:200]!r}")
            if "shared" in options or "rshared" in options:
                raise InvalidArgument(
                    f"the mount at {destination} is to propagate to the host (Bidirectional), which is outside of "
                    "the pod's virtual machine"
                )
            recursively = "rro" in options
            found.append(BindMount(index, source, recursively or "ro" in options, recursively))
        elif mount.get("type") not in _GUEST_FILESYSTEMS:
            raise InvalidArgument(
                f"the mount at {destination} is of type {str(mount.get('type'))[:40]!r}, not in a guest"
            )
    return found


def find_block_devices(spec: Spec) -> list[BlockDevice]:
    """Return the block devices of the host that the container is to have.

    :raise InvalidArgument: a device is asked for that a virtual machine does not have.
    """
    found = []
    for index, device in enumerate((spec.get("linux") or {}).get("devices") or []):
        path, kind = device.get("path"), device.get("type")
        major, minor = device.get("major", 0), device.get("minor", 0)
        if not isinstance(path, str) or not isinstance(major, int) or not isinstance(minor, int):
            raise InvalidArgument("an entry of linux.devices is malformed")
        if kind == "b":
            found.append(BlockDevice(index, path, major, minor))
        elif (
            kind != "p"
            and major not in _COMMON_MAJORS
            and not (major == _MISC_MAJOR and minor in _COMMON_MISC)
        ):
            raise InvalidArgument(
                f"the device {path} ({major}:{minor}) is the host's: not in the pod's virtual machine"
            )
    return found


def rewrite_for_guest(
    spec: Spec,
    sources: Mapping[int, str],
    disks: Mapping[int, tuple[int, int]],
) -> list[str]:
    """Rewrite the spec in place; return what of it was dropped. Namespaces and labels are the agent's business.

    :param sources: for each of `find_binds`, by index, the path in the guest.
    :param disks: for each of `find_block_devices`, by index, the guest's major and minor.
    :raise InvalidArgument: it asks for a user namespace.
    """
    dropped = []
    linux = spec.setdefault("linux", {})
    if linux.get("uidMappings") or linux.get("gidMappings"):
        raise InvalidArgument(
            "a user namespace is not offered in a virtual machine, whose root is not the host's"
        )
    resources = linux.get("resources") or {}
    absent = ("hugepageLimits", "rdma", "network")
    dropped += [f"linux.resources.{key}" for key in absent if resources.pop(key, None)]
    if spec.pop("hooks", None):
        dropped.append("hooks")
    _replace_devices(linux, disks)
    for index, source in sources.items():
        mount = spec["mounts"][index]
        mount["source"] = source
        mount["options"] = [o for o in mount.get("options") or [] if o not in _HOSTS_OPTIONS]
    spec["root"]["path"] = "rootfs"
    set_version(spec)
    return dropped


def _replace_devices(linux: dict[str, Any], disks: Mapping[int, tuple[int, int]]) -> None:
    devices = linux.get("devices") or []
    rules = (linux.get("resources") or {}).get("devices") or []
    for index, (major, minor) in disks.items():
        device = devices[index]
        for rule in rules:
            if (rule.get("type"), rule.get("major"), rule.get("minor")) == (
                "b",
                device["major"],
                device["minor"],
            ):
                rule["major"], rule["minor"] = major, minor
        device["major"], device["minor"] = major, minor
