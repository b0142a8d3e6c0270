"""What the engine has forgotten is removed: not sooner than it must, and never on a suspicion."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from common import log
from common.errors import Internal
from sandboxers.garbage import RECORD_FILE, Garbage
from sandboxers.pod_config import PodConfig
from sandboxers.states import SandboxState
from tests.contract.fake_engine import FakeEngine
from tests.unit.sandboxers.conftest import Daemon

NewGarbage = Callable[..., Garbage]


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[FakeEngine]:
    engine = await FakeEngine(str(tmp_path / "engine.sock")).start()
    yield engine
    await engine.stop()


@pytest.fixture
def new_garbage(daemon: Daemon, state_dir: Path, engine: FakeEngine) -> NewGarbage:
    def make(grace_s: float = 0, interval_s: float = 0, address: str = engine.address) -> Garbage:
        return Garbage(daemon.registry, str(state_dir), address, interval_s, grace_s)

    return make


async def started(daemon: Daemon, *sandbox_ids: str) -> None:
    for sandbox_id in sandbox_ids:
        await daemon.registry.create(PodConfig(sandbox_id))
        await daemon.registry.start(sandbox_id)


def pods(daemon: Daemon) -> list[str]:
    return [entry.id for entry in daemon.registry.entries]


async def test_a_pod_is_removed_at_the_second_look_that_misses_it(
    daemon: Daemon, engine: FakeEngine, new_garbage: NewGarbage, state_dir: Path
) -> None:
    await started(daemon, "known", "forgotten")
    engine.sandboxes = {"known"}
    garbage = new_garbage()
    await garbage.look()
    assert pods(daemon) == ["known", "forgotten"]
    assert garbage.figures["missing"] == 1
    with log.capture() as lines:
        await garbage.look()
    assert pods(daemon) == ["known"]
    assert [(line["event"], line["sandbox_id"]) for line in lines if line["event"].startswith("gc.")] == [
        ("gc.sandbox_removed", "forgotten")
    ]
    assert sorted(os.listdir(state_dir)) == [RECORD_FILE, "known"]
    assert garbage.figures["sandboxes_removed"] == 1


async def test_a_pod_is_kept_for_the_period_of_grace(
    daemon: Daemon, engine: FakeEngine, new_garbage: NewGarbage
) -> None:
    await started(daemon, "pod")
    daemon.registry.entry("pod").created_at_ns -= int(10e9)
    garbage = new_garbage(grace_s=0.3)
    begun = time.monotonic()
    while pods(daemon):
        assert time.monotonic() - begun < 20
        await garbage.look()
        await asyncio.sleep(0.02)
    assert time.monotonic() - begun >= 0.3


async def test_a_young_pod_is_not_in_doubt(
    daemon: Daemon, engine: FakeEngine, new_garbage: NewGarbage
) -> None:
    await started(daemon, "pod")
    await new_garbage(grace_s=60).look()
    assert engine.questions == []


async def test_an_engine_that_waits_for_its_pods_is_never_asked(
    daemon: Daemon, engine: FakeEngine, new_garbage: NewGarbage
) -> None:
    await started(daemon, "pod")
    wait = asyncio.ensure_future(daemon.registry.entry("pod").end.wait())
    await asyncio.sleep(0)
    garbage = new_garbage()
    for _ in range(3):
        await garbage.look()
    assert engine.questions == []
    assert pods(daemon) == ["pod"]
    wait.cancel()


async def test_one_look_at_which_the_engine_knows_it_again_begins_anew(
    daemon: Daemon, engine: FakeEngine, new_garbage: NewGarbage
) -> None:
    await started(daemon, "pod")
    garbage = new_garbage()
    for _ in range(3):
        engine.sandboxes = set()
        await garbage.look()
        engine.sandboxes = {"pod"}
        await garbage.look()
    assert pods(daemon) == ["pod"]


async def test_nothing_is_removed_while_the_engine_is_away_and_not_at_once_when_it_is_back(
    daemon: Daemon, engine: FakeEngine, new_garbage: NewGarbage
) -> None:
    await started(daemon, "pod")
    garbage = new_garbage()
    await garbage.look()
    await engine.stop()
    with log.capture() as lines:
        for _ in range(3):
            await garbage.look()
    assert [line["event"] for line in lines] == ["gc.engine_unavailable"]
    assert "does not tell what it knows" in garbage.figures["last_error"]
    await engine.start()
    await garbage.look()
    assert pods(daemon) == ["pod"]
    assert garbage.figures["last_error"] == ""
    await garbage.look()
    assert pods(daemon) == []


async def test_without_an_engine_nothing_is_ever_removed(daemon: Daemon, new_garbage: NewGarbage) -> None:
    await started(daemon, "pod")
    garbage = new_garbage(address="")
    for _ in range(3):
        await garbage.look()
    assert pods(daemon) == ["pod"]


async def test_containers_that_the_engine_does_not_know_are_removed_from_pods_that_it_knows(
    daemon: Daemon, engine: FakeEngine, new_garbage: NewGarbage
) -> None:
    await started(daemon, "pod")
    sandbox = daemon.sandboxer.sandboxes["pod"]
    sandbox.abandoned_containers = ["known", "forgotten"]
    engine.sandboxes, engine.tasks = {"pod"}, {"known"}
    garbage = new_garbage()
    await garbage.look()
    assert sandbox.abandoned_containers == ["known", "forgotten"]
    await garbage.look()
    assert sandbox.abandoned_containers == ["known"]
    assert daemon.registry.entry("pod").state is SandboxState.READY
    assert garbage.figures["tasks_removed"] == 1


async def test_a_container_that_somebody_asks_for_meanwhile_is_kept(
    daemon: Daemon, engine: FakeEngine, new_garbage: NewGarbage
) -> None:
    await started(daemon, "pod")
    sandbox = daemon.sandboxer.sandboxes["pod"]
    sandbox.abandoned_containers = ["c"]
    engine.sandboxes = {"pod"}
    garbage = new_garbage()
    await garbage.look()
    sandbox.abandoned_containers = []
    await garbage.look()
    assert ("collect", "pod") not in daemon.sandboxer.calls


async def test_what_cannot_be_removed_is_told_and_tried_again(
    daemon: Daemon, engine: FakeEngine, new_garbage: NewGarbage
) -> None:
    await started(daemon, "pod")
    garbage = new_garbage()
    daemon.sandboxer.failures["stop"] = Internal("stuck")
    with log.capture() as lines:
        for _ in range(3):
            await garbage.look()
    assert [line["event"] for line in lines].count("gc.not_removed") == 2
    daemon.sandboxer.failures.clear()
    await garbage.look()
    assert pods(daemon) == []


async def test_the_figures_outlive_the_daemon(
    daemon: Daemon, engine: FakeEngine, new_garbage: NewGarbage, state_dir: Path
) -> None:
    await started(daemon, "pod")
    garbage = new_garbage()
    for _ in range(2):
        await garbage.look()
    assert new_garbage().figures["sandboxes_removed"] == 1
    (state_dir / RECORD_FILE).write_text("junk")
    with log.capture() as lines:
        assert new_garbage().figures["sandboxes_removed"] == 0
    assert [line["event"] for line in lines] == ["gc.record_unreadable"]


async def test_it_looks_by_itself_from_time_to_time_until_it_is_closed(
    daemon: Daemon, engine: FakeEngine, new_garbage: NewGarbage, state_dir: Path
) -> None:
    await started(daemon, "pod")
    garbage = new_garbage(interval_s=0.02)
    garbage.start()
    async with asyncio.timeout(20):
        while pods(daemon):  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.02)
    garbage.close()
    assert json.loads((state_dir / RECORD_FILE).read_text())["record"]["sandboxes_removed"] == 1


async def test_an_interval_of_zero_is_never(
    daemon: Daemon, engine: FakeEngine, new_garbage: NewGarbage
) -> None:
    await started(daemon, "pod")
    garbage = new_garbage()
    garbage.start()
    await asyncio.sleep(0.05)
    garbage.close()
    assert engine.questions == []
