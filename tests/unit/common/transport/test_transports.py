"""Every transport that this machine can have: bytes go both ways, and errors are the same."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.errors import InvalidArgument, ResourceExhausted
from common.transport import Transport, transport_of
from common.transport.hybrid import UNANSWERED_LIMIT, HybridTransport, await_answers, is_accepted
from common.transport.streams import connect_unix, listen_unix, receive_line
from common.transport.unix import UnixTransport
from common.transport.vsock import VsockTransport
from tests.descriptor_store import KeptInMemory
from tests.unit.common.ttrpc.peers import until

PORT = 1024


class VsockDaemon:
    """The host's socket of a hybrid vsock, as vhost-device-vsock answers on it."""

    def __init__(self, path: str, guest: Transport) -> None:
        self._listener = listen_unix(path)
        self._guest = guest
        self._connections: list[socket.socket] = []
        self._serving = asyncio.ensure_future(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._listener)
            self._connections.append(sock)
            word, _, port = (await receive_line(sock, 32)).partition(b" ")
            assert word == b"CONNECT"
            try:
                target = await self._guest.connect(int(port), 1)
            except OSError:
                sock.close()
                continue
            self._connections.append(target)
            await loop.sock_sendall(sock, b"OK " + port + b"\n")
            await loop.sock_sendall(target, await loop.sock_recv(sock, 100))
            await loop.sock_sendall(sock, await loop.sock_recv(target, 100))

    async def close(self) -> None:
        self._serving.cancel()
        await asyncio.wait([self._serving])
        for sock in (self._listener, *self._connections):
            sock.close()


@pytest.fixture(params=["unix", "hvsock"])
async def sides(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Transport, Transport]]:
    """The transport of a guest, which listens, and that of its host, which connects."""
    guest = UnixTransport(str(tmp_path))
    if request.param == "unix":
        yield guest, transport_of(f"unix://{tmp_path}")
        return
    daemon = VsockDaemon(f"{tmp_path}/vsock", guest)
    yield guest, transport_of(f"hvsock://{tmp_path}/vsock")
    await daemon.close()


async def test_bytes_go_both_ways(sides: tuple[Transport, Transport]) -> None:
    guest, host = sides
    loop = asyncio.get_running_loop()
    with guest.listen(PORT) as listener:
        connecting = asyncio.ensure_future(host.connect(PORT, 5))
        accepted, _ = await loop.sock_accept(listener)
        with accepted, await connecting as connected:
            assert guest.is_peer(accepted)
            await loop.sock_sendall(connected, b"ping")
            assert await loop.sock_recv(accepted, 10) == b"ping"
            await loop.sock_sendall(accepted, b"pong")
            assert await loop.sock_recv(connected, 10) == b"pong"


async def test_a_port_that_nobody_listens_on_is_refused(sides: tuple[Transport, Transport]) -> None:
    _, host = sides
    with pytest.raises(OSError):
        await host.connect(PORT, 5)


async def test_a_daemon_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    with listen_unix(f"{tmp_path}/vsock"), pytest.raises(TimeoutError):
        await HybridTransport(f"{tmp_path}/vsock").connect(PORT, 0.05)


async def _expect_hang_up_after_answer(asked: socket.socket) -> None:
    """Be a vsock daemon that has read a question that nobody waits for any more."""
    loop = asyncio.get_running_loop()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await loop.sock_recv(asked, 1)
    asked.send(b"OK 1024\n")
    async with asyncio.timeout(5):
        assert await loop.sock_recv(asked, 1) == b""


async def test_who_gives_up_waiting_hangs_up_after_the_answer(tmp_path: Path) -> None:
    with listen_unix(f"{tmp_path}/vsock") as listener:
        with pytest.raises(TimeoutError):
            await HybridTransport(f"{tmp_path}/vsock").connect(PORT, 0.05)
        asked, _ = await asyncio.get_running_loop().sock_accept(listener)
        with asked:
            assert await receive_line(asked, 32) == b"CONNECT 1024"
            await _expect_hang_up_after_answer(asked)


async def test_what_is_asked_is_kept_until_it_is_answered(tmp_path: Path) -> None:
    store = KeptInMemory()
    with listen_unix(f"{tmp_path}/vsock") as listener:
        connecting = asyncio.ensure_future(HybridTransport(f"{tmp_path}/vsock", store).connect(PORT, 5))
        asked, _ = await asyncio.get_running_loop().sock_accept(listener)
        with asked:
            await receive_line(asked, 32)
            assert len(store.kept) == 1
            asked.send(b"OK 1024\n")
            with await connecting:
                assert store.kept == {}


async def test_what_a_daemon_had_asked_that_died_is_closed_when_it_is_answered(tmp_path: Path) -> None:
    store = KeptInMemory()
    with listen_unix(f"{tmp_path}/vsock") as listener:
        with await connect_unix(f"{tmp_path}/vsock", 5) as dead:
            store.put(store.new_name("q"), [dead.fileno()])
        store.restart()
        await_answers(store)
        asked, _ = await asyncio.get_running_loop().sock_accept(listener)
        with asked:
            await _expect_hang_up_after_answer(asked)
    assert store.kept == {}


async def _give_up(transport: HybridTransport) -> None:
    with pytest.raises(TimeoutError):
        await transport.connect(PORT, 0.01)


async def test_who_answers_nothing_is_asked_no_more_until_it_answers(tmp_path: Path) -> None:
    store = KeptInMemory()
    transport = HybridTransport(f"{tmp_path}/vsock", store)
    loop = asyncio.get_running_loop()
    with listen_unix(f"{tmp_path}/vsock") as listener, listen_unix(f"{tmp_path}/other"):
        for _ in range(UNANSWERED_LIMIT):
            await _give_up(transport)
        asked = [(await loop.sock_accept(listener))[0] for _ in range(UNANSWERED_LIMIT)]
        with pytest.raises(
            TimeoutError, match=f"{UNANSWERED_LIMIT} connections behind {tmp_path}/vsock are unanswered"
        ):
            await transport.connect(PORT, 1)
        with pytest.raises(BlockingIOError):
            listener.accept()
        assert len(store.kept) == UNANSWERED_LIMIT
        # Another machine has nothing to do with it.
        await _give_up(HybridTransport(f"{tmp_path}/other", store))
        asked[0].send(b"OK 1024\n")
        await until(lambda: len(store.kept) == UNANSWERED_LIMIT)
        connecting = asyncio.ensure_future(transport.connect(PORT, 5))
        again, _ = await loop.sock_accept(listener)
        again.send(b"OK 1024\n")
        (await connecting).close()
        for sock in (again, *asked):
            sock.close()
    await until(lambda: not store.kept)


async def test_what_a_daemon_had_asked_that_died_counts_as_unanswered(tmp_path: Path) -> None:
    store = KeptInMemory()
    transport = HybridTransport(f"{tmp_path}/vsock", store)
    with listen_unix(f"{tmp_path}/vsock") as listener:
        for _ in range(UNANSWERED_LIMIT):
            with await connect_unix(f"{tmp_path}/vsock", 5) as dead:
                store.put(store.new_name("q"), [dead.fileno()])
        # It had not been connected yet.
        with socket.socket(socket.AF_UNIX) as early:
            store.put(store.new_name("q"), [early.fileno()])
        store.restart()
        await_answers(store)
        with pytest.raises(TimeoutError, match="are unanswered"):
            await transport.connect(PORT, 1)
        (await asyncio.get_running_loop().sock_accept(listener))[0].close()
        await until(lambda: len(store.kept) == UNANSWERED_LIMIT - 1)
        await _give_up(transport)
    await until(lambda: not store.kept)


async def test_a_store_that_takes_nothing_is_not_the_fault_of_the_guest(tmp_path: Path) -> None:
    store = KeptInMemory()
    with listen_unix(f"{tmp_path}/vsock") as listener, store.busy():
        with pytest.raises(ResourceExhausted, match="service manager"):
            await HybridTransport(f"{tmp_path}/vsock", store).connect(PORT, 0.1)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert store.kept == {}


async def test_what_cannot_be_asked_is_not_kept(tmp_path: Path) -> None:
    store = KeptInMemory()
    with pytest.raises(OSError):
        await HybridTransport(f"{tmp_path}/vsock", store).connect(PORT, 5)
    assert store.kept == {}


async def test_what_the_guest_connects_to_has_the_port_in_its_name(tmp_path: Path) -> None:
    with HybridTransport(f"{tmp_path}/vsock").listen(1025):
        assert (tmp_path / "vsock_1025").stat().st_mode & 0o777 == 0o600


async def test_a_listener_takes_the_place_of_one_that_died(tmp_path: Path) -> None:
    UnixTransport(str(tmp_path)).listen(PORT).close()
    with UnixTransport(str(tmp_path)).listen(PORT):
        pass


async def test_a_file_is_not_taken_for_a_socket_that_died(tmp_path: Path) -> None:
    (tmp_path / f"{PORT}.sock").write_text("precious")
    with pytest.raises(OSError):
        UnixTransport(str(tmp_path)).listen(PORT)
    assert (tmp_path / f"{PORT}.sock").read_text() == "precious"


@pytest.mark.parametrize("answer", [b"OK 1024", b"OK 1073741824"])
def test_a_daemon_says_yes(answer: bytes) -> None:
    assert is_accepted(answer)


@pytest.mark.parametrize("answer", [b"", b"OK", b"OK ", b"NO 1", b"OK x", b"ok 1", b"OK 1 2"])
def test_a_daemon_says_something_else(answer: bytes) -> None:
    assert not is_accepted(answer)


def test_addresses_name_transports() -> None:
    assert isinstance(transport_of("vsock://3"), VsockTransport)
    assert isinstance(transport_of("unix:///run/x"), UnixTransport)
    assert isinstance(transport_of("hvsock:///run/x"), HybridTransport)


@pytest.mark.parametrize(
    "address", ["", "vsock://", "vsock://x", "unix://relative", "hvsock://x", "tcp://1.2.3.4"]
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(InvalidArgument, match="no transport"):
        transport_of(address)


async def test_a_line_is_taken_and_not_a_byte_more() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"a line\nand what follows")
        ours.setblocking(False)
        assert await receive_line(ours, 100) == b"a line"
        assert ours.recv(100) == b"and what follows"


async def test_a_line_without_end_is_not_collected_forever() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"x" * 1000)
        ours.setblocking(False)
        with pytest.raises(ConnectionResetError):
            await receive_line(ours, 100)
