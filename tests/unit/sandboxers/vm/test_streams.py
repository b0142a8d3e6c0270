"""Streams between FIFOs and sockets, carried by the kernel and ended by counts."""

import asyncio
import hashlib
import os
import select
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from common.errors import InvalidArgument, NotFound, Unavailable
from common.task.stdio import StdioSpec
from sandboxers.vm.streams import StreamNames, Streams
from tests.descriptor_store import KeptInMemory
from tests.unit.common.ttrpc.peers import until
from tests.unit.sandboxers.vm.guest import Guest


class Ends:
    """The engine's ends of three FIFOs, and the streams between."""

    def __init__(self, directory: Path) -> None:
        self.guest = Guest()
        self.paths = [str(directory / name) for name in ("stdin", "stdout", "stderr")]
        for path in self.paths:
            os.mkfifo(path)
        self.spec = StdioSpec(False, *self.paths)
        self.store = KeptInMemory()
        self.names = StreamNames.new(self.spec, self.store)
        self.streams = self._new_streams()
        self.fds: list[int] = []

    def _new_streams(self) -> Streams:
        return Streams(self.names, self.guest, self.store)  # type: ignore[arg-type]

    async def open(self) -> None:
        stdout = os.open(self.paths[1], os.O_RDONLY | os.O_NONBLOCK)
        stderr = os.open(self.paths[2], os.O_RDONLY | os.O_NONBLOCK)
        self.fds = [-1, stdout, stderr]
        await self.streams.open(self.spec)
        self.fds[0] = os.open(self.paths[0], os.O_WRONLY | os.O_NONBLOCK)

    def restart(self) -> None:
        """Let the daemon die: what it has open is closed, what is kept stays, and another goes on."""
        kept, self.store.kept = self.store.kept, {}
        self.streams.close()
        self.store.kept = kept
        self.store.restart()
        self.streams = self._new_streams()
        assert self.streams.recover()

    def guest_socket(self, name: str) -> socket.socket:
        return self.guest.streams[name]

    def close(self) -> None:
        self.streams.close()
        assert self.store.kept == {}
        for sock in self.guest.streams.values():
            sock.close()
        for fd in self.fds:
            if fd >= 0:
                os.close(fd)


@pytest.fixture
async def ends(tmp_path: Path) -> AsyncIterator[Ends]:
    ends = Ends(tmp_path)
    yield ends
    ends.close()


async def read_all(fd: int) -> bytes:
    """Read a FIFO to its end."""
    data = b""
    async with asyncio.timeout(20):
        while True:
            try:
                chunk = os.read(fd, 65536)
            except BlockingIOError:
                await asyncio.sleep(0.001)
                continue
            if not chunk:
                return data
            data += chunk


async def write_all(fd: int, data: bytes) -> None:
    """Write into a FIFO as it is emptied."""
    async with asyncio.timeout(20):
        while data:
            try:
                data = data[os.write(fd, data) :]
            except BlockingIOError:
                await asyncio.sleep(0.001)


async def test_output_arrives_whole_and_ends_with_its_count_before_or_after(ends: Ends) -> None:
    await ends.open()
    data = os.urandom(3_000_000)
    loop = asyncio.get_running_loop()
    reading = asyncio.create_task(read_all(ends.fds[1]))
    await loop.sock_sendall(ends.guest_socket(ends.names.stdout), data)
    ends.streams.end_output(ends.names.stdout, len(data))
    assert hashlib.sha256(await reading).digest() == hashlib.sha256(data).digest()
    # The other way round: the count is there before the bytes are.
    ends.streams.end_output(ends.names.stderr, 5)
    await loop.sock_sendall(ends.guest_socket(ends.names.stderr), b"12345 and more")
    assert (await read_all(ends.fds[2])).startswith(b"12345")


async def test_an_engine_that_opens_late_is_waited_for(ends: Ends) -> None:
    early = os.open(ends.paths[1], os.O_RDONLY | os.O_NONBLOCK)
    opening = asyncio.create_task(ends.streams.open(ends.spec))
    await until(lambda: len(ends.guest.streams) == 3)
    done, _ = await asyncio.wait([opening], timeout=0.02)
    assert not done, "what a short process writes to the second output would have no reader"
    with pytest.raises(BlockingIOError):
        os.read(early, 1)  # the first one has not ended before it has begun
    late = os.open(ends.paths[2], os.O_RDONLY | os.O_NONBLOCK)
    await opening
    ends.fds = [early, late]
    ends.guest_socket(ends.names.stderr).send(b"short")
    ends.streams.end_output(ends.names.stderr, 5)
    assert await read_all(late) == b"short"


async def test_an_empty_output_ends_at_once(ends: Ends) -> None:
    await ends.open()
    ends.streams.end_output(ends.names.stdout, 0)
    assert await read_all(ends.fds[1]) == b""


async def test_an_engine_that_does_not_read_stops_the_writer_and_loses_nothing(ends: Ends) -> None:
    await ends.open()
    sock = ends.guest_socket(ends.names.stdout)
    sent = 0
    for _ in range(50):
        await asyncio.sleep(0.001)
        try:
            while True:
                sent += sock.send(b"x" * 10_000)
        except BlockingIOError:
            continue
    assert sent < 2_000_000
    ends.streams.end_output(ends.names.stdout, sent)
    assert await read_all(ends.fds[1]) == b"x" * sent


async def test_input_is_counted_and_ends_when_the_last_writer_has_gone(ends: Ends) -> None:
    await ends.open()
    os.write(ends.fds[0], b"typed ")
    sock = ends.guest_socket(ends.names.stdin)
    await until(lambda: sock.recv(100, socket.MSG_PEEK) == b"typed " if readable(sock) else False)
    # A client that detaches is not the end.
    os.close(ends.fds[0])
    ends.fds[0] = os.open(ends.paths[0], os.O_WRONLY | os.O_NONBLOCK)
    os.write(ends.fds[0], b"later")
    ends.streams.close_stdin()
    os.close(ends.fds[0])
    ends.fds[0] = -1
    await until(lambda: bool(ends.guest.ended))
    assert ends.guest.ended == {ends.names.stdin: 11}
    assert sock.recv(100) == b"typed later"


async def test_a_guest_that_closes_its_input_ends_the_reading(ends: Ends) -> None:
    await ends.open()
    ends.guest_socket(ends.names.stdin).close()
    await until(lambda: raises(BrokenPipeError, lambda: os.write(ends.fds[0], b"x")))


async def test_what_a_dead_guest_has_sent_is_still_carried(ends: Ends) -> None:
    await ends.open()
    ends.guest_socket(ends.names.stdout).send(b"last words")
    ends.streams.drain()
    assert await read_all(ends.fds[1]) == b"last words"
    assert await read_all(ends.fds[2]) == b""


async def test_a_later_daemon_carries_output_to_its_last_byte_however_late_that_is(ends: Ends) -> None:
    await ends.open()
    data = os.urandom(200_000)
    loop = asyncio.get_running_loop()
    sending = asyncio.create_task(loop.sock_sendall(ends.guest_socket(ends.names.stdout), data[:-10]))
    await until(lambda: bool(select.select([ends.fds[1]], [], [], 0)[0]))
    ends.restart()
    ends.streams.end_output(ends.names.stdout, len(data))
    reading = asyncio.create_task(read_all(ends.fds[1]))
    await sending
    # Silence is no end.
    await asyncio.sleep(0.4)
    ends.restart()
    ends.streams.end_output(ends.names.stdout, len(data))
    assert not reading.done()
    await loop.sock_sendall(ends.guest_socket(ends.names.stdout), data[-10:])
    assert await reading == data


async def test_output_of_a_dead_guest_waits_for_an_engine_that_does_not_read(ends: Ends) -> None:
    await ends.open()
    data = os.urandom(150_000)
    sending = asyncio.create_task(
        asyncio.get_running_loop().sock_sendall(ends.guest_socket(ends.names.stdout), data)
    )
    await until(lambda: bool(select.select([ends.fds[1]], [], [], 0)[0]))
    reading = asyncio.create_task(read_all(ends.fds[1]))
    await sending
    ends.streams.drain()
    assert await reading == data


async def test_a_later_daemon_knows_how_much_input_there_was(ends: Ends) -> None:
    await ends.open()
    sock = ends.guest_socket(ends.names.stdin)
    data = b""
    received = b""
    for number in range(3):
        part = bytes([number]) * 50_000
        data += part
        await write_all(ends.fds[0], part)
        await until(lambda: readable(sock))
        received += sock.recv(10_000)
        ends.restart()
    ends.streams.close_stdin()
    assert ends.guest.ended == {}
    os.close(ends.fds[0])
    ends.fds[0] = -1
    while len(received) < len(data):
        await until(lambda: readable(sock))
        received += sock.recv(100_000)
    await until(lambda: bool(ends.guest.ended))
    assert ends.guest.ended == {ends.names.stdin: len(data)}
    assert received == data
    # Nobody knows whether the guest has heard it.
    ends.guest.ended.clear()
    ends.restart()
    await until(lambda: bool(ends.guest.ended))
    assert ends.guest.ended == {ends.names.stdin: len(data)}


async def test_nothing_stays_open_when_a_stream_cannot_be_opened(ends: Ends) -> None:
    ends.guest.refuses = True
    with pytest.raises(Unavailable):
        await ends.streams.open(ends.spec)
    ends.guest.refuses = False
    missing = StdioSpec(False, ends.paths[0], ends.paths[1], "/no/such/fifo")
    with pytest.raises(NotFound):
        await ends.streams.open(missing)
    with pytest.raises(InvalidArgument, match="FIFO"):
        await ends.streams.open(StdioSpec(False, ends.paths[0], f"file://{ends.paths[1]}.log", ""))
    ends.streams.close()
    with pytest.raises(OSError, match="No such device or address"):
        os.open(ends.paths[0], os.O_WRONLY | os.O_NONBLOCK)


def readable(sock: socket.socket) -> bool:
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    return True


def raises(kind: type[BaseException], action: Callable[[], object]) -> bool:
    try:
        action()
    except kind:
        return True
    return False


@pytest.mark.parametrize("kept", ["nothing", "half of it"])
async def test_what_was_only_just_opened_has_no_end_until_it_is_forgotten(ends: Ends, kept: str) -> None:
    await ends.open()
    half = {ends.names.stdout: ends.store.kept[ends.names.stdout]}
    left = {} if kept == "nothing" else half
    # What the daemon had opened when it died.
    held = [os.open(path, os.O_WRONLY | os.O_NONBLOCK) for path in ends.paths[1:]]
    everything, ends.store.kept = ends.store.kept, {}
    ends.streams.close()
    ends.store.kept = left
    for name in everything.keys() - left.keys():
        for fd in everything[name]:
            os.close(fd)
    ends.store.restart()
    streams = Streams(ends.names, ends.guest, ends.store)  # type: ignore[arg-type]
    assert not streams.recover()
    streams.hold(ends.spec)
    for fd in held:
        os.close(fd)
    for fd in ends.fds[1:]:
        with pytest.raises(BlockingIOError):
            os.read(fd, 1)
    streams.forget()
    assert [os.read(fd, 1) for fd in ends.fds[1:]] == [b"", b""]
