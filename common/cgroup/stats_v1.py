"""cgroup v1 files to io.containerd.cgroups.v1.Metrics. Source: the kernel's admin-guide/cgroup-v1/."""

from __future__ import annotations

import os

from common.cgroup.files import Read, keyed_numbers, number
from proto.gen.cgroups.v1 import metrics_pb2 as pb

CONTROLLERS = ("cpu", "cpuacct", "memory", "pids", "blkio")

_NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

_THROTTLING = {
    "nr_periods": "periods",
    "nr_throttled": "throttled_periods",
    "throttled_time": "throttled_time",
}
_OOM = {name: name for name in ("oom_kill_disable", "under_oom", "oom_kill")}

_MEMORY_ENTRIES = {"usage", "swap", "kernel", "kernel_tcp"}
# Most names are the kernel's; a few got more underscores.
_KERNEL_NAMES = {
    "pg_pg_in": "pgpgin",
    "pg_pg_out": "pgpgout",
    "pg_fault": "pgfault",
    "pg_maj_fault": "pgmajfault",
    "hierarchical_swap_limit": "hierarchical_memsw_limit",
}
_MEMORY = {
    ("total_" if field.startswith("total_") else "") + _KERNEL_NAMES.get(plain, plain): field
    for field in pb.MemoryStat.DESCRIPTOR.fields_by_name
    if field not in _MEMORY_ENTRIES
    for plain in (field.removeprefix("total_"),)
}


def metrics(read: Read) -> pb.Metrics:
    """Build the message from a cgroup's files, given by name; what is absent stays unset."""
    message = pb.Metrics()
    if (total := read("cpuacct.usage")) is not None:
        ticks = keyed_numbers(read("cpuacct.stat"), {"user": "user", "system": "kernel"})
        usage = message.cpu.usage
        usage.total = int(total)
        usage.user = ticks.get("user", 0) * _NS_PER_TICK
        usage.kernel = ticks.get("kernel", 0) * _NS_PER_TICK
        usage.per_cpu.extend(map(int, (read("cpuacct.usage_percpu") or "").split()))
    if (throttling := read("cpu.stat")) is not None:
        message.cpu.throttling.CopyFrom(pb.Throttle(**keyed_numbers(throttling, _THROTTLING)))
    if (stat := read("memory.stat")) is not None:
        message.memory.CopyFrom(
            pb.MemoryStat(
                **keyed_numbers(stat, _MEMORY),
                usage=_memory_entry(read, ""),
                swap=_memory_entry(read, "memsw."),
                kernel=_memory_entry(read, "kmem."),
                kernel_tcp=_memory_entry(read, "kmem.tcp."),
            )
        )
        message.memory_oom_control.CopyFrom(
            pb.MemoryOomControl(**keyed_numbers(read("memory.oom_control"), _OOM))
        )
    if (current := read("pids.current")) is not None:
        # Here, other than in the v2 message, no limit is 0.
        message.pids.current = number(current)
        message.pids.limit = number(read("pids.max"))
    for name, entries in (
        ("io_service_bytes", message.blkio.io_service_bytes_recursive),
        ("io_serviced", message.blkio.io_serviced_recursive),
    ):
        entries.extend(_block_entries(read(f"blkio.throttle.{name}_recursive") or ""))
    return message


def _memory_entry(read: Read, kind: str) -> pb.MemoryEntry | None:
    """Read the four counters of memory, memsw (memory and swap), kmem or kmem.tcp."""
    usage = read(f"memory.{kind}usage_in_bytes")
    if usage is None:
        return None
    return pb.MemoryEntry(
        usage=int(usage),
        limit=number(read(f"memory.{kind}limit_in_bytes")),
        max=number(read(f"memory.{kind}max_usage_in_bytes")),
        failcnt=number(read(f"memory.{kind}failcnt")),
    )


def _block_entries(text: str) -> list[pb.BlkIOEntry]:
    """Parse `8:0 Read 4096` lines; the last line, `Total`, is the sum over devices and is left out."""
    entries = []
    for line in text.splitlines():
        match line.split():
            case [device, operation, value]:
                major, minor = device.split(":")
                entries.append(
                    pb.BlkIOEntry(
                        op=operation,
                        device=_device_path(device),
                        major=int(major),
                        minor=int(minor),
                        value=int(value),
                    )
                )
    return entries


def _device_path(device: str) -> str:
    try:
        return "/dev/" + os.path.basename(os.readlink(f"/sys/dev/block/{device}")).replace("!", "/")
    except OSError:
        return ""
