"""The cgroup of a pod's machine, inside the pod's own, so that the node accounts for hypervisor and helpers."""

from __future__ import annotations

import contextlib
import os
from typing import Final

from common.cgroup import Cgroup, Hierarchies, kill_all, remove_leaf
from common.cgroup.paths import expand_slice
from common.errors import FailedPrecondition

# A cgroup of v1 takes no process before it has processors and memory nodes (cpusets(7)).
_CPUSET_FILES: Final = ("cpuset.cpus", "cpuset.mems")
_KILL_TIMEOUT_S: Final = 5.0


class MachineCgroup:
    """A leaf below the pod's cgroup, in every hierarchy where the engine has made that."""

    __slots__ = ("_cgroup", "_parent")

    def __init__(self, hierarchies: Hierarchies, cgroup_parent: str, sandbox_id: str) -> None:
        """:param cgroup_parent: the engine's, a path or a systemd slice; empty: it has given none."""
        self._parent: Cgroup | None = None
        self._cgroup: Cgroup | None = None
        if cgroup_parent:
            is_slice = "/" not in cgroup_parent and cgroup_parent.endswith(".slice")
            path = (expand_slice(cgroup_parent) if is_slice else f"/{cgroup_parent}").rstrip("/")
            self._parent = hierarchies.at(path)
            self._cgroup = hierarchies.at(f"{path}/sandboxd-{sandbox_id}")

    @property
    def parent(self) -> Cgroup | None:
        """The pod's cgroup."""
        return self._parent

    def directories(self) -> tuple[str, ...]:
        """Return its directories, made or not; none where the pod has no cgroup."""
        if self._parent is None or self._cgroup is None:
            return ()
        leaf = self._cgroup.path.rpartition("/")[2]
        return tuple(f"{parent}/{leaf}" for parent in self._parent.directories())

    def make(self) -> None:
        """Make it; all or nothing. A parent that does not exist is made by nobody: there is no cgroup then.

        :raise FailedPrecondition: the kernel refuses it.
        """
        if self._parent is None or self._cgroup is None:
            return
        try:
            for directory in self.directories():
                os.makedirs(directory, exist_ok=True)
                for name in _CPUSET_FILES:
                    _inherit(os.path.dirname(directory), directory, name)
        except OSError as error:
            self._remove()
            raise FailedPrecondition(f"cannot make the cgroup of the pod's machine: {error}") from error

    async def remove(self) -> None:
        """Kill what is left in it, and remove it. Idempotent."""
        if self._cgroup is not None:
            if self._cgroup.directories():
                await kill_all(self._cgroup, _KILL_TIMEOUT_S)
            self._remove()

    def _remove(self) -> None:
        if self._cgroup is not None:
            remove_leaf(self._cgroup)


def _inherit(parent: str, directory: str, name: str) -> None:
    with contextlib.suppress(FileNotFoundError), open(f"{directory}/{name}", "r+", encoding="ascii") as file:
        if not file.read().strip():
            with open(f"{parent}/{name}", encoding="ascii") as source:
                file.write(source.read())
