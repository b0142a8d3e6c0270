"""cgroup v2 files to io.containerd.cgroups.v2.Metrics. Source: the kernel's admin-guide/cgroup-v2.rst."""

from __future__ import annotations

import functools
import os

from common.cgroup.files import Read, keyed_numbers, number
from proto.gen.cgroups.v2 import metrics_pb2 as pb

UNLIMITED = 2**64 - 1
"""How the message says "max"."""

_CPU = {
    name: name
    for name in ("usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec")
}
_MEMORY_FILES = {"usage", "usage_limit", "swap_usage", "swap_limit", "max_usage", "swap_max_usage", "psi"}
_MEMORY = {field: field for field in pb.MemoryStat.DESCRIPTOR.fields_by_name if field not in _MEMORY_FILES}
# Since Linux 5.9 the kernel counts anonymous and file pages apart; the message has their sum.
_MEMORY |= {
    f"{field}_{half}": field for field in _MEMORY if "workingset" in field for half in ("anon", "file")
}
# Since 6.4 there are two pairs of names as well, but the total stays.
_EVENTS = {name: name for name in ("low", "high", "max", "oom", "oom_kill")}


def metrics(read: Read) -> pb.Metrics:
    """Build the message from a cgroup's files, given by name; what is absent stays unset."""
    message = pb.Metrics(
        cpu=pb.CPUStat(**keyed_numbers(read("cpu.stat"), _CPU), psi=_pressure(read("cpu.pressure"))),
    )
    if (current := read("pids.current")) is not None:
        message.pids.current = number(current)
        message.pids.limit = number(read("pids.max"), unlimited=UNLIMITED)
    if (stat := read("memory.stat")) is not None:
        message.memory.CopyFrom(
            pb.MemoryStat(
                **keyed_numbers(stat, _MEMORY),
                usage=number(read("memory.current")),
                usage_limit=number(read("memory.max"), unlimited=UNLIMITED),
                swap_usage=number(read("memory.swap.current")),
                swap_limit=number(read("memory.swap.max"), unlimited=UNLIMITED),
                max_usage=number(read("memory.peak")),
                swap_max_usage=number(read("memory.swap.peak")),
                psi=_pressure(read("memory.pressure")),
            )
        )
        message.memory_events.CopyFrom(pb.MemoryEvents(**keyed_numbers(read("memory.events"), _EVENTS)))
    if (io := read("io.stat")) is not None:
        message.io.usage.extend(_io_entries(io))
        if (pressure := _pressure(read("io.pressure"))) is not None:
            message.io.psi.CopyFrom(pressure)
    for size in huge_page_sizes():
        if (current := read(f"hugetlb.{size}.current")) is not None:
            limit = number(read(f"hugetlb.{size}.max"), unlimited=UNLIMITED)
            message.hugetlb.add(pagesize=size, current=number(current), max=limit)
    return message


def _pressure(text: str | None) -> pb.PSIStats | None:
    """Parse a pressure file: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same for `full`."""
    stats = pb.PSIStats()
    for line in (text or "").splitlines():
        kind, *pairs = line.split()
        data = dict(pair.split("=", 1) for pair in pairs)
        target = stats.some if kind == "some" else stats.full
        target.avg10, target.avg60, target.avg300 = (
            float(data[name]) for name in ("avg10", "avg60", "avg300")
        )
        target.total = int(data["total"])
    return stats if text else None


def _io_entries(text: str) -> list[pb.IOEntry]:
    """Parse io.stat: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6` per device."""
    entries = []
    for line in text.splitlines():
        device, *pairs = line.split()
        major, separator, minor = device.partition(":")
        if not separator or not pairs:  # a device whose queue was never used has no counters
            continue
        data = dict(pair.split("=", 1) for pair in pairs)
        counters = {name: int(data[name]) for name in ("rbytes", "wbytes", "rios", "wios") if name in data}
        entries.append(pb.IOEntry(major=int(major), minor=int(minor), **counters))
    return entries


@functools.cache
def huge_page_sizes() -> tuple[str, ...]:
    """Return the huge page sizes of this machine as cgroup file names spell them: 2MB, 1GB."""
    try:
        names = os.listdir("/sys/kernel/mm/hugepages")
    except FileNotFoundError:
        return ()
    sizes = sorted(int(name.removeprefix("hugepages-").removesuffix("kB")) for name in names)
    return tuple(_spell(kib) for kib in sizes)


def _spell(kib: int) -> str:
    if kib >= 1 << 20:
        return f"{kib >> 20}GB"
    return f"{kib >> 10}MB" if kib >= 1 << 10 else f"{kib}KB"
