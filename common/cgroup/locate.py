"""Where the cgroup of a process is in the file system: v1, v2, or both at once (hybrid)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from common.cgroup.paths import parse_cgroups_path
from common.errors import NotFound
from common.linux.proc_text import unescape

UNIFIED = ""
"""Stands for the v2 hierarchy where v1 has the name of a controller, as in /proc/<pid>/cgroup."""


class Hierarchy(NamedTuple):
    """A mounted hierarchy: where, and which of its cgroups is the top of what the mount shows."""

    mount_point: str
    root: str


class Hierarchies:
    """The cgroup hierarchies that this mount namespace shows, by controller; read once, at start."""

    __slots__ = ("_by_controller", "unified")

    def __init__(self, by_controller: Mapping[str, Hierarchy]) -> None:
        self._by_controller = dict(by_controller)
        # Hybrid hosts mount v2 as well, without the controllers: they count as v1.
        self.unified = UNIFIED in by_controller and not {"memory", "cpu", "pids"} & by_controller.keys()

    @classmethod
    def read(cls) -> Hierarchies:
        """Read what is mounted now. Source: proc_pid_mountinfo(5)."""
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            return cls(parse_mounts(file.read()))

    @property
    def controllers(self) -> frozenset[str]:
        """The v1 controllers, and UNIFIED where v2 is mounted."""
        return frozenset(self._by_controller)

    def locate(self, pid: int) -> Cgroup:
        """Return the cgroup of a process; raises NotFound where there is no such process.

        A process may move itself deeper later, so ask while a container is created and not yet started.
        """
        try:
            with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
                text = file.read()
        except (FileNotFoundError, ProcessLookupError):
            raise NotFound(f"there is no process {pid}") from None
        return self.cgroup(parse_membership(text))

    def at(self, path: str) -> Cgroup:
        """Return the cgroup with this path below the root of every hierarchy; it need not exist."""
        return Cgroup(self, "/" + path.strip("/"))

    def cgroup(self, membership: Mapping[str, str]) -> Cgroup:
        """Return the cgroup with these paths by controller, as /proc/<pid>/cgroup gives them."""
        paths = {name: path for name, path in membership.items() if name in self._by_controller}
        ordinary = paths.get(UNIFIED if self.unified else "memory", "/")
        return Cgroup(self, ordinary, {name: path for name, path in paths.items() if path != ordinary})

    def of_container(self, cgroups_path: str, container_id: str) -> Cgroup | None:
        """Return the cgroup that a spec's linux.cgroupsPath asks for, if its name says that it is this container's.

        None otherwise: what a spec merely points at may be an engine's parent cgroup, or somebody else's.
        """
        path = parse_cgroups_path(cgroups_path).path if cgroups_path else ""
        leaf = path.rpartition("/")[2]
        own = leaf in (container_id, f"{container_id}.scope") or leaf.endswith(f"-{container_id}.scope")
        return self.at(path) if own else None

    def directory(self, controller: str, path: str) -> str | None:
        """Return the directory of a cgroup, or None where this mount namespace does not show it."""
        hierarchy = self._by_controller.get(controller)
        if hierarchy is None:
            return None
        # A process outside of our cgroup namespace is shown with a path that leads upwards (cgroup_namespaces(7)).
        if ".." in path.split("/"):
            return None
        root = hierarchy.root.rstrip("/")
        if path != root and not path.startswith(f"{root}/"):
            return None
        return (hierarchy.mount_point + path[len(root) :]).rstrip("/")


class Cgroup:
    """One cgroup: in v2 a directory, in v1 one directory per controller, mostly with the same path."""

    __slots__ = ("_exceptions", "_hierarchies", "path")

    def __init__(
        self, hierarchies: Hierarchies, path: str, exceptions: Mapping[str, str] | None = None
    ) -> None:
        self._hierarchies = hierarchies
        self.path = path
        self._exceptions = exceptions or None

    def __repr__(self) -> str:
        return f"Cgroup({self.path!r}, unified={self.unified})"

    @property
    def unified(self) -> bool:
        """Whether the controllers are those of v2."""
        return self._hierarchies.unified

    @property
    def controllers(self) -> frozenset[str]:
        """The v1 controllers of the host, and UNIFIED where v2 is mounted."""
        return self._hierarchies.controllers

    def directory(self, controller: str) -> str | None:
        """Return the directory where the files of this controller are, or None where it has none.

        The root cgroup counts as none: its files are about the machine.
        """
        name = UNIFIED if self.unified else controller
        return self.directory_of(name, (self._exceptions or {}).get(name, self.path))

    def directory_of(self, controller: str, path: str) -> str | None:
        """Return the directory of another cgroup of the same host, by its path; None like `directory`."""
        if path == "/":
            return None
        return self._hierarchies.directory(controller, path)

    def directories(self) -> list[str]:
        """Return all its directories: one in v2, one per controller in v1 and hybrid."""
        names = [UNIFIED] if self.unified else sorted(self._hierarchies.controllers - {UNIFIED})
        found = {self.directory(name) for name in names}
        return sorted(directory for directory in found if directory is not None and os.path.isdir(directory))


def parse_mounts(mountinfo: str) -> dict[str, Hierarchy]:
    """Return the mounted hierarchies by controller. Source: proc_pid_mountinfo(5), cgroups(7).

    Where one is mounted several times, the mount that shows most of it counts, then the first.
    """
    found: dict[str, Hierarchy] = {}
    for line in mountinfo.splitlines():
        head, separator, tail = line.partition(" - ")
        fields, kind = head.split(" "), tail.split(" ")
        if not separator or len(fields) < 6 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        hierarchy = Hierarchy(unescape(fields[4]), unescape(fields[3]))
        names = [UNIFIED] if kind[0] == "cgroup2" else _controllers(kind[2])
        for name in names:
            known = found.get(name)
            if known is None or len(hierarchy.root) < len(known.root):
                found[name] = hierarchy
    return found


def parse_membership(text: str) -> dict[str, str]:
    """Return the path of a process by controller, UNIFIED for v2. Source: cgroups(7), /proc/<pid>/cgroup."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        # A removed cgroup is marked so; it has no directory any more.
        path = path.removesuffix(" (deleted)")
        for name in controllers.split(","):
            paths[name] = path
    return paths


def _controllers(options: str) -> list[str]:
    """Return the controllers among the super options of a v1 mount; a named hierarchy is `name=...`."""
    ignored = {"rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods"}
    names = (option for option in options.split(",") if option not in ignored)
    return [name for name in names if "=" not in name or name.startswith("name=")]
