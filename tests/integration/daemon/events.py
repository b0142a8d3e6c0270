"""The engine's events service, as far as daemons use it."""

from __future__ import annotations

import socket
from typing import Any

from google.protobuf.empty_pb2 import Empty

from common.ttrpc import CallContext, Method, Server, Service
from proto.gen.containerd.services.ttrpc.events.v1.events_pb2 import ForwardRequest
from tests.integration.daemon.lab import Daemon, until

SERVICE = "containerd.services.events.ttrpc.v1.Events"


class Events:
    """Listens where a daemon publishes. `received`: (topic, type, namespace, bytes) in order."""

    def __init__(self, daemon: Daemon) -> None:
        self.received: list[tuple[str, str, str, bytes]] = []
        listener = socket.socket(socket.AF_UNIX)
        listener.setblocking(False)
        listener.bind(str(daemon.events_socket))
        listener.listen()
        self._server = Server({SERVICE: Service({"Forward": Method(ForwardRequest, _forward)}, self)})
        self._server.listen(listener)

    def topics_of(self, container_id: str) -> list[str]:
        """The topics of all events that speak of a container."""
        return [topic for topic, _, _, event in self.received if container_id.encode() in event]

    async def until(self, container_id: str, topic: str) -> None:
        """Wait for an event."""
        await until(lambda: topic in self.topics_of(container_id), 20, f"{topic} of {container_id}")

    def close(self) -> None:
        self._server.close()


async def _forward(target: Any, request: ForwardRequest, _: CallContext) -> Empty:
    envelope = request.envelope
    assert envelope.timestamp.seconds > 1_500_000_000
    target.received.append(
        (envelope.topic, envelope.event.type_url, envelope.namespace, envelope.event.value)
    )
    return Empty()
