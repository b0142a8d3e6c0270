"""Streams of a guest: pipes and connections, and which of them says how much there was."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from common.errors import InvalidArgument, NotFound
from common.readiness import has_input
from common.transport.unix import UnixTransport
from vmm.agent.streams import OutputStream, Streams
from vmm.protocol import ACCEPTED, STREAM_PORT, WRITE_LIMIT_BYTES, open_port_line, open_stream_line

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

TIMEOUT_S = 20.0


class Ends:
    """The streams of a guest, and the ends that they have told."""

    def __init__(self, directory: Path) -> None:
        self.transport = UnixTransport(str(directory))
        self.told: list[tuple[str, int]] = []
        self.streams = Streams(lambda stream_id, length: self.told.append((stream_id, length)))
        self.streams.listen(self.transport.listen(STREAM_PORT))

    async def open(self, line: bytes) -> socket.socket:
        """What a host does."""
        sock = await self.transport.connect(STREAM_PORT, TIMEOUT_S)
        await send(sock, line)
        answer = await receive(sock, len(ACCEPTED))
        assert answer == ACCEPTED, answer
        return sock


async def send(sock: socket.socket, data: bytes) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.get_running_loop().sock_sendall(sock, data)


async def receive(sock: socket.socket, size: int) -> bytes:
    """Receive so many bytes, or less before an end."""
    data = b""
    async with asyncio.timeout(TIMEOUT_S):
        while len(data) < size and (
            chunk := await asyncio.get_running_loop().sock_recv(sock, size - len(data))
        ):
            data += chunk
    return data


async def settled() -> None:
    """Let the loop look at its descriptors a few times."""
    for _ in range(20):
        await asyncio.sleep(0.001)


@pytest.fixture
async def ends(tmp_path: Path) -> AsyncIterator[Ends]:
    ends = Ends(tmp_path)
    yield ends
    ends.streams.close()
    await settled()


async def test_input_ends_when_all_of_it_has_come(ends: Ends) -> None:
    with await ends.open(open_stream_line("in")) as host:
        reader, _ = ends.streams.claim_input("in")
        ends.streams.end("in", 9)
        await send(host, b"four")
        await settled()
        assert os.read(reader, 100) == b"four"
        assert not has_input(reader)
        await send(host, b"fiver")
        await settled()
        assert os.read(reader, 100) == b"fiver"
        assert os.read(reader, 100) == b""
        os.close(reader)


async def test_more_than_was_announced_is_not_read(ends: Ends) -> None:
    with await ends.open(open_stream_line("in")) as host:
        ends.streams.end("in", 4)
        reader, _ = ends.streams.claim_input("in")
        await send(host, b"four and more")
        await settled()
        assert os.read(reader, 100) == b"four"
        assert os.read(reader, 100) == b""
        os.close(reader)


async def test_a_connection_that_is_lost_is_no_end_of_input(ends: Ends) -> None:
    host = await ends.open(open_stream_line("in"))
    reader, stream = ends.streams.claim_input("in")
    await send(host, b"half")
    host.close()
    await settled()
    assert os.read(reader, 100) == b"half"
    assert not has_input(reader)
    stream.close()
    assert os.read(reader, 100) == b""
    os.close(reader)


async def test_a_process_that_does_not_read_stops_the_host(ends: Ends) -> None:
    with await ends.open(open_stream_line("in")) as host:
        reader, stream = ends.streams.claim_input("in")
        sending = asyncio.ensure_future(send(host, bytes(1 << 20)))
        await settled()
        assert not sending.done()
        received = 0
        while received < 1 << 20:
            received += len(os.read(reader, 1 << 16)) if has_input(reader) else 0
            await asyncio.sleep(0)
        await sending
        stream.close()
        os.close(reader)


async def test_a_process_that_closes_its_input_closes_the_stream(ends: Ends) -> None:
    with await ends.open(open_stream_line("in")) as host:
        reader, _ = ends.streams.claim_input("in")
        os.close(reader)
        await send(host, b"for nobody")
        # A connection that is closed with something unread in it is reset.
        with contextlib.suppress(ConnectionResetError):
            assert await receive(host, 1) == b""
        with pytest.raises(NotFound):
            ends.streams.end("in", 10)


async def test_output_is_told_to_end_and_the_host_closes(ends: Ends) -> None:
    host = await ends.open(open_stream_line("out"))
    writer, _ = ends.streams.claim_output("out")
    os.write(writer, b"some output")
    os.close(writer)
    await settled()
    assert ends.told == [("out", 11)]
    assert await receive(host, 11) == b"some output"
    host.close()
    await settled()


async def test_a_host_that_does_not_read_stops_the_process_until_it_does(ends: Ends) -> None:
    host = await ends.open(open_stream_line("out"))
    writer, stream = ends.streams.claim_output("out")
    written = await fill(writer)
    assert stream.is_behind
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await stream.pass_on()
    os.close(writer)
    assert await receive(host, len(written)) == written
    await stream.pass_on()
    await settled()
    assert ends.told == [("out", len(written))]
    host.close()
    await settled()


async def fill(writer: int) -> bytes:
    """Write until nothing more goes, not even a moment later; return what went."""
    os.set_blocking(writer, False)
    written, was_full = b"", False
    while True:
        chunk = os.urandom(1 << 15)
        try:
            written += chunk[: os.write(writer, chunk)]
            was_full = False
        except BlockingIOError:
            if was_full:
                return written
            was_full = True
            await settled()


class FilledSocket(socket.socket):
    """A socket that takes only a part of what is sent with one of its calls, and keeps what it takes."""

    calls_until_full = 0
    taken = 0

    def send(self, data: ReadableBuffer, _flags: int = 0, /) -> int:
        self.calls_until_full -= 1
        size = len(memoryview(data)) if self.calls_until_full else 100
        self.taken += size
        return size


@pytest.mark.parametrize("calls", [1, 7, 8, 9])
async def test_what_a_full_connection_does_not_take_follows_though_no_more_is_written(calls: int) -> None:
    told: list[int] = []
    host, guest = socket.socketpair()
    sock = FilledSocket(fileno=guest.detach())
    sock.setblocking(False)
    sock.calls_until_full = calls
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    size = calls * WRITE_LIMIT_BYTES
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, size)
    assert os.write(writer, bytes(size)) == size
    stream = OutputStream(sock, reader, told.append)
    with host:
        async with asyncio.timeout(TIMEOUT_S):
            await stream.pass_on()
        assert sock.taken == size
        os.close(writer)
        await settled()
    assert told == [size]
    await settled()


async def test_a_host_that_closes_a_full_connection_is_waited_for_no_more() -> None:
    host, guest = socket.socketpair()
    guest.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            guest.send(bytes(1 << 15))
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    stream = OutputStream(guest, reader, lambda _: None)
    os.write(writer, b"the last for now")
    passing = asyncio.ensure_future(stream.pass_on())
    await settled()
    assert not passing.done()
    assert not has_input(reader)
    host.close()
    async with asyncio.timeout(TIMEOUT_S):
        await passing
    os.close(writer)
    await settled()


async def test_what_is_in_the_pipe_can_be_waited_for_while_others_write_on(ends: Ends) -> None:
    with await ends.open(open_stream_line("out")) as host:
        writer, stream = ends.streams.claim_output("out")
        os.write(writer, b"x" * 60000)
        before = stream.is_behind
        await stream.pass_on()
        assert (before, stream.is_behind) == (True, False)
        assert ends.told == []
        assert await receive(host, 60000) == b"x" * 60000
        os.close(writer)
        await settled()
    await settled()


async def test_output_that_nobody_wants_is_thrown_away(ends: Ends) -> None:
    host = await ends.open(open_stream_line("out"))
    writer, _ = ends.streams.claim_output("out")
    host.close()
    os.set_blocking(writer, False)
    sent = 0
    async with asyncio.timeout(TIMEOUT_S):
        while sent < 1 << 20:
            try:
                sent += os.write(writer, bytes(1 << 15))
            except BlockingIOError:
                await asyncio.sleep(0)
    os.close(writer)
    await settled()


async def test_an_input_cannot_end_before_what_has_come(ends: Ends) -> None:
    with await ends.open(open_stream_line("in")) as host:
        reader, stream = ends.streams.claim_input("in")
        await send(host, b"four")
        await settled()
        with pytest.raises(InvalidArgument):
            ends.streams.end("in", 3)
        stream.close()
        os.close(reader)


async def test_streams_that_nobody_claims_are_limited(ends: Ends) -> None:
    socks = [await ends.open(open_stream_line(f"s{number}")) for number in range(256)]
    with await ends.transport.connect(STREAM_PORT, TIMEOUT_S) as extra:
        await send(extra, open_stream_line("extra"))
        assert (await receive(extra, 200)).startswith(b"ERROR 256 streams wait")
    for sock in socks:
        sock.close()
    # Those are gone: there is room again.
    with await ends.open(open_stream_line("extra")):
        pass


async def test_a_port_is_reached_in_both_directions(ends: Ends) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        with await ends.open(open_port_line(server.getsockname()[1])) as host:
            inside, _ = await asyncio.get_running_loop().sock_accept(server)
            with inside:
                await send(host, b"x" * 100_000)
                assert await receive(inside, 100_000) == b"x" * 100_000
                await send(inside, b"y" * 100_000)
                assert await receive(host, 100_000) == b"y" * 100_000
            assert await receive(host, 1) == b""
