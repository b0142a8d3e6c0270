"""/tasks/* events on their way to a ttrpc events service (engine contract section 3, Events): the engine's, or that of
a guest's host."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from common.log import get_logger
from common.ttrpc import Client
from proto.gen.containerd.services.ttrpc.events.v1.events_pb2 import ForwardRequest

_SERVICE = "containerd.services.events.ttrpc.v1.Events"
_CRI_NAMESPACE = "k8s.io"
_QUEUE_LENGTH = 2048
_ATTEMPTS = 5
_CALL_TIMEOUT_S = 5.0
_RETRY_DELAY_S = 1.0


class EventPublisher:
    """Sends events in order, retrying a few times, and drops the oldest when nobody takes them for long.

    Publishing only appends to a queue; one task sends, and lives no longer than the queue is filled.
    """

    __slots__ = ("_attempts", "_client", "_connect", "_log", "_namespace", "_queue", "_sender", "dropped")

    def __init__(
        self, connect: Callable[[], Awaitable[Client]], namespace: str, attempts: int = _ATTEMPTS
    ) -> None:
        """:param connect: returns a new connection to the service. :param attempts: made to send an event."""
        self._connect = connect
        self._namespace = namespace
        self._attempts = attempts
        self._queue: deque[ForwardRequest] = deque()
        self._client: Client | None = None
        self._sender: asyncio.Task[None] | None = None
        self._log = get_logger()
        self.dropped = 0

    def publish(self, topic: str, event: Message) -> None:
        """Queue one event under a topic such as "/tasks/exit"."""
        request = ForwardRequest()
        envelope = request.envelope
        envelope.timestamp.FromNanoseconds(time.time_ns())
        envelope.namespace = self._namespace
        envelope.topic = topic
        # The engine compares type URLs as they are: no type.googleapis.com prefix (engine contract section 0.10).
        envelope.event.CopyFrom(Any(type_url=event.DESCRIPTOR.full_name, value=event.SerializeToString()))
        if len(self._queue) >= _QUEUE_LENGTH:
            self._queue.popleft()
            self.dropped += 1
        self._queue.append(request)
        if self._sender is None:
            self._sender = asyncio.get_running_loop().create_task(self._send_all())

    async def flush(self, timeout_s: float) -> None:
        """Wait until all that was published is delivered or given up, at the longest `timeout_s`."""
        if self._sender is not None:
            await asyncio.wait([self._sender], timeout=timeout_s)

    def close(self) -> None:
        """Stop sending; what is queued is lost."""
        if self._sender is not None:
            self._sender.cancel()
            self._sender = None
        if self._client is not None:
            self._client.close()
            self._client = None

    async def _send_all(self) -> None:
        try:
            while self._queue:
                request = self._queue[0]
                if not await self._deliver(request):
                    self.dropped += 1
                    self._log.warning("event.dropped", topic=request.envelope.topic)
                with contextlib.suppress(IndexError):
                    if self._queue[0] is request:
                        self._queue.popleft()
        finally:
            self._sender = None

    async def _deliver(self, request: ForwardRequest) -> bool:
        for attempt in range(self._attempts):
            if attempt:
                await asyncio.sleep(_RETRY_DELAY_S)
            try:
                if self._client is None or self._client.closed:
                    self._client = await self._connect()
                await self._client.call(_SERVICE, "Forward", request, Empty, timeout_s=_CALL_TIMEOUT_S)
                return True
            except (
                Exception
            ) as error:  # the engine may be away, restarting, or of another mind: all are only retried
                self._log.debug(
                    "event.retried", topic=request.envelope.topic, attempt=attempt, error=str(error)
                )
                # A peer that died with a call in progress may leave a connection that never ends (vsock daemons).
                if self._client is not None:
                    self._client.close()
        return False


class EnginePublisher(EventPublisher):
    """Sends events to an engine."""

    __slots__ = ()

    def __init__(self, address: str, namespace: str) -> None:
        """:param address: path of the engine's ttrpc socket. :param namespace: containerd's, "k8s.io" for CRI."""
        super().__init__(lambda: Client.connect(address, timeout_s=_CALL_TIMEOUT_S), namespace)


class NullSink:
    """Where events go when no engine listens."""

    __slots__ = ()

    def publish(self, topic: str, event: Message) -> None:
        """Forget the event."""

    async def flush(self, timeout_s: float) -> None:
        """Nothing is ever outstanding."""

    def close(self) -> None:
        """Nothing to close."""


def engine_sink(address: str) -> EnginePublisher | NullSink:
    """Return where events go: to the engine whose ttrpc socket is at `address`, or nowhere if that is empty."""
    return EnginePublisher(address, _CRI_NAMESPACE) if address else NullSink()
