"""Cgroups, v1, v2 and hybrid: where a process is, what it uses, whether it ran out of memory, and its end.

OCI runtimes make and remove the cgroups of their containers, which this package only reads; for containers without
such a runtime it makes them too. It removes only what its caller made, and never touches a hierarchy's root or an
engine's parent cgroup.
"""

from __future__ import annotations

from common.cgroup.limits import apply_limits, join_cgroup, make_cgroup, set_frozen
from common.cgroup.locate import Cgroup, Hierarchies
from common.cgroup.oom import OomWatch, OomWatcher, oom_kill_count
from common.cgroup.paths import CgroupsPath, parse_cgroups_path
from common.cgroup.primer import MigrationPrimer
from common.cgroup.processes import kill_all, pids, remove_leaf, signal_all
from common.cgroup.stats import read_metrics

__all__ = [
    "Cgroup",
    "CgroupsPath",
    "Hierarchies",
    "MigrationPrimer",
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
    "remove_leaf",
    "set_frozen",
    "signal_all",
]
