"""The endpoint, over real sockets, with clients that are slow, odd or many."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common import log
from common.errors import FailedPrecondition
from sandboxers.metrics import endpoint as module
from sandboxers.metrics.endpoint import Endpoint

BODY = "x 1\n" * 100_000


class Place:
    """An endpoint on a unix socket, and clients."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.endpoint = Endpoint(lambda: BODY)

    async def ask(self, request: bytes) -> bytes:
        """Everything that comes back."""
        reader, writer = await asyncio.open_unix_connection(self.path, limit=1 << 22)
        try:
            writer.write(request)
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def has_clients(self, count: int) -> None:
        """Wait until the endpoint serves so many."""
        async with asyncio.timeout(20):
            while self.endpoint._clients != count:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.001)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place = Place(str(tmp_path / "m.sock"))
    await place.endpoint.listen(f"unix://{place.path}")
    yield place
    place.endpoint.close()
    await asyncio.sleep(0)


async def test_figures_are_answered_whole(place: Place) -> None:
    answer = await place.ask(b"GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n")
    head, _, body = answer.decode().partition("\r\n\r\n")
    assert head.splitlines()[0] == "HTTP/1.0 200 OK"
    assert f"Content-Length: {len(BODY)}" in head
    assert "text/plain; version=0.0.4" in head
    assert body == BODY
    assert stat.S_IMODE(os.stat(place.path).st_mode) == 0o600


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.0", b"404 Not Found"),
        (b"POST /metrics HTTP/1.0", b"405 Method Not Allowed"),
        (b"HEAD /metrics HTTP/1.0", b"200 OK"),
        (b"nonsense", b"405"),
    ],
)
async def test_all_else_is_told_what_is_wrong(place: Place, request_line: bytes, status: bytes) -> None:
    answer = await place.ask(request_line + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 " + status)
    if request_line.startswith(b"HEAD"):
        assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "request_bytes",
    [b"G" * 20_000, b"GET /metrics HTTP/1.0\r\n" + b"X: y\r\n" * 3000, b"\r\n" * 5 + b"\xff" * 9000],
    ids=["a long line", "many headers", "rubbish"],
)
async def test_a_head_without_end_is_cut_off(place: Place, request_bytes: bytes) -> None:
    assert b"200 OK" not in await place.ask(request_bytes)
    assert b"200 OK" in await place.ask(b"GET /metrics HTTP/1.0\r\n\r\n")


async def test_clients_are_few(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_S", 60.0)
    slow = [asyncio.create_task(place.ask(b"GET /met")) for _ in range(module._CLIENTS)]
    await place.has_clients(module._CLIENTS)
    assert await place.ask(b"GET /metrics HTTP/1.0\r\n\r\n") == b"", "no more clients at once"
    for client in slow:
        client.cancel()
    await asyncio.wait(slow)
    await place.has_clients(0)
    assert b"200 OK" in await place.ask(b"GET /metrics HTTP/1.0\r\n\r\n")


async def test_slow_clients_are_not_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_S", 0.05)
    assert await asyncio.wait_for(place.ask(b"GET /met"), 20) == b""


async def test_over_tcp_for_an_ordinary_client() -> None:
    endpoint = Endpoint(lambda: "y 2\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    await endpoint.listen(f"tcp://{where}")
    try:
        with pytest.raises(FailedPrecondition, match=rf"{where}.*in use.*metrics\.address"):
            await Endpoint(lambda: "").listen(f"tcp://{where}")
        fetch = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        answer = await asyncio.to_thread(fetch, f"http://{where}/metrics", None, 5)
        with answer:
            assert answer.read() == b"y 2\n"
    finally:
        endpoint.close()
        await asyncio.sleep(0)


async def test_figures_that_cannot_be_gathered_are_an_error_of_ours(tmp_path: Path) -> None:
    place = Place(str(tmp_path / "m.sock"))
    place.endpoint = Endpoint(lambda: str(1 // 0))
    await place.endpoint.listen(f"unix://{place.path}")
    with log.capture() as lines:
        assert b"500 Internal" in await place.ask(b"GET /metrics HTTP/1.0\r\n\r\n")
    place.endpoint.close()
    await asyncio.sleep(0)
    assert lines[0]["event"] == "metrics.failed"
