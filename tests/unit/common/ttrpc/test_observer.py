"""Whoever observes servers is told of every call that was answered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from common.ttrpc import Server, StatusCode, StatusError
from tests.unit.common.ttrpc.peers import NAME, Place, until

Told = list[tuple[str, str, int, float]]


@pytest.fixture
def told() -> Iterator[Told]:
    calls: Told = []
    Server.observe(lambda *call: calls.append(call))
    yield calls
    Server.observe(None)


async def test_with_method_code_and_duration(place: Place, told: Told) -> None:
    place.listen()
    client = await place.client()
    await client.call(NAME, "Echo", BytesValue(), BytesValue, timeout_s=20)
    await client.call(NAME, "Nap", BytesValue(value=b"0.01"), BytesValue, timeout_s=20)
    for method in ("Fail", "Missing"):
        with pytest.raises(StatusError):
            await client.call(NAME, method, BytesValue(), BytesValue, timeout_s=20)
    with pytest.raises(StatusError):
        await client.call(NAME, "Park", BytesValue(), BytesValue, timeout_s=0.01)
    await until(lambda: len(told) == 4)
    assert [(service, method, code) for service, method, code, _ in told] == [
        (NAME, "Echo", 0),
        (NAME, "Nap", 0),
        (NAME, "Fail", StatusCode.NOT_FOUND),
        (NAME, "Park", StatusCode.DEADLINE_EXCEEDED),
    ]
    assert told[1][3] >= 0.01 > told[0][3]


async def test_not_of_one_that_nobody_waits_for_any_more(place: Place, told: Told) -> None:
    place.listen()
    client = await place.client()
    parked = asyncio.ensure_future(client.call(NAME, "Park", BytesValue(), BytesValue))
    await client.call(NAME, "Echo", BytesValue(), BytesValue, timeout_s=20)
    client.close()
    with pytest.raises(Exception, match="closed"):
        await parked
    assert [method for _, method, _, _ in told] == ["Echo"]
