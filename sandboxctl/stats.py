"""What a container uses, out of the message of either cgroup hierarchy."""

from __future__ import annotations

from typing import NamedTuple

from google.protobuf.any_pb2 import Any as AnyMessage

_NO_LIMIT_BYTES = 1 << 60
"""What is above it is no limit but the hierarchy's way to say that there is none."""


class Usage(NamedTuple):
    """`cpu_ns` since the container's start; `memory_bytes` without file pages that nobody has used for a while;
    `limit_bytes` 0 if there is none; bytes read from and written to block devices."""

    cpu_ns: int
    memory_bytes: int
    limit_bytes: int
    processes: int
    read_bytes: int
    written_bytes: int


def parse_usage(stats: AnyMessage) -> Usage:
    """Return what the answer of a Stats call says."""
    if stats.type_url.endswith("cgroups.v2.Metrics"):
        return _parse_v2(stats.value)
    return _parse_v1(stats.value)


def _parse_v2(value: bytes) -> Usage:
    from proto.gen.cgroups.v2.metrics_pb2 import Metrics

    metrics = Metrics.FromString(value)
    return Usage(
        metrics.cpu.usage_usec * 1000,
        max(0, metrics.memory.usage - metrics.memory.inactive_file),
        _limit(metrics.memory.usage_limit),
        metrics.pids.current,
        sum(entry.rbytes for entry in metrics.io.usage),
        sum(entry.wbytes for entry in metrics.io.usage),
    )


def _parse_v1(value: bytes) -> Usage:
    from proto.gen.cgroups.v1.metrics_pb2 import Metrics

    metrics = Metrics.FromString(value)
    moved = {"Read": 0, "Write": 0}
    for entry in metrics.blkio.io_service_bytes_recursive:
        if entry.op in moved:
            moved[entry.op] += entry.value
    return Usage(
        metrics.cpu.usage.total,
        max(0, metrics.memory.usage.usage - metrics.memory.total_inactive_file),
        _limit(metrics.memory.usage.limit),
        metrics.pids.current,
        moved["Read"],
        moved["Write"],
    )


def _limit(value: int) -> int:
    return 0 if value >= _NO_LIMIT_BYTES else value
