"""Files of a cgroup, as kernels wrote them, to the messages that engines read."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.cgroup import stats_v1, stats_v2
from common.cgroup.files import number, read_text
from common.cgroup.locate import UNIFIED, Hierarchies, Hierarchy
from common.cgroup.stats import read_metrics, read_metrics_v1
from common.cgroup.stats_as_v1 import as_v1
from common.errors import NotFound
from proto.gen.cgroups.v1.metrics_pb2 import MemoryEntry


def keyed(pairs: str) -> str:
    """Return a "key value" file as the kernel writes it."""
    return "".join(f"{pair.replace('=', ' ')}\n" for pair in pairs.split())


V2 = {
    "cpu.stat": keyed(
        "usage_usec=123456 user_usec=100000 system_usec=23456 nice_usec=0 nr_periods=7 nr_throttled=2 "
        "throttled_usec=900 nr_bursts=0 burst_usec=0 "
    ),
    "cpu.pressure": "some avg10=1.50 avg60=0.25 avg300=0.01 total=4242\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
    "memory.stat": keyed(
        "anon=1048576 file=2097152 kernel=65536 kernel_stack=16384 slab=40000 slab_reclaimable=30000 "
        "slab_unreclaimable=10000 sock=1 shmem=2 file_mapped=3 file_dirty=4 file_writeback=5 anon_thp=6 "
        "inactive_anon=7 active_anon=8 inactive_file=4096 active_file=9 unevictable=10 pgfault=11 "
        "pgmajfault=12 workingset_refault_anon=20 workingset_refault_file=22 workingset_activate_anon=1 "
        "workingset_activate_file=2 workingset_nodereclaim=3 pgscan=13 pgsteal=14 pgrefill=15 "
        "pgactivate=16 pgdeactivate=17 pglazyfree=18 pglazyfreed=19 thp_fault_alloc=21 "
        "thp_collapse_alloc=23 zswap=0 "
    ),
    "memory.current": "3145728\n",
    "memory.max": "max\n",
    "memory.swap.current": "0\n",
    "memory.swap.max": "1048576\n",
    "memory.peak": "4194304\n",
    "memory.events": "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 0\n",
    "pids.current": "3\n",
    "pids.max": "100\n",
    "io.stat": "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n259:1 \n",
}
V1 = {
    "cpuacct.usage": "231139446315\n",
    "cpuacct.usage_percpu": "92527971561 138612860906 \n",
    "cpuacct.stat": "user 16342\nsystem 6771\n",
    "cpu.stat": "nr_periods 5\nnr_throttled 1\nthrottled_time 1000\nnr_bursts 0\nburst_time 0\n",
    "memory.stat": keyed(
        "cache=9699328 rss=9998336 rss_huge=0 shmem=9084928 mapped_file=7565312 dirty=28672 writeback=0 "
        "swap=0 pgpgin=39826 pgpgout=35017 pgfault=39677 pgmajfault=4 inactive_anon=0 active_anon=1531904 "
        "inactive_file=4096 active_file=610304 unevictable=17551360 "
        "hierarchical_memory_limit=9223372036854771712 hierarchical_memsw_limit=9223372036854771712 "
        "total_cache=224985088 total_rss=19464192 total_pgfault=9623605 total_pgmajfault=3646 "
        "total_inactive_file=103014400 "
    ),
    "memory.usage_in_bytes": "20000000\n",
    "memory.limit_in_bytes": "9223372036854771712\n",
    "memory.max_usage_in_bytes": "30000000\n",
    "memory.failcnt": "2\n",
    "memory.kmem.usage_in_bytes": "500\n",
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 1\noom_kill 3\n",
    "pids.current": "4\n",
    "pids.max": "max\n",
    "blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 0\n8:0 Total 4096\nTotal 4096\n",
    "blkio.throttle.io_serviced_recursive": "Total 0\n",
}
NOTHING: dict[str, str] = {}


def test_v2_files_become_the_v2_message() -> None:
    message = stats_v2.metrics(V2.get)
    assert message.DESCRIPTOR.full_name == "io.containerd.cgroups.v2.Metrics"
    cpu, memory = message.cpu, message.memory
    assert (cpu.usage_usec, cpu.user_usec, cpu.system_usec) == (123456, 100000, 23456)
    assert (cpu.nr_periods, cpu.nr_throttled, cpu.throttled_usec) == (7, 2, 900)
    assert (cpu.psi.some.avg10, cpu.psi.some.total, cpu.psi.full.total) == (1.5, 4242, 7)
    assert (memory.anon, memory.inactive_file, memory.pgfault, memory.pgmajfault) == (1048576, 4096, 11, 12)
    assert (memory.usage, memory.max_usage, memory.swap_limit) == (3145728, 4194304, 1048576)
    assert memory.usage_limit == 2**64 - 1
    assert (message.pids.current, message.pids.limit) == (3, 100)
    assert (message.memory_events.oom, message.memory_events.oom_kill) == (4, 5)
    (io,) = message.io.usage
    assert (io.major, io.minor, io.rbytes, io.wbytes, io.rios, io.wios) == (8, 0, 4096, 8192, 1, 2)


def test_every_v2_memory_counter_that_the_kernel_has_is_read() -> None:
    """The kernel splits refaults into anon and file; the message has their sum."""
    memory = stats_v2.metrics(V2.get).memory
    unset = {name for name in memory.DESCRIPTOR.fields_by_name if not getattr(memory, name)}
    assert unset == {"swap_usage", "swap_max_usage"}
    assert (memory.workingset_refault, memory.workingset_activate) == (42, 3)


def test_v1_files_become_the_v1_message() -> None:
    message = stats_v1.metrics(V1.get)
    assert message.DESCRIPTOR.full_name == "io.containerd.cgroups.v1.Metrics"
    usage, memory = message.cpu.usage, message.memory
    assert (usage.total, usage.user, usage.kernel) == (231139446315, 163420000000, 67710000000)
    assert list(usage.per_cpu) == [92527971561, 138612860906]
    throttling = message.cpu.throttling
    assert (throttling.periods, throttling.throttled_periods, throttling.throttled_time) == (5, 1, 1000)
    assert (memory.cache, memory.rss, memory.pg_pg_in, memory.pg_fault) == (9699328, 9998336, 39826, 39677)
    assert (memory.total_pg_fault, memory.total_pg_maj_fault, memory.total_inactive_file) == (
        9623605,
        3646,
        103014400,
    )
    assert memory.hierarchical_swap_limit == 9223372036854771712
    assert (memory.usage.usage, memory.usage.max, memory.usage.failcnt) == (20000000, 30000000, 2)
    assert memory.kernel.usage == 500
    assert not memory.HasField("swap")
    assert (message.pids.current, message.pids.limit) == (4, 0)
    assert (message.memory_oom_control.under_oom, message.memory_oom_control.oom_kill) == (1, 3)
    entries = [
        (entry.op, entry.major, entry.minor, entry.value)
        for entry in message.blkio.io_service_bytes_recursive
    ]
    assert entries == [("Read", 8, 0, 4096), ("Write", 8, 0, 0), ("Total", 8, 0, 4096)]


def test_the_v2_message_is_told_as_the_v1_message() -> None:
    message = as_v1(stats_v2.metrics(V2.get))
    usage, throttling, memory = message.cpu.usage, message.cpu.throttling, message.memory
    assert (usage.total, usage.user, usage.kernel) == (123456000, 100000000, 23456000)
    assert (throttling.periods, throttling.throttled_periods, throttling.throttled_time) == (7, 2, 900000)
    assert (memory.cache, memory.rss, memory.inactive_file, memory.pg_fault) == (2097152, 1048576, 4096, 11)
    assert (memory.total_cache, memory.total_rss, memory.total_inactive_file) == (2097152, 1048576, 4096)
    unlimited = 0x7FFFFFFFFFFFF000
    assert memory.usage == MemoryEntry(usage=3145728, limit=unlimited, max=4194304, failcnt=3)
    assert memory.swap == MemoryEntry(usage=3145728, limit=unlimited)
    assert (message.pids.current, message.pids.limit, message.memory_oom_control.oom_kill) == (3, 100, 5)
    bytes_, times = message.blkio.io_service_bytes_recursive, message.blkio.io_serviced_recursive
    assert [(e.op, e.major, e.minor, e.value) for e in bytes_] == [
        ("Read", 8, 0, 4096),
        ("Write", 8, 0, 8192),
        ("Total", 8, 0, 12288),
    ]
    assert [e.value for e in times] == [1, 2, 3]


def test_limits_of_the_v2_message_are_told_as_a_v1_kernel_would() -> None:
    unlimited = as_v1(stats_v2.metrics({**V2, "pids.max": "max\n"}.get))
    assert unlimited.pids.limit == 0
    limited = as_v1(stats_v2.metrics({**V2, "memory.max": "8388608\n"}.get)).memory
    assert (limited.usage.limit, limited.hierarchical_memory_limit) == (8388608, 8388608)
    assert limited.swap.limit == limited.hierarchical_swap_limit == 8388608 + 1048576


def test_what_the_v2_message_has_not_is_not_told_in_the_v1_message_either() -> None:
    message = as_v1(stats_v2.metrics(NOTHING.get))
    assert not any(message.HasField(name) for name in ("pids", "memory", "memory_oom_control", "blkio"))


def test_controllers_that_are_not_there_are_left_unset() -> None:
    v1, v2 = stats_v1.metrics(NOTHING.get), stats_v2.metrics(NOTHING.get)
    assert not any(v1.HasField(name) for name in ("pids", "cpu", "memory", "memory_oom_control"))
    assert not any(v2.HasField(name) for name in ("pids", "memory", "io", "memory_events"))


@pytest.mark.parametrize(("text", "value"), [(None, 0), ("", 0), ("12\n", 12), ("max\n", 99)])
def test_a_number_may_be_absent_or_unlimited(text: str | None, value: int) -> None:
    assert number(text, unlimited=99) == value


def test_long_files_are_read_to_their_end(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("a" * 100_000)
    assert read_text(f"{tmp_path}/x") == "a" * 100_000
    assert read_text(f"{tmp_path}/absent") is None
    assert read_text(f"{tmp_path}/x/y") is None


def test_metrics_are_read_from_the_directory_of_the_cgroup(tmp_path: Path) -> None:
    directory = tmp_path / "pod"
    directory.mkdir()
    for name, text in V2.items():
        (directory / name).write_text(text)
    hierarchies = Hierarchies({UNIFIED: Hierarchy(str(tmp_path), "/")})
    cgroup = hierarchies.cgroup({UNIFIED: "/pod"})
    assert read_metrics(cgroup) == stats_v2.metrics(V2.get)
    assert read_metrics_v1(cgroup) == as_v1(stats_v2.metrics(V2.get))


@pytest.mark.parametrize("path", ["/", "/gone"])
@pytest.mark.parametrize("controller", [UNIFIED, "memory"])
def test_a_cgroup_that_is_gone_or_the_root_has_no_metrics(tmp_path: Path, controller: str, path: str) -> None:
    hierarchies = Hierarchies({controller: Hierarchy(str(tmp_path), "/")})
    with pytest.raises(NotFound):
        read_metrics(hierarchies.cgroup({controller: path}))
