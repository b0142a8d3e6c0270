"""Spans, as a collector gets them: the SDK's own exporter in a process of its own, and a small HTTP server here."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sandboxers.tracing import is_wanted

ROOT = Path(__file__).resolve().parents[4]

PROGRAM = """
import sys, time
from common.log import get_logger
from common.operations import Action, note_step, operation
from sandboxers.tracing.spans import export_spans

export_spans("fake")
metadata = [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("other", b"x")]
begun = time.monotonic()
for _ in range(int(sys.argv[1])):
    with operation(Action.SANDBOX_START, "pod", metadata=metadata):
        note_step("sandbox.starting")
        note_step("sandbox.started")
try:
    with operation(Action.CONTAINER_CREATE, "pod", "container"):
        raise KeyError("gone")
except KeyError:
    pass
get_logger().info("made", seconds=time.monotonic() - begun)
time.sleep(float(sys.argv[2]))
import os
os._exit(0)  # as the daemon ends
"""


class Collector(ThreadingHTTPServer):
    """Takes what is exported."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[ExportTraceServiceRequest] = []
        self.paths: list[str] = []

    @property
    def spans(self) -> list[Any]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.paths.append(self.path)
        self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever, args=(0.01,))
    thread.start()
    yield collector
    collector.shutdown()
    thread.join()
    collector.server_close()


def run(endpoint: str, operations: int, linger_s: float, **environment: str) -> str:
    """What the program has logged."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(operations), str(linger_s)],
        cwd=ROOT,
        env={
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "NO_PROXY": "*",
            **environment,
        },
        stderr=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stderr


def test_an_operation_is_a_span_below_its_callers_and_its_steps_are_below_it(collector: Collector) -> None:
    run(f"http://127.0.0.1:{collector.server_port}", 1, 2.0)
    assert set(collector.paths) == {"/v1/traces"}
    resource = {
        a.key: a.value.string_value for a in collector.requests[0].resource_spans[0].resource.attributes
    }
    assert (resource["service.name"], resource["sandboxd.type"]) == ("sandboxd", "fake")
    spans = {span.name: span for span in collector.spans}
    assert set(spans) == {"sandbox.start", "sandbox.starting", "sandbox.started", "container.create"}
    start = spans["sandbox.start"]
    assert (start.trace_id.hex(), start.parent_span_id.hex()) == (
        "0af7651916cd43dd8448eb211c80319c",
        "b7ad6b7169203331",
    )
    first, second = spans["sandbox.starting"], spans["sandbox.started"]
    assert {first.parent_span_id, second.parent_span_id} == {start.span_id}
    assert {first.trace_id, second.trace_id} == {start.trace_id}
    assert start.start_time_unix_nano == first.start_time_unix_nano
    assert first.end_time_unix_nano == second.start_time_unix_nano
    assert second.end_time_unix_nano <= start.end_time_unix_nano
    assert abs(start.start_time_unix_nano - time.time_ns()) < 60e9
    failed = spans["container.create"]
    attributes = {a.key: a.value.string_value for a in failed.attributes}
    assert attributes == {"sandboxd.sandbox_id": "pod", "sandboxd.container_id": "container"}
    assert failed.status.message == "'gone'"
    assert failed.trace_id != start.trace_id


def test_a_collector_that_is_away_costs_spans_and_nothing_else() -> None:
    logged = run(
        "http://127.0.0.1:9", 1000, 2.0, OTEL_BSP_MAX_QUEUE_SIZE="100", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="50"
    )
    assert '"event":"made"' in logged
    assert '"event":"tracing.failed"' in logged
    assert "Traceback" not in logged
    assert logged.count("\n") < 20, "one complaint is enough"


def test_a_collector_that_takes_connections_and_never_answers_holds_nobody_up() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        logged = run(f"http://127.0.0.1:{deaf.getsockname()[1]}", 1000, 0.2)
    assert '"event":"tracing.started"' in logged
    assert '"event":"made"' in logged


def test_variables_that_the_sdk_refuses_cost_traces_and_nothing_else() -> None:
    logged = run("http://127.0.0.1:9", 1, 0, OTEL_BSP_MAX_QUEUE_SIZE="1", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="2")
    assert '"event":"tracing.unavailable"' in logged
    assert '"event":"made"' in logged


def test_without_the_extra_that_is_said() -> None:
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from sandboxers.tracing.spans import export_spans; export_spans('fake')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=True
    )
    assert '"event":"tracing.unavailable"' in done.stderr
    assert "sandboxd[otel]" in done.stderr


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
    ],
)
def test_when_traces_are_wanted(environment: dict[str, str], wanted: bool) -> None:
    assert is_wanted(environment) is wanted
