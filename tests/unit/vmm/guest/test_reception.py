"""The host's port: announcements and events, from guests that may be anything."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from common.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from common.transport.unix import UnixTransport
from common.ttrpc import Client, StatusCode, StatusError
from proto.gen.containerd.events import task_pb2 as events
from proto.gen.containerd.services.ttrpc.events.v1.events_pb2 import ForwardRequest
from proto.gen.sandboxd.agent.v1 import agent_pb2 as api
from tests.unit.common.ttrpc.peers import until
from vmm.guest.reception import EVENTS_SERVICE, GuestEvent, Reception, hand_over
from vmm.protocol import HOST_PORT, HOST_SERVICE, PROTOCOL, STREAM_END_TOPIC

TIMEOUT_S = 20.0


class Host:
    """A reception and what it was told."""

    def __init__(self, directory: Path) -> None:
        self.transport = UnixTransport(str(directory))
        self.events: list[GuestEvent] = []
        self.reception = Reception(self.transport, self._on_event)

    async def _on_event(self, event: GuestEvent) -> None:
        self.events.append(event)

    async def guest(self) -> Client:
        """A connection as a guest makes it."""
        return Client(await self.transport.connect(HOST_PORT, TIMEOUT_S))


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    host = Host(tmp_path)
    yield host
    host.reception.close()
    host.reception.close()


async def announce(guest: Client, **fields: object) -> None:
    request = api.AnnounceRequest(protocol=PROTOCOL, boot_id="b")
    for name, value in fields.items():
        setattr(request, name, value)
    await guest.call(HOST_SERVICE, "Announce", request, Empty, timeout_s=TIMEOUT_S)


async def tell(guest: Client, topic: str, event: Message, kind: str = "") -> None:
    request = ForwardRequest()
    request.envelope.topic = topic
    request.envelope.event.CopyFrom(
        Any(type_url=kind or event.DESCRIPTOR.full_name, value=event.SerializeToString())
    )
    await guest.call(EVENTS_SERVICE, "Forward", request, Empty, timeout_s=TIMEOUT_S)


async def test_a_guest_is_announced(host: Host) -> None:
    async with await host.guest() as guest:
        await announce(guest, cpus=2, kernel_release="6.1", ready_ns=7)
        told = await host.reception.announcement(TIMEOUT_S)
        assert (told.cpus, told.kernel_release, told.ready_ns) == (2, "6.1", 7)


async def test_texts_of_a_guest_are_cut_and_made_printable(host: Host) -> None:
    async with await host.guest() as guest:
        await announce(guest, kernel_release="\x1b[2J" + "x" * 1000)
        told = await host.reception.announcement(TIMEOUT_S)
        assert told.kernel_release == "?[2J" + "x" * 96


async def test_a_guest_of_another_protocol_is_refused(host: Host) -> None:
    waiting = asyncio.ensure_future(host.reception.announcement(TIMEOUT_S))
    async with await host.guest() as guest:
        with pytest.raises(StatusError) as raised:
            await announce(guest, protocol=PROTOCOL + 1)
        assert raised.value.code == StatusCode.FAILED_PRECONDITION
    with pytest.raises(FailedPrecondition, match="build the guest image of this version"):
        await waiting


async def test_silence_has_an_end(host: Host) -> None:
    with pytest.raises(DeadlineExceeded):
        await host.reception.announcement(0.01)


async def test_a_dead_machine_is_not_waited_for(host: Host) -> None:
    waiting = asyncio.ensure_future(host.reception.announcement(TIMEOUT_S))
    await asyncio.sleep(0)
    host.reception.lose(Unavailable("QEMU was killed"))
    with pytest.raises(Unavailable, match="QEMU was killed"):
        await waiting


async def test_the_first_announcement_counts(host: Host) -> None:
    async with await host.guest() as guest, await host.guest() as again:
        await announce(guest, boot_id="first")
        await announce(again, boot_id="second")
        assert (await host.reception.announcement(TIMEOUT_S)).boot_id == "first"


async def test_events_arrive_in_their_order(host: Host) -> None:
    async with await host.guest() as guest:
        end = api.StreamEnd(id="c-out", length=3)
        exit_event = events.TaskExit(container_id="c", exit_status=1)
        await tell(guest, STREAM_END_TOPIC, end)
        await tell(guest, "/tasks/exit", exit_event)
        assert host.events == [end, exit_event]


@pytest.mark.parametrize(
    ("topic", "kind"),
    [
        ("/tasks/create", ""),
        ("/containers/delete", ""),
        ("/tasks/exit", "containerd.events.TaskOOM"),
        ("", ""),
    ],
)
async def test_other_events_are_thrown_away(host: Host, topic: str, kind: str) -> None:
    async with await host.guest() as guest:
        with pytest.raises(StatusError) as raised:
            await tell(guest, topic, events.TaskExit(container_id="c"), kind)
        assert raised.value.code == StatusCode.INVALID_ARGUMENT
        assert host.events == []


async def test_garbage_in_an_event_is_refused(host: Host) -> None:
    async with await host.guest() as guest:
        request = ForwardRequest()
        request.envelope.topic = "/tasks/exit"
        request.envelope.event.type_url = events.TaskExit.DESCRIPTOR.full_name
        request.envelope.event.value = b"\xff\xff\xff"
        with pytest.raises(StatusError, match="malformed"):
            await guest.call(EVENTS_SERVICE, "Forward", request, Empty, timeout_s=TIMEOUT_S)


async def test_a_guest_that_sends_garbage_loses_its_connection_alone(host: Host) -> None:
    with await host.transport.connect(HOST_PORT, TIMEOUT_S) as bad:
        await asyncio.get_running_loop().sock_sendall(bad, b"\xff" * 200)
        async with await host.guest() as guest:
            await announce(guest)
            await host.reception.announcement(TIMEOUT_S)


async def test_a_guest_has_few_connections(host: Host) -> None:
    guests = [await host.transport.connect(HOST_PORT, TIMEOUT_S) for _ in range(10)]
    async with asyncio.timeout(TIMEOUT_S):
        for extra in guests[4:]:
            assert await asyncio.get_running_loop().sock_recv(extra, 1) == b""
    for sock in guests:
        sock.close()


class Machine(UnixTransport):
    """A transport that knows its guest by the name that the connection has."""

    def __init__(self, directory: Path, name: bytes) -> None:
        super().__init__(f"{directory}")
        self._name = name

    def is_peer(self, sock: socket.socket) -> bool:
        return sock.recv(1, socket.MSG_PEEK) == self._name


async def test_a_connection_goes_to_whom_its_guest_belongs(tmp_path: Path) -> None:
    # As with vsock of the kernel, where all machines of a host connect to one port.
    async def ignore(_: GuestEvent) -> None: ...

    receptions = [
        Reception(Machine(tmp_path, name), ignore, port=port) for port, name in ((1, b"a"), (2, b"b"))
    ]
    for name, is_known in ((b"a", True), (b"b", True), (b"c", False)):
        ours, theirs = socket.socketpair()
        theirs.send(name)
        hand_over(ours, receptions[0])
        assert (ours.fileno() >= 0) is is_known
        theirs.close()
    for reception in receptions:
        reception.close()


async def test_machines_share_a_port_of_the_kernels(tmp_path: Path) -> None:
    async def ignore(_: GuestEvent) -> None: ...

    from common.transport.vsock import VsockTransport

    port = 61025
    with Reception(VsockTransport(70001), ignore, port=port) as first:
        second = Reception(VsockTransport(70002), ignore, port=port)
        assert second.listener.getsockname() == first.listener.getsockname()
        second.close()
        assert first.listener.fileno() >= 0


async def test_a_guest_that_does_not_wait_for_answers_is_not_listened_to(tmp_path: Path) -> None:
    handling = 0
    go_on = asyncio.Event()

    async def on_event(_: GuestEvent) -> None:
        nonlocal handling
        handling += 1
        await go_on.wait()

    transport = UnixTransport(str(tmp_path))
    with Reception(transport, on_event):
        async with Client(await transport.connect(HOST_PORT, TIMEOUT_S)) as guest:
            told = [
                asyncio.create_task(tell(guest, "/tasks/oom", events.TaskOOM(container_id="c")))
                for _ in range(100)
            ]
            await until(lambda: sum(each.done() for each in told) == 100 - handling)
            assert handling == 16
            go_on.set()
            answers = await asyncio.gather(*told, return_exceptions=True)
            codes = [each.code for each in answers if isinstance(each, StatusError)]
            assert codes == [StatusCode.RESOURCE_EXHAUSTED] * 84


async def test_a_guest_that_sends_more_than_it_has_to_say_is_hung_up_on(host: Host) -> None:
    sock = await host.transport.connect(HOST_PORT, TIMEOUT_S)
    loop = asyncio.get_running_loop()
    # The header of a request that ttrpc allows, and the beginning of it.
    await loop.sock_sendall(sock, struct.pack(">IIBB", 1 << 20, 1, 1, 0) + bytes(1000))
    async with asyncio.timeout(TIMEOUT_S):
        with contextlib.suppress(ConnectionResetError):
            assert await loop.sock_recv(sock, 1) == b""
    sock.close()
    async with await host.guest() as guest:
        await announce(guest, cpus=2)
