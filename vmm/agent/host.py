"""The connection to the host: the guest makes it, announces itself, and then tells what happens."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Final

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from common.task.events import EventPublisher
from common.transport import Transport
from common.ttrpc import Client, StatusCode, StatusError
from proto.gen.sandboxd.agent.v1 import agent_pb2 as api
from vmm.agent import clock
from vmm.agent.kernel_files import read
from vmm.protocol import HOST_SERVICE, PROTOCOL, STREAM_END_TOPIC

VERSION: Final = "0.1.0"

_TIMEOUT_S = 5.0
_RETRY_S = 0.02
# What a host answers that is busy or going away.
_PASSING = frozenset({StatusCode.DEADLINE_EXCEEDED, StatusCode.UNAVAILABLE})
_FOREVER = 1 << 30

# What the host cannot know by itself: it sees every create, start and delete pass by.
_TOPICS = frozenset({"/tasks/oom", "/tasks/exit", STREAM_END_TOPIC})


class Host:
    """The host as an `EventSink`: what is published waits until the host takes it, the oldest dropped when too much."""

    __slots__ = ("_began_ns", "_first", "_port", "_publisher", "_transport")

    def __init__(self, transport: Transport, port: int, began_ns: int) -> None:
        """:param began_ns: since the kernel's boot until this program began."""
        self._transport = transport
        self._port = port
        self._began_ns = began_ns
        self._first: Client | None = None
        self._publisher = EventPublisher(self._connection, "", attempts=_FOREVER)

    async def announce(self) -> None:
        """Connect, as soon as there is a host to connect to, and announce this guest.

        :raise StatusError: the host does not want it.
        """
        while True:
            try:
                self._first = await self._connect()
                return
            except OSError:  # no device yet, nobody listens yet, or both
                await asyncio.sleep(_RETRY_S)
            except StatusError as error:
                if error.code not in _PASSING:
                    raise

    def publish(self, topic: str, event: Message) -> None:
        """Queue one event, if the host needs it."""
        if topic in _TOPICS:
            self._publisher.publish(topic, event)

    async def flush(self, timeout_s: float) -> None:
        """Wait until the host has taken all, at the longest `timeout_s`."""
        await self._publisher.flush(timeout_s)

    def close(self) -> None:
        """Drop the connection."""
        if self._first is not None:
            self._first.close()
        self._publisher.close()

    async def _connection(self) -> Client:
        first, self._first = self._first, None
        return first if first is not None and not first.closed else await self._connect()

    async def _connect(self) -> Client:
        client = Client(await self._transport.connect(self._port, _TIMEOUT_S))
        try:
            await client.call(HOST_SERVICE, "Announce", self._announcement(), Empty, timeout_s=_TIMEOUT_S)
        except BaseException:
            client.close()
            raise
        return client

    def _announcement(self) -> api.AnnounceRequest:
        return api.AnnounceRequest(
            protocol=PROTOCOL,
            agent_version=VERSION,
            kernel_release=os.uname().release,
            boot_id=read("/proc/sys/kernel/random/boot_id"),
            cpus=os.sysconf("SC_NPROCESSORS_ONLN"),
            memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            clock_ns=time.time_ns(),
            clock_source=clock.source(),
            exec_ns=self._began_ns,
            ready_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        )
