"""What a daemon with everything on lets others see: figures, traces, and the log of starts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest_asyncio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from common.errors import Code
from proto.gen.containerd.task.v3 import shim_pb2 as api
from proto.gen.runtime.v1 import api_pb2 as cri
from sandboxers.start_log import read_starts
from tests.integration.daemon.client import TASK, Controller, Pod, refused
from tests.integration.daemon.lab import BASE, CHECKOUT, Daemon, Lab, until
from tests.integration.daemon.specs import pod_config
from tests.lines import complete_lines

PORT = 4318
SPANS = f"{BASE}/spans"


class ObservedDaemon(Daemon):
    """One that is told of a collector."""

    @property
    def environment(self) -> dict[str, str]:
        return {
            **super().environment,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{PORT}",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "NO_PROXY": "*",
        }

    async def figures(self) -> Mapping[str, float]:
        """All samples, without the label that every one has."""
        # Through a descriptor: seen from here the path can be longer than a socket's may be.
        directory = os.open(self.lab.path(self.base), os.O_PATH)
        try:
            reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/m.sock")
        finally:
            os.close(directory)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = (await reader.read()).decode()
        writer.close()
        assert answer.startswith("HTTP/1.0 200 OK\r\n")
        lines = [line for line in answer.split("\r\n\r\n", 1)[1].splitlines() if not line.startswith("#")]
        pairs = [line.rsplit(" ", 1) for line in lines]
        return {
            n.replace('type="runc",', "").replace('{type="runc"}', ""): float(value) for n, value in pairs
        }

    def spans(self) -> list[Any]:
        """All that was exported so far."""
        path = self.lab.path(SPANS)
        if not path.exists():
            return []
        requests = [bytes.fromhex(line) for line in complete_lines(path.read_text())]
        return [
            span
            for request in map(ExportTraceServiceRequest.FromString, requests)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest_asyncio.fixture(loop_scope="session")
async def observed(lab: Lab) -> AsyncIterator[tuple[ObservedDaemon, Controller]]:
    daemon = ObservedDaemon(lab, "observed", metrics={"address": f"unix://{BASE}/observed/m.sock"})
    command = [sys.executable, str(Path(__file__).with_name("collector.py")), str(PORT), SPANS]
    with open(os.devnull, "ab") as nothing:
        collector = lab.namespaces.spawn(command, nothing, {"PYTHONPATH": str(CHECKOUT)})
    try:
        await daemon.start()
        controller = Controller(daemon)
        yield daemon, controller
        await controller.close()
        daemon.remove()
    finally:
        collector.stop()
        lab.path(SPANS).unlink(missing_ok=True)


async def test_a_pod_is_counted_traced_and_on_record(observed: tuple[ObservedDaemon, Controller]) -> None:
    daemon, controller = observed
    pod = Pod(daemon, controller, "seen", pod_config("seen", network=cri.NODE), "")
    await pod.create()
    await pod.start()
    container = await pod.running("sleep", "1000", streams=())
    figures = await daemon.figures()
    assert figures['sandboxd_sandboxes{state="running"}'] == 1
    assert figures['sandboxd_containers{state="running"}'] == 1
    assert figures['sandboxd_operation_seconds_count{operation="container.create",outcome="ok"}'] == 1
    assert (
        figures['sandboxd_step_seconds_count{operation="sandbox.start",step="sandbox.namespaces_made"}'] == 1
    )
    assert figures[f'sandboxd_rpc_total{{service="{TASK}",method="Start",code="0"}}'] == 1
    service = "containerd.services.sandbox.v1.Controller"
    assert figures[f'sandboxd_rpc_total{{service="{service}",method="Create",code="0"}}'] == 1

    await container.kill(9)
    await container.wait()
    with refused(Code.NOT_FOUND):
        await controller("Status", "nobody")
    figures = await daemon.figures()
    assert figures['sandboxd_container_exits_total{code="137"}'] == 1
    assert figures['sandboxd_containers{state="stopped"}'] == 1
    assert figures[f'sandboxd_rpc_total{{service="{service}",method="Status",code="5"}}'] == 1
    assert figures["sandboxd_generation"] == 1

    trace, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with contextlib.suppress(Exception):
        await pod.task.client.call(
            TASK,
            "Start",
            api.StartRequest(id="nobody"),
            api.StartResponse,
            timeout_s=20,
            metadata=[("traceparent", f"00-{trace}-{caller}-01")],
        )
    await until(lambda: any(s.trace_id.hex() == trace for s in daemon.spans()), 20, "the span")
    spans = {span.name: span for span in daemon.spans()}
    assert spans["container.start"].parent_span_id.hex() == caller
    assert spans["sandbox.namespaces_made"].parent_span_id == spans["sandbox.start"].span_id

    starts = list(read_starts(str(daemon.lab.path(daemon.state_dir))))
    assert [(each["action"], each["error"] == "") for each in starts] == [
        ("sandbox.create", True),
        ("sandbox.start", True),
        ("container.create", True),
        ("container.start", True),
        ("container.start", False),
    ]
    assert starts[0]["pod"] == "default/seen"
    await pod.remove()

    daemon.stop()
    await daemon.start()
    figures = await daemon.figures()
    assert (figures["sandboxd_generation"], figures.get('sandboxd_sandboxes{state="running"}', 0)) == (2, 0)


async def explain(pod: Pod, *arguments: str) -> str:
    """What `sandboxctl explain` prints, run beside the daemon."""
    daemon = pod.daemon
    command = [sys.executable, "-m", "sandboxctl", "--config", f"{daemon.base}/config.yaml", "explain"]
    run = await asyncio.to_thread(
        daemon.lab.namespaces.run, [*command, pod.id, *arguments], check=False, env=daemon.environment
    )
    assert (run.returncode, run.stderr) == (0, ""), run.stderr
    return str(run.stdout)


async def test_a_pod_is_explained_while_it_waits_and_when_it_runs(lab: Lab, pod: Pod) -> None:
    assert "its engine has asked for no container" in await explain(pod)
    container = pod.container("sleep", "1000", streams=())
    with lab.gated(container.id, "create") as gate:
        creation = asyncio.ensure_future(container.create())
        await lab.runtime_called(container.id)
        stuck = await explain(pod)
        gate.touch()
        await creation
    assert f"Its engine has asked to create container {container.id[:13]}, " in stuck
    assert "That waits for the runtime to make it" in stuck
    assert "container.made" not in stuck and "streams opened" in stuck
    assert "waits for its engine to start it" in await explain(pod)
    await container.start()
    assert "It waits for nothing" in await explain(pod)
    timeline = json.loads(await explain(pod, "--json"))
    assert [start["action"] for start in timeline["starts"]] == [
        "sandbox.create",
        "sandbox.start",
        "container.create",
        "container.start",
    ]
    await container.kill(9)
    await container.wait()
    assert f"Container {container.id[:13]} has ended with exit code 137." in await explain(pod)
