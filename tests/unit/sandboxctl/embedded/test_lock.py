"""A lock that one can stop to wait for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sandboxctl.embedded.lock import locked_file


async def test_one_has_it_and_who_waits_can_be_cancelled(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    order = []

    async def take(name: str) -> None:
        async with locked_file(path):
            order.append(name)

    async with locked_file(path):
        waiting, given_up = asyncio.create_task(take("waiting")), asyncio.create_task(take("given up"))
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        assert order == []
    await waiting
    assert order == ["waiting"]
