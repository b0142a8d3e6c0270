"""What this process itself uses, by the names that Prometheus's own clients give it."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

from sandboxers.metrics.families import family


def process_lines() -> Iterator[str]:
    """Yield memory, descriptors, threads and CPU time of this process (proc_pid_smaps(5), proc_pid_status(5))."""
    memory = _fields("/proc/self/smaps_rollup")
    status = _fields("/proc/self/status")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    # One less: that of this look itself.
    descriptors = len(os.listdir("/proc/self/fd")) - 1
    gauges = {
        ("process_resident_memory_bytes", "Memory of the daemon, shared pages in full."): memory["Rss"] << 10,
        ("process_proportional_memory_bytes", "Memory of the daemon, shared pages divided."): memory["Pss"]
        << 10,
        ("process_anonymous_memory_bytes", "What the daemon has allocated."): memory["Anonymous"] << 10,
        ("process_open_fds", "Open descriptors of the daemon."): descriptors,
        ("process_max_fds", "How many it may have."): resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        ("process_threads", "Threads of the daemon."): status["Threads"],
    }
    for (name, meaning), value in gauges.items():
        yield from family(name, "gauge", meaning, (), {(): value})
    seconds = usage.ru_utime + usage.ru_stime
    yield from family(
        "process_cpu_seconds_total", "counter", "CPU time of the daemon.", (), {(): round(seconds, 3)}
    )


def _fields(path: str) -> dict[str, int]:
    """Return the fields of a file of procfs that are numbers, whose unit is kB where they have one."""
    fields = {}
    with open(path, encoding="ascii", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            first = value.split(maxsplit=1)[:1]
            if first and first[0].isdigit():
                fields[name] = int(first[0])
    return fields
