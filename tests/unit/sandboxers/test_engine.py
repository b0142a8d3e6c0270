"""Asking the engine what it knows, over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.errors import Unavailable
from sandboxers.engine import EngineList, list_engine
from tests.contract.fake_engine import FakeEngine


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[FakeEngine]:
    engine = FakeEngine(str(tmp_path / "engine.sock"))
    yield engine
    await engine.stop()


@pytest.mark.parametrize("namespace", ["k8s.io", "moby"])
async def test_it_tells_what_it_knows_in_whatever_namespace(engine: FakeEngine, namespace: str) -> None:
    await engine.start()
    engine.namespace = namespace
    engine.sandboxes, engine.tasks = {"a", "b"}, {"c"}
    assert await list_engine(engine.address, 5) == EngineList(frozenset("ab"), frozenset("c"))


async def test_tasks_are_not_asked_for_where_nobody_needs_them(engine: FakeEngine) -> None:
    await engine.start()
    engine.sandboxes, engine.tasks = {"a"}, {"c"}
    assert await list_engine(engine.address, 5, tasks=False) == EngineList(frozenset("a"), frozenset())
    assert engine.questions == ["sandboxes"]


async def test_one_that_does_not_run_is_unavailable(engine: FakeEngine) -> None:
    with pytest.raises(Unavailable, match=r"engine\.sock does not tell"):
        await list_engine(engine.address, 5)


async def test_one_that_knows_no_such_service_is_unavailable(engine: FakeEngine) -> None:
    await engine.start(tasks=False)
    with pytest.raises(Unavailable, match="UNIMPLEMENTED"):
        await list_engine(engine.address, 5)


async def test_without_an_address_it_is_unavailable() -> None:
    with pytest.raises(Unavailable, match=r"'engine\.address' is empty"):
        await list_engine("", 5)


async def test_a_list_larger_than_grpc_allows_by_default_is_read(engine: FakeEngine) -> None:
    await engine.start()
    engine.sandboxes = {f"{number:064}" for number in range(100_000)}
    known = await list_engine(engine.address, 10, tasks=False)
    assert len(known.sandboxes) == 100_000
