"""Our server against the Go client and our client against the Go server: containerd/ttrpc v1.2.7."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from common.ttrpc import (
    CallContext,
    Client,
    Method,
    Server,
    ServerStream,
    Service,
    StatusCode,
    StatusError,
    StreamMethod,
)
from tests.unit.common.ttrpc.keeper import Keeper

HERE = Path(__file__).parent
BINARY = HERE.parents[2] / ".cache" / "ttrpc-interop"
NAME = "sandboxd.test.Interop"
SIZES = (0, 4000, 4096, 5000, 40_000, 65_526, 65_527, 300_000, 3 << 20)


class Interop:
    """The service that main.go implements, too."""

    async def echo(self, request: BytesValue, context: CallContext) -> BytesValue:
        return request

    async def fail(self, request: BytesValue, context: CallContext) -> BytesValue:
        raise StatusError(StatusCode.NOT_FOUND, f"no {request.value.decode()}")

    async def metadata(self, request: BytesValue, context: CallContext) -> BytesValue:
        values = [value for key, value in context.metadata if key == request.value.decode()]
        return BytesValue(value=",".join(values).encode())

    async def has_deadline(self, request: BytesValue, context: CallContext) -> BytesValue:
        return BytesValue(value=b"true" if context.deadline is not None else b"false")

    async def park(self, request: BytesValue, context: CallContext) -> BytesValue:
        await asyncio.get_running_loop().create_future()
        return request

    async def chat(self, stream: ServerStream[BytesValue], context: CallContext) -> None:
        async for message in stream:
            await stream.send(message)

    async def up(self, stream: ServerStream[BytesValue], context: CallContext) -> BytesValue:
        return BytesValue(value=b"".join([message.value async for message in stream]))

    async def down(self, stream: ServerStream[BytesValue], context: CallContext) -> None:
        message = await stream.receive()
        assert message is not None
        for byte in message.value:
            await stream.send(BytesValue(value=bytes([byte])))


METHODS: dict[str, Method | StreamMethod] = {
    "Echo": Method(BytesValue, Interop.echo),
    "Fail": Method(BytesValue, Interop.fail),
    "Metadata": Method(BytesValue, Interop.metadata),
    "HasDeadline": Method(BytesValue, Interop.has_deadline),
    "Park": Method(BytesValue, Interop.park, journaled=True),
    "Chat": StreamMethod(BytesValue, Interop.chat),
    "Up": StreamMethod(BytesValue, Interop.up),
    "Down": StreamMethod(BytesValue, Interop.down),
}


@pytest.fixture(scope="session")
def go() -> Path:
    """The Go peer, built once and again when its source is newer."""
    sources = [HERE / name for name in ("main.go", "go.mod", "go.sum")]
    if BINARY.exists() and BINARY.stat().st_mtime > max(path.stat().st_mtime for path in sources):
        return BINARY
    compiler = shutil.which("go")
    if compiler is None:
        pytest.skip("there is no Go toolchain on PATH to build the peer with")
    BINARY.parent.mkdir(exist_ok=True)
    # The build may have to fetch modules and compile everything: it gets its own limit.
    built = subprocess.run(
        [compiler, "build", "-buildvcs=false", "-mod=readonly", "-o", BINARY, "."],
        cwd=HERE,
        env={**os.environ, "CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert built.returncode == 0, f"building the Go peer failed:\n{built.stderr}"
    return BINARY


@pytest.mark.timeout(400)
async def test_the_go_client_is_content_with_our_server(go: Path, tmp_path: Path) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    sock.listen()
    server = Server({NAME: Service(METHODS, Interop())})
    server.listen(sock)
    try:
        client = await asyncio.create_subprocess_exec(
            go, "client", tmp_path / "s", stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        async with asyncio.timeout(60):
            out, err = await client.communicate()
    finally:
        server.close()
        await server.wait_closed()
    assert client.returncode == 0, f"{out.decode()}{err.decode()}"
    assert out.decode().splitlines()[-1] == "ok server stream"
    assert len(out.decode().splitlines()) == 10


@pytest.mark.timeout(400)
async def test_the_go_client_cannot_tell_a_server_that_is_killed_from_a_slow_one(
    go: Path, tmp_path: Path
) -> None:
    async with Keeper(tmp_path) as keeper:
        await keeper.start()
        client = await asyncio.create_subprocess_exec(
            go, "calls", keeper.path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert client.stdout is not None
        assert await client.stdout.readline() == b"connected\n"
        finished = asyncio.create_task(client.communicate())
        async with asyncio.timeout(60):
            while not finished.done():
                await asyncio.sleep(random.uniform(0.0, 0.5))
                keeper.kill()
            _out, err = await finished
        assert client.returncode == 0, err.decode()
        assert keeper.deaths > 2
        assert sorted(keeper.done()) == [b"%016d" % number for number in range(8 * 60)]


@pytest.fixture
async def client(go: Path, tmp_path: Path) -> AsyncIterator[Client]:
    """Our client, connected to a Go server that ends with the test."""
    process = await asyncio.create_subprocess_exec(
        go, "server", tmp_path / "s", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert await process.stdout.readline() == b"listening\n"
    async with await Client.connect(tmp_path / "s", timeout_s=20) as client:
        yield client
    process.stdin.close()
    assert await process.wait() == 0


async def call(client: Client, method: str, value: bytes = b"", timeout_s: float | None = 30) -> bytes:
    answer = await client.call(NAME, method, BytesValue(value=value), BytesValue, timeout_s)
    return answer.value


@pytest.mark.parametrize("size", SIZES)
async def test_payloads_come_back_from_go(client: Client, size: int) -> None:
    value = os.urandom(size)
    assert await call(client, "Echo", value) == value


async def test_errors_of_go_carry_code_and_text(client: Client) -> None:
    with pytest.raises(StatusError, match="no pod") as raised:
        await call(client, "Fail", b"pod")
    assert raised.value.code == StatusCode.NOT_FOUND
    with pytest.raises(StatusError, match="Nonsense") as raised:
        await call(client, "Nonsense")
    assert raised.value.code == StatusCode.UNIMPLEMENTED


async def test_go_receives_metadata_and_the_timeout(client: Client) -> None:
    metadata = [("key", "one"), ("key", "two")]
    request = BytesValue(value=b"key")
    answer = await client.call(NAME, "Metadata", request, BytesValue, metadata=metadata)
    assert answer.value == b"one,two"
    assert await call(client, "HasDeadline", timeout_s=20) == b"true"
    assert await call(client, "HasDeadline", timeout_s=None) == b"false"
    with pytest.raises(StatusError) as raised:
        await call(client, "Park", timeout_s=0.05)
    assert raised.value.code == StatusCode.DEADLINE_EXCEEDED


async def test_a_hundred_calls_pass_a_parked_one_in_go(client: Client) -> None:
    parked = asyncio.create_task(call(client, "Park"))
    values = [b"call %d " % i * (i + 1) for i in range(100)]
    assert await asyncio.gather(*(call(client, "Echo", value) for value in values)) == values
    assert not parked.done()
    parked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await parked


async def test_a_bidirectional_stream_with_go(client: Client) -> None:
    async with client.open_stream(NAME, "Chat", BytesValue) as stream:
        for value in (b"a", b"", bytes(100_000)):
            await stream.send(BytesValue(value=value))
            assert await stream.receive() == BytesValue(value=value)
        stream.close_send()
        assert await stream.receive() is None


async def test_streams_in_one_direction_with_go(client: Client) -> None:
    async with client.open_stream(NAME, "Up", BytesValue) as stream:
        for value in (b"one ", b"two"):
            await stream.send(BytesValue(value=value))
        stream.close_send()
        assert [answer.value async for answer in stream] == [b"one two"]
    first = BytesValue(value=b"xyz")
    async with client.open_stream(NAME, "Down", BytesValue, first, client_streams=False) as stream:
        assert [answer.value async for answer in stream] == [b"x", b"y", b"z"]
