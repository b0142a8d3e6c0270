"""Events reach an engine's real ttrpc server, in order, or are given up without harm."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from common import log
from common.errors import Unavailable, status_of
from common.task import events as events_module
from common.task.events import EnginePublisher, NullSink
from common.ttrpc import CallContext, Method, Server, Service
from proto.gen.containerd.events import task_pb2 as events
from proto.gen.containerd.services.ttrpc.events.v1.events_pb2 import ForwardRequest
from tests.unit.common.task.conftest import until


class EngineEvents:
    """The engine's side: a ttrpc server that can be away, refuse, or be slow."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.received: list[ForwardRequest] = []
        self.refusals = 0
        self.gate: asyncio.Event | None = None
        self._server: Server | None = None

    async def forward(self, request: ForwardRequest, _: CallContext) -> Empty:
        if self.gate is not None:
            await self.gate.wait()
        if self.refusals:
            self.refusals -= 1
            raise Unavailable("not now")
        self.received.append(request)
        return Empty()

    def listen(self) -> None:
        methods = {"Forward": Method(ForwardRequest, EngineEvents.forward)}
        name = "containerd.services.events.ttrpc.v1.Events"
        self._server = Server({name: Service(methods, self)}, status_of=status_of, authorize=None)
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        self.path.unlink(missing_ok=True)
        sock.bind(str(self.path))
        sock.listen()
        self._server.listen(sock)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    @property
    def connections(self) -> int:
        return self._server.connection_count if self._server is not None else 0

    def ids(self) -> list[str]:
        return [events.TaskStart.FromString(r.envelope.event.value).container_id for r in self.received]


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EngineEvents]:
    engine = EngineEvents(tmp_path / "s")
    yield engine
    engine.close()
    await asyncio.sleep(0)


@pytest.fixture
async def publisher(engine: EngineEvents) -> AsyncIterator[EnginePublisher]:
    publisher = EnginePublisher(str(engine.path), "k8s.io")
    yield publisher
    publisher.close()
    await asyncio.sleep(0)


def publish(publisher: EnginePublisher, *names: str) -> None:
    for name in names:
        publisher.publish("/tasks/start", events.TaskStart(container_id=name, pid=1))


async def test_an_event_arrives_as_the_engine_compares_it(
    engine: EngineEvents, publisher: EnginePublisher
) -> None:
    engine.listen()
    before_ns = time.time_ns()
    publisher.publish("/tasks/oom", events.TaskOOM(container_id="c"))
    await publisher.flush(5)
    (request,) = engine.received
    envelope = request.envelope
    assert (envelope.namespace, envelope.topic) == ("k8s.io", "/tasks/oom")
    assert envelope.event.type_url == "containerd.events.TaskOOM", "no prefix"
    assert events.TaskOOM.FromString(envelope.event.value).container_id == "c"
    assert before_ns <= envelope.timestamp.ToNanoseconds() <= time.time_ns()


async def test_events_keep_their_order_on_one_connection(
    engine: EngineEvents, publisher: EnginePublisher
) -> None:
    engine.listen()
    names = [f"c{n}" for n in range(200)]
    publish(publisher, *names[:150])
    await publisher.flush(5)
    publish(publisher, *names[150:])
    await publisher.flush(5)
    assert engine.ids() == names
    assert engine.connections == 1


async def test_publishing_waits_for_nobody(engine: EngineEvents, publisher: EnginePublisher) -> None:
    engine.listen()
    engine.gate = asyncio.Event()
    begun = time.monotonic()
    publish(publisher, *(f"c{n}" for n in range(100)))
    await publisher.flush(0.05)
    assert 0.04 < time.monotonic() - begun < 2, "a flush ends at its limit"
    assert engine.received == []
    engine.gate.set()
    await publisher.flush(5)
    assert len(engine.received) == 100


async def test_a_flush_with_nothing_to_send_returns_at_once(publisher: EnginePublisher) -> None:
    await asyncio.wait_for(publisher.flush(60), 20)


async def test_an_engine_that_is_away_is_tried_again(
    engine: EngineEvents, publisher: EnginePublisher
) -> None:
    publish(publisher, "a", "b")
    await asyncio.sleep(0.05)
    engine.listen()
    await publisher.flush(5)
    assert engine.ids() == ["a", "b"]
    assert publisher.dropped == 0


async def test_an_engine_that_restarts_is_found_again(
    engine: EngineEvents, publisher: EnginePublisher
) -> None:
    engine.listen()
    publish(publisher, "a")
    await publisher.flush(5)
    engine.close()
    await asyncio.sleep(0.01)
    engine.listen()
    publish(publisher, "b")
    await publisher.flush(5)
    assert engine.ids() == ["a", "b"]


async def test_a_refused_event_is_tried_again_and_then_dropped_alone(
    engine: EngineEvents, publisher: EnginePublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "_RETRY_DELAY_S", 0.001)
    engine.listen()
    engine.refusals = 4
    publish(publisher, "a")
    await publisher.flush(5)
    assert engine.ids() == ["a"]
    engine.refusals = 5
    with log.capture() as lines:
        publish(publisher, "b", "c")
        await publisher.flush(5)
    assert engine.ids() == ["a", "c"]
    assert publisher.dropped == 1
    assert [line["topic"] for line in lines if line["event"] == "event.dropped"] == ["/tasks/start"]


async def test_when_too_many_wait_the_oldest_are_dropped(
    engine: EngineEvents, publisher: EnginePublisher
) -> None:
    engine.listen()
    engine.gate = asyncio.Event()
    publish(publisher, "first")
    await until(lambda: engine.connections == 1)
    publish(publisher, *(f"c{n}" for n in range(2100)))
    engine.gate.set()
    await publisher.flush(10)
    ids = engine.ids()
    assert ids[-1] == "c2099"
    assert len(ids) <= 2049
    assert ids[1:] == [f"c{n}" for n in range(2100 - len(ids) + 1, 2100)], "the newest, in order"
    assert publisher.dropped + len(ids) >= 2101


async def test_closing_drops_what_waits_and_may_be_repeated(
    engine: EngineEvents, publisher: EnginePublisher
) -> None:
    engine.listen()
    engine.gate = asyncio.Event()
    publish(publisher, "a", "b")
    await until(lambda: engine.connections == 1)
    publisher.close()
    publisher.close()
    await until(lambda: engine.connections == 0)
    assert engine.received == []


async def test_without_an_engine_events_go_nowhere() -> None:
    sink = NullSink()
    sink.publish("/tasks/oom", events.TaskOOM())
    await sink.flush(60)
    sink.close()
