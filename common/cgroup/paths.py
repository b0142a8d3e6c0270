"""The two forms of `linux.cgroupsPath` in an OCI spec: a path, or slice:prefix:name for systemd."""

from __future__ import annotations

from typing import NamedTuple

from common.errors import InvalidArgument

_DEFAULT_SLICE = "system.slice"


class CgroupsPath(NamedTuple):
    """Where a container's cgroup will be: its path below the root of each hierarchy, and who makes it there.

    `systemd` is true where the runtime must ask systemd for a transient scope.
    """

    path: str
    systemd: bool


def parse_cgroups_path(value: str) -> CgroupsPath:
    """Parse `linux.cgroupsPath`; raises InvalidArgument where it is empty, leads upwards or is no valid unit.

    Sources: OCI runtime-spec config-linux.md "Cgroups Path"; systemd.slice(5) for the nesting of slices.
    """
    if value.count(":") == 2 and not value.startswith("/"):
        slice_name, prefix, name = value.split(":")
        if not name or "/" in prefix + name:
            raise InvalidArgument(f"cgroupsPath {value!r}: a systemd path is slice:prefix:name")
        unit = f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
        parent = expand_slice(slice_name or _DEFAULT_SLICE)
        return CgroupsPath(f"{parent.rstrip('/')}/{unit}", systemd=True)
    parts = [part for part in value.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or "\0" in value:
        raise InvalidArgument(f"cgroupsPath {value!r}: must name a cgroup below the root, without '..'")
    return CgroupsPath("/" + "/".join(parts), systemd=False)


def expand_slice(name: str) -> str:
    """Return the path of a systemd slice: each dash is one level, so a-b.slice lies in a.slice.

    Raises InvalidArgument where systemd would not accept the name (systemd.slice(5)).
    """
    stem = name.removesuffix(".slice")
    if stem == name or "/" in name:
        raise InvalidArgument(f"{name!r} is not a systemd slice")
    if stem == "-":
        return "/"
    levels = stem.split("-")
    if not all(levels):
        raise InvalidArgument(f"slice {name!r} has an empty level")
    return "".join(f"/{'-'.join(levels[: depth + 1])}.slice" for depth in range(len(levels)))
