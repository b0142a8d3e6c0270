"""io.containerd.cgroups.v2.Metrics told as io.containerd.cgroups.v1.Metrics, for engines that know only these.

What v1 counts and v2 does not stays unset; sums over descendants (`total_*`) are what v2 counts anyway. Sources: the
kernel's admin-guide/cgroup-v2.rst and admin-guide/cgroup-v1/; iSulad contract section 2 (stats).
"""

from __future__ import annotations

from proto.gen.cgroups.v1 import metrics_pb2 as v1
from proto.gen.cgroups.v2 import metrics_pb2 as v2

_UNLIMITED = 2**64 - 1
_NO_MEMORY_LIMIT = 0x7FFF_FFFF_FFFF_F000
"""PAGE_COUNTER_MAX, which a v1 kernel shows where nothing is limited."""

_NS_PER_US = 1000

_COUNTERS = {
    "file": "cache",
    "anon": "rss",
    "anon_thp": "rss_huge",
    "file_mapped": "mapped_file",
    "file_dirty": "dirty",
    "file_writeback": "writeback",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
    "inactive_anon": "inactive_anon",
    "active_anon": "active_anon",
    "inactive_file": "inactive_file",
    "active_file": "active_file",
    "unevictable": "unevictable",
}


def as_v1(metrics: v2.Metrics) -> v1.Metrics:
    """Return the same figures in the other message."""
    told = v1.Metrics()
    if metrics.HasField("cpu"):
        told.cpu.CopyFrom(_cpu(metrics.cpu))
    if metrics.HasField("memory"):
        told.memory.CopyFrom(_memory(metrics.memory, metrics.memory_events.max))
        told.memory_oom_control.oom_kill = metrics.memory_events.oom_kill
    if metrics.HasField("pids"):
        # Here no limit is 0.
        limit = metrics.pids.limit
        told.pids.CopyFrom(v1.PidsStat(current=metrics.pids.current, limit=limit % _UNLIMITED))
    for entry in metrics.io.usage:
        told.blkio.io_service_bytes_recursive.extend(_block_entries(entry, entry.rbytes, entry.wbytes))
        told.blkio.io_serviced_recursive.extend(_block_entries(entry, entry.rios, entry.wios))
    told.hugetlb.extend(v1.HugetlbStat(pagesize=h.pagesize, usage=h.current) for h in metrics.hugetlb)
    return told


def _cpu(cpu: v2.CPUStat) -> v1.CPUStat:
    return v1.CPUStat(
        usage=v1.CPUUsage(
            total=cpu.usage_usec * _NS_PER_US,
            user=cpu.user_usec * _NS_PER_US,
            kernel=cpu.system_usec * _NS_PER_US,
        ),
        throttling=v1.Throttle(
            periods=cpu.nr_periods,
            throttled_periods=cpu.nr_throttled,
            throttled_time=cpu.throttled_usec * _NS_PER_US,
        ),
    )


def _memory(memory: v2.MemoryStat, failures: int) -> v1.MemoryStat:
    counters = {}
    for name, its_name in _COUNTERS.items():
        counters[its_name] = counters[f"total_{its_name}"] = getattr(memory, name)
    limit = min(memory.usage_limit, _NO_MEMORY_LIMIT)
    # "swap" is memory and swap together, which v2 counts and limits apart.
    both = min(memory.usage_limit + memory.swap_limit, _NO_MEMORY_LIMIT)
    return v1.MemoryStat(
        **counters,
        hierarchical_memory_limit=limit,
        hierarchical_swap_limit=both,
        usage=v1.MemoryEntry(usage=memory.usage, limit=limit, max=memory.max_usage, failcnt=failures),
        swap=v1.MemoryEntry(usage=memory.usage + memory.swap_usage, limit=both),
    )


def _block_entries(entry: v2.IOEntry, read: int, written: int) -> list[v1.BlkIOEntry]:
    values = {"Read": read, "Write": written, "Total": read + written}
    return [
        v1.BlkIOEntry(op=operation, major=entry.major, minor=entry.minor, value=value)
        for operation, value in values.items()
    ]
