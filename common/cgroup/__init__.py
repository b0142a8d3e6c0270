"""Cgroups, v1, v2 and hybrid: where a process is, what it uses, whether it ran out of memory, and its end.

The runtime makes and removes the cgroups of containers; this package reads them. It removes only what its
caller made, and never touches a hierarchy's root or an engine's parent cgroup.
"""

from __future__ import annotations

from common.cgroup.locate import Cgroup, Hierarchies
from common.cgroup.oom import OomWatch, OomWatcher, oom_kill_count
from common.cgroup.paths import CgroupsPath, parse_cgroups_path
from common.cgroup.processes import kill_all, pids, remove_leaf, signal_all
from common.cgroup.stats import read_metrics

__all__ = [
    "Cgroup",
    "CgroupsPath",
    "Hierarchies",
    "OomWatch",
    "OomWatcher",
    "kill_all",
    "oom_kill_count",
    "parse_cgroups_path",
    "pids",
    "read_metrics",
    "remove_leaf",
    "signal_all",
]
