"""What the tests here share whose machines belong to pods of a daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio

from tests.integration.daemon.lab import Lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def grpc_library() -> AsyncIterator[None]:
    """Keep gRPC's own sockets, which live as long as any channel object does, out of the look for leaks."""
    library: Any = grpc.aio
    library.init_grpc_aio()
    yield
    library.shutdown_grpc_aio()
