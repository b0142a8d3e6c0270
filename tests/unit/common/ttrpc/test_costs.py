"""What one idle server, one idle connection and one parked call cost."""

from __future__ import annotations

import asyncio
import gc
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from common.ttrpc import Server, Service
from tests.unit.common.ttrpc.peers import METHODS, NAME, Bench, request_frame, until

COUNT = 200


def bytes_each(make: Callable[[], None]) -> float:
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    make()
    gc.collect()
    return (tracemalloc.get_traced_memory()[0] - before) / COUNT


async def test_idle_servers_connections_and_parked_calls_are_small(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(False)  # in debug mode asyncio keeps a traceback with every handle
    bench = Bench()
    services = {NAME: Service(METHODS, bench)}
    servers: list[Server] = []
    peers: list[socket.socket] = []

    def listen() -> None:
        for _ in range(COUNT):
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(str(tmp_path / str(len(servers))))
            sock.listen()
            server = Server(services)
            server.listen(sock)
            servers.append(server)

    def connect() -> None:
        for _ in range(COUNT):
            mine, theirs = socket.socketpair()
            servers[0].adopt(theirs)
            peers.append(mine)

    tracemalloc.start()
    try:
        # The smaller of two: what something else in this process allocates meanwhile is not a server's.
        per_server = min(bytes_each(listen), bytes_each(listen))
        per_connection = (
            bytes_each(connect) - bytes_each(lambda: peers.extend(socket.socketpair() * COUNT)) / 2
        )
        for number in range(COUNT):
            peers[0].send(request_frame(2 * number + 1, "Park"))
        before = tracemalloc.get_traced_memory()[0]
        await until(lambda: bench.parked == COUNT)
        await asyncio.sleep(0)
        gc.collect()
        per_call = (tracemalloc.get_traced_memory()[0] - before) / COUNT
    finally:
        tracemalloc.stop()
        for server in servers:
            server.close()
        for peer in peers:
            peer.close()
        await servers[0].wait_closed()
    print(
        f"bytes: server with listener {per_server:.0f}, connection {per_connection:.0f}, call {per_call:.0f}"
    )
    assert per_server < 1024
    assert per_connection < 3072
    assert per_call < 4096
