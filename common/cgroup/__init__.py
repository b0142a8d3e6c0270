"""Cgroups, v1, v2 and hybrid: where a process is, what it uses, whether it ran out of memory, and its end.

OCI runtimes make and remove the cgroups of their containers, which this package only reads; for containers without
such a runtime it makes them too. It removes only what its caller made, and never touches a hierarchy's root or an
engine's parent cgroup.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.cgroup.freezer import set_frozen
    from common.cgroup.limits import apply_limits, join_cgroup, make_cgroup
    from common.cgroup.locate import Cgroup, Hierarchies
    from common.cgroup.oom import OomWatch, OomWatcher, oom_kill_count
    from common.cgroup.paths import CgroupsPath, parse_cgroups_path
    from common.cgroup.processes import kill_all, pids, remove_leaf, signal_all
    from common.cgroup.stats import read_metrics, read_metrics_v1

__all__ = [
    "Cgroup",
    "CgroupsPath",
    "Hierarchies",
    "OomWatch",
    "OomWatcher",
    "apply_limits",
    "join_cgroup",
    "kill_all",
    "make_cgroup",
    "oom_kill_count",
    "parse_cgroups_path",
    "pids",
    "read_metrics",
    "read_metrics_v1",
    "remove_leaf",
    "set_frozen",
    "signal_all",
]

_HOMES = {
    "Cgroup": "locate",
    "CgroupsPath": "paths",
    "Hierarchies": "locate",
    "MigrationPrimer": "primer",
    "OomWatch": "oom",
    "OomWatcher": "oom",
    "apply_limits": "limits",
    "join_cgroup": "limits",
    "kill_all": "processes",
    "make_cgroup": "limits",
    "oom_kill_count": "oom",
    "parse_cgroups_path": "paths",
    "pids": "processes",
    "read_metrics": "stats",
    "read_metrics_v1": "stats",
    "remove_leaf": "processes",
    "set_frozen": "freezer",
    "signal_all": "processes",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for only then (PEP 562): a process that joins a cgroup needs no event loop, nor messages."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Not importlib's function, which a guest's agent would have to load.
    return getattr(__import__(f"{__name__}.{_HOMES[name]}", fromlist=[name]), name)
