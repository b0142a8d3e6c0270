"""What a container uses, by both kinds of messages."""

from __future__ import annotations

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from proto.gen.cgroups.v1.metrics_pb2 import Metrics as MetricsV1
from proto.gen.cgroups.v2.metrics_pb2 import Metrics as MetricsV2
from sandboxctl.stats import Usage, parse_usage


def packed(message: Message) -> AnyMessage:
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def test_both_hierarchies_give_the_same_figures() -> None:
    v2 = MetricsV2()
    v2.cpu.usage_usec = 5
    v2.memory.usage, v2.memory.inactive_file, v2.memory.usage_limit = 1000, 300, 4096
    v2.pids.current = 2
    v2.io.usage.add(rbytes=10, wbytes=20)
    v2.io.usage.add(rbytes=1, wbytes=2)
    v1 = MetricsV1()
    v1.cpu.usage.total = 5000
    v1.memory.usage.usage, v1.memory.total_inactive_file, v1.memory.usage.limit = 1000, 300, 4096
    v1.pids.current = 2
    for op, value in ("Read", 10), ("Write", 20), ("Sync", 99), ("Read", 1), ("Write", 2):
        v1.blkio.io_service_bytes_recursive.add(op=op, value=value)
    assert parse_usage(packed(v2)) == parse_usage(packed(v1)) == Usage(5000, 700, 4096, 2, 11, 22)


def test_what_no_machine_has_is_no_limit() -> None:
    v1 = MetricsV1()
    v1.memory.usage.limit = (1 << 63) - 4096
    v2 = MetricsV2()
    v2.memory.usage_limit = (1 << 64) - 1
    assert parse_usage(packed(v1)).limit_bytes == parse_usage(packed(v2)).limit_bytes == 0
