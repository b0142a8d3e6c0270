"""A real containerd that traces: what sandboxd does for a pod is in the engine's own trace."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.engine.conftest import start_container
from tests.engine.engine import Engine
from tests.engine.handlers import RUNC
from tests.integration.daemon import collector
from tests.lines import complete_lines

PORT = 4318
EXPORT_S = 20.0


class Span(NamedTuple):
    """One span, as a collector gets it."""

    service: str
    name: str
    trace: str
    parent: str


@pytest.fixture
def traced(parts: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Engine, Path]]:
    """An engine and a sandboxer that export to a collector beside them, and where that writes."""
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{PORT}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "NO_PROXY": "*",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with Engine(RUNC) as engine:
        path = engine.directory / "spans"
        command = [sys.executable, str(collector.__file__), str(PORT), str(path)]
        with open(os.devnull, "ab") as nothing:
            program = engine.namespaces.spawn(command, nothing)
        engine.start()
        engine.start_sandboxer()
        yield engine, path
        program.stop()


def spans_in(path: Path) -> dict[str, Span]:
    """All spans so far, by their ids."""
    found: dict[str, Span] = {}
    for line in complete_lines(path.read_text()) if path.exists() else ():
        for part in ExportTraceServiceRequest.FromString(bytes.fromhex(line)).resource_spans:
            service = {a.key: a.value.string_value for a in part.resource.attributes}["service.name"]
            spans: list[Any] = [span for scope in part.scope_spans for span in scope.spans]
            for span in spans:
                found[span.span_id.hex()] = Span(
                    service, span.name, span.trace_id.hex(), span.parent_span_id.hex()
                )
    return found


def test_what_is_done_for_containers_is_in_the_trace_of_their_engine(traced: tuple[Engine, Path]) -> None:
    engine, path = traced
    pod, _ = start_container(engine.cri, handler=RUNC.name)
    engine.cri.stop_pod(pod)
    engine.cri.remove_pod(pod)
    # containerd bears its trace to Task services alone: what it asks of a proxied sandboxer begins one of its own.
    inside, alone = (
        {"container.create", "container.start", "container.delete"},
        {"sandbox.create", "sandbox.start"},
    )
    deadline = time.monotonic() + EXPORT_S
    spans: dict[str, Span] = {}
    callers: dict[str, str] = {}
    while set(callers) != inside or not alone <= {span.name for span in spans.values()}:
        assert time.monotonic() < deadline, spans
        time.sleep(0.1)
        spans = spans_in(path)
        callers = {
            span.name: spans[span.parent].name
            for span in spans.values()
            if span.name in inside and span.parent in spans
        }
    assert callers == {
        f"container.{method.lower()}": f"containerd.task.v3.Task/{method}"
        for method in ("Create", "Start", "Delete")
    }
