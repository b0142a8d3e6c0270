"""What a server tells its journal, and when."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from common.ttrpc import Method, NullJournal, Server, Service, StatusCode, StatusError
from tests.unit.common.ttrpc.peers import NAME, Place, request_frame, until


class Tape(NullJournal):
    """A journal that remembers what it was told, and what was still in the socket at that moment."""

    def __init__(self) -> None:
        self.entries: list[tuple[Any, ...]] = []
        self.server_end: socket.socket | None = None
        self.unconsumed: list[bytes] = []
        self.full = False
        self.waiting: list[Callable[[], None]] | None = None

    def when_kept(self, callback: Callable[[], None]) -> None:
        if self.waiting is None:
            callback()
        else:
            self.waiting.append(callback)

    def admitted(self, connection_id: int, stream_id: int, frame: bytes) -> None:
        if self.full:
            raise StatusError(StatusCode.UNAVAILABLE, "no space for the record")
        self.entries.append(("admitted", stream_id, frame))
        if self.server_end is not None:
            self.unconsumed.append(self.server_end.recv(1 << 16, socket.MSG_PEEK))

    def outcome(self, connection_id: int, stream_id: int, frame: bytes) -> None:
        self.entries.append(("outcome", stream_id))

    def answered(self, connection_id: int, stream_id: int) -> None:
        self.entries.append(("answered", stream_id))

    def partial(self, connection_id: int, chunk: bytes) -> None:
        self.entries.append(("partial", chunk))

    def closed(self, connection_id: int) -> None:
        self.entries.append(("closed",))


async def test_a_frame_is_on_record_before_it_is_consumed_and_only_if_its_method_is_journaled(
    place: Place,
) -> None:
    tape = Tape()
    server = place.make(journal=tape)
    mine, theirs = socket.socketpair()
    with mine:
        tape.server_end = theirs
        nap, plain = request_frame(1, "Nap", b"0.01"), request_frame(3, "Echo")
        mine.send(nap + plain)
        server.adopt(theirs)
        await until(lambda: ("answered", 1) in tape.entries)
        server.close()
    assert tape.entries == [("admitted", 1, nap), ("outcome", 1), ("answered", 1), ("closed",)]
    assert tape.unconsumed == [nap + plain]


@pytest.mark.parametrize("leaves", [False, True])
async def test_nothing_is_read_from_a_connection_that_would_not_outlive_us(
    place: Place, leaves: bool
) -> None:
    tape = Tape()
    tape.waiting = []
    server = place.make(journal=tape)
    mine, theirs = socket.socketpair()
    with mine:
        nap = request_frame(1, "Nap", b"0")
        mine.send(nap)
        server.adopt(theirs)
        await asyncio.sleep(0.02)
        assert theirs.recv(1 << 16, socket.MSG_PEEK) == nap
        if leaves:
            server.close()
        for callback in tape.waiting:
            callback()
        if not leaves:
            await until(lambda: ("answered", 1) in tape.entries)
            server.close()
    assert tape.entries[-1] == ("closed",)


@pytest.mark.parametrize("method", ["Echo", "Fail"])
async def test_what_is_not_on_record_stays_in_the_socket_until_it_has_its_answer(
    place: Place, method: str
) -> None:
    mine, theirs = socket.socketpair()
    unconsumed = []

    class Looker:
        async def look(self, request: BytesValue, context: object) -> BytesValue:
            unconsumed.append(theirs.recv(1 << 16, socket.MSG_PEEK))
            if method == "Fail":
                raise StatusError(StatusCode.NOT_FOUND, "nothing")
            return request

    methods = {name: Method(BytesValue, Looker.look) for name in ("Echo", "Fail")}
    server = Server({NAME: Service(methods, Looker())}, journal=Tape())
    frame = request_frame(1, method)
    with mine:
        server.adopt(theirs)
        mine.send(frame)
        await until(lambda: select.select([mine], [], [], 0)[0] != [])
        server.close()
    assert unconsumed == [frame]


@pytest.mark.parametrize("size", [0, 100_000])
async def test_a_call_that_waits_although_it_only_looks_is_on_record_while_it_does(
    place: Place, size: int
) -> None:
    tape = Tape()

    class Waiter:
        async def look(self, request: BytesValue, context: object) -> BytesValue:
            await asyncio.sleep(0.01)
            return BytesValue()

    server = Server({NAME: Service({"Look": Method(BytesValue, Waiter.look)}, Waiter())}, journal=tape)
    mine, theirs = socket.socketpair()
    frame = request_frame(1, "Look", bytes(size))
    with mine:
        server.adopt(theirs)
        mine.send(frame)
        await until(lambda: ("answered", 1) in tape.entries)
        server.close()
    entries = [entry for entry in tape.entries if entry[0] != "partial"]
    assert entries == [("admitted", 1, frame), ("answered", 1), ("closed",)]


async def test_streams_are_on_record_while_they_are_open(place: Place) -> None:
    tape = Tape()
    place.listen(journal=tape)
    client = await place.client()
    async with client.open_stream(NAME, "Chat", BytesValue) as stream:
        await stream.send(BytesValue(value=b"a"))
        await stream.receive()
        assert [entry[:2] for entry in tape.entries] == [("admitted", 1)]
        stream.close_send()
        assert await stream.receive() is None
    assert [entry[:2] for entry in tape.entries] == [("admitted", 1), ("answered", 1)]


async def test_a_journal_that_refuses_leaves_the_call_unexecuted(place: Place) -> None:
    tape = Tape()
    tape.full = True
    place.listen(journal=tape)
    client = await place.client()
    with pytest.raises(StatusError, match="no space"):
        await client.call(NAME, "Park", BytesValue(), BytesValue)
    assert place.bench.parked == place.bench.cancelled == 0


async def test_a_frame_too_large_to_peek_is_on_record_piece_by_piece_and_then_whole(place: Place) -> None:
    tape = Tape()
    place.listen(journal=tape)
    raw = place.raw()
    frame = request_frame(1, "Nap", b"0." + bytes(0) + b"0" * 100_000)
    await raw.send(frame)
    await raw.response()
    pieces = [entry[1] for entry in tape.entries if entry[0] == "partial"]
    assert b"".join(pieces) == frame
    assert [entry for entry in tape.entries if entry[0] != "partial"] == [
        ("admitted", 1, frame),
        ("outcome", 1),
        ("answered", 1),
    ]


async def test_a_call_counts_as_answered_only_when_the_kernel_has_all_of_it(place: Place) -> None:
    tape = Tape()

    class Large:
        async def inflate(self, request: BytesValue, context: object) -> BytesValue:
            return BytesValue(value=bytes(1 << 20))

    methods = {"Inflate": Method(BytesValue, Large.inflate, journaled=True)}
    server = Server({NAME: Service(methods, Large())}, journal=tape)
    mine, theirs = socket.socketpair()
    mine.setblocking(False)
    with mine:
        server.adopt(theirs)
        mine.send(request_frame(1, "Inflate"))
        await until(lambda: len(tape.entries) == 2)
        await asyncio.sleep(0.02)
        assert [entry[0] for entry in tape.entries] == ["admitted", "outcome"]
        received = 0
        while received < 1 << 20:
            received += len(await asyncio.get_running_loop().sock_recv(mine, 1 << 18))
        await until(lambda: ("answered", 1) in tape.entries)
        server.close()
