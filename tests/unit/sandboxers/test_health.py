"""Health over real gRPC, asked by the client that the protocol's authors publish, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from sandboxers.controller import Controller, serve
from sandboxers.health import Health
from tests.unit.sandboxers.conftest import Daemon

# Of its own, since the same messages cannot be declared twice in a process.
CLIENT = """
import json, sys
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

with grpc.insecure_channel("unix:" + sys.argv[1]) as channel:
    stub = health_pb2_grpc.HealthStub(channel)
    def check(service):
        try:
            return health_pb2.HealthCheckResponse.ServingStatus.Name(
                stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status)
        except grpc.RpcError as error:
            return error.code().name
    print(json.dumps([check(name) for name in sys.argv[2:]]), flush=True)
    for answer in stub.Watch(health_pb2.HealthCheckRequest(service=""), timeout=10):
        print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status), flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def _grpc() -> Iterator[None]:
    """Keep gRPC's own sockets out of the look for leaks, as in test_controller.py."""
    library: Any = grpc.aio

    async def initialise() -> None:
        library.init_grpc_aio()

    async def finish() -> None:
        library.shutdown_grpc_aio()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(initialise())
    yield
    loop.run_until_complete(finish())
    loop.close()


@pytest.fixture
async def health(daemon: Daemon, tmp_path: Path) -> AsyncIterator[Health]:
    health = Health()
    server = await serve(Controller(daemon.registry), str(tmp_path / "c.sock"), health)
    yield health
    health.close()
    await server.stop(grace=0)


async def test_the_daemon_serves_until_it_stops(health: Health, tmp_path: Path) -> None:
    services = ("", "containerd.services.sandbox.v1.Controller", "nothing")
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CLIENT, str(tmp_path / "c.sock"), *services, stdout=asyncio.subprocess.PIPE
    )
    assert client.stdout is not None
    assert json.loads(await client.stdout.readline()) == ["SERVING", "SERVING", "NOT_FOUND"]
    assert await client.stdout.readline() == b"SERVING\n"
    health.close()
    assert await client.stdout.read() == b"NOT_SERVING\n"
    assert await client.wait() == 0
