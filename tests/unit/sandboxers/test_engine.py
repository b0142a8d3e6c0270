"""Asking the engine what it knows, over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.errors import Unavailable
from sandboxers.engine import EngineList, list_embedded, list_engine, list_engines
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
    with pytest.raises(Unavailable, match=r"'engine\.kind' and 'engine\.address'"):
        await list_engine("", 5)


async def test_a_list_larger_than_grpc_allows_by_default_is_read(engine: FakeEngine) -> None:
    await engine.start()
    engine.sandboxes = {f"{number:064}" for number in range(100_000)}
    known = await list_engine(engine.address, 10, tasks=False)
    assert len(known.sandboxes) == 100_000


async def test_pods_of_the_embedded_engine_are_known_as_well(engine: FakeEngine, tmp_path: Path) -> None:
    await engine.start()
    engine.sandboxes, engine.tasks = {"a"}, {"c"}
    (tmp_path / "embedded/pod/bundles/pod-main").mkdir(parents=True)
    (tmp_path / "embedded/pod/pod.json").touch()
    # No pod without a record.
    (tmp_path / "embedded/other/bundles/other-main").mkdir(parents=True)
    (tmp_path / "embedded/.daemons").mkdir()
    known = await list_engines(engine.address, 5, embedded_dir=str(tmp_path / "embedded"))
    assert known == EngineList(frozenset({"a", "pod"}), frozenset({"c", "pod-main"}))
    alone = EngineList(frozenset({"pod"}), frozenset({"pod-main"}))
    assert list_embedded(str(tmp_path / "embedded")) == alone


async def test_an_engine_that_cannot_be_asked_is_not_replaced_by_the_embedded_one(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        await list_engines("", 5, embedded_dir=str(tmp_path))
