"""What belongs to nobody: found by comparing ledger, host and engine, and removed only if all three agree."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common import log
from common.errors import Internal, Unavailable
from common.linux.pidfd import start_time
from common.records import write_record
from common.task.records import ContainerRecord
from sandboxers.engine import EngineList
from sandboxers.leftovers import Action, Kind, Leftover, Survey, remove_unserved
from sandboxers.pod_config import PodConfig
from sandboxers.records import RECORD_FILE
from sandboxers.sandbox import Stray
from tests.contract.fake_sandboxer import FakeSandboxer
from tests.unit.sandboxers.conftest import Daemon

HOUR_NS = 3600 * 10**9


class Node:
    """A state directory that nobody serves, and what the engine says it knows (None: it does not answer)."""

    def __init__(self, state_dir: Path, new_daemon: Callable[[], Daemon]) -> None:
        self.state_dir = state_dir
        self._new_daemon = new_daemon
        self.sandboxer = FakeSandboxer()
        self.engine: EngineList | None = EngineList(frozenset(), frozenset())

    async def add_pods(self, *sandbox_ids: str) -> None:
        """Leave running pods behind that are an hour old."""
        daemon = self._new_daemon()
        await daemon.registry.recover()
        for sandbox_id in sandbox_ids:
            await daemon.registry.create(PodConfig(sandbox_id))
            daemon.registry.entry(sandbox_id).created_at_ns -= HOUR_NS
            await daemon.registry.start(sandbox_id)
        daemon.sandboxer.close()

    def add_container(self, pod: str, container_id: str, bundle: str = "/nowhere", pid: int = 0) -> Path:
        directory = self.state_dir / pod / "tasks" / container_id
        directory.mkdir(parents=True)
        record = ContainerRecord(
            container_id=container_id,
            bundle=bundle,
            rootfs="/nowhere",
            directory=str(directory),
            owner=[0, 0],
            cgroups_path="",
            private_pid_namespace=True,
            terminal=False,
            stdin="",
            stdout="",
            stderr="",
        )
        if pid:
            record = dataclasses.replace(record, pid=pid, start_time=start_time(pid))
        write_record(str(directory / "container.json"), record)
        return directory

    def of_another_boot(self, pod: str) -> None:
        path = self.state_dir / pod / RECORD_FILE
        path.write_text(json.dumps({**json.loads(path.read_text()), "boot_id": "another"}))

    async def find(self, *, served: bool = False) -> list[Leftover]:
        sandboxer = None if served else self.sandboxer
        return await Survey(str(self.state_dir), 300, self._ask_engine, sandboxer).find()

    async def collect(self) -> dict[Leftover, str]:
        return await remove_unserved(await self.find(), self.sandboxer, str(self.state_dir), 5)

    def names(self) -> list[str]:
        return sorted(os.listdir(self.state_dir))

    async def _ask_engine(self) -> EngineList:
        if self.engine is None:
            raise Unavailable("away")
        return self.engine


@pytest.fixture
def node(state_dir: Path, new_daemon: Callable[[], Daemon]) -> Iterator[Node]:
    node = Node(state_dir, new_daemon)
    yield node
    node.sandboxer.close()


@pytest.fixture
def process() -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        yield sleeper.pid
        sleeper.kill()


def actions(found: list[Leftover]) -> list[tuple[str, str, str]]:
    return [
        (leftover.kind.value, os.path.basename(leftover.what), leftover.action.value) for leftover in found
    ]


async def test_of_an_empty_state_directory_nothing_is_left_over(node: Node) -> None:
    assert await node.find() == []
    assert await node.find(served=True) == []


async def test_a_pod_that_the_engine_does_not_know_is_removed_and_the_others_are_not_touched(
    node: Node,
) -> None:
    await node.add_pods("known", "forgotten")
    node.engine = EngineList(frozenset({"known"}), frozenset())
    assert actions(await node.find()) == [("pod", "forgotten", "remove")]
    before = (node.state_dir / "known" / RECORD_FILE).read_bytes()
    assert await node.collect() == {}
    assert node.names() == ["known"]
    assert (node.state_dir / "known" / RECORD_FILE).read_bytes() == before
    assert {sandbox_id for _, sandbox_id in node.sandboxer.calls} == {"forgotten"}


async def test_a_running_daemon_is_asked_instead(node: Node) -> None:
    await node.add_pods("forgotten")
    assert actions(await node.find(served=True)) == [("pod", "forgotten", Action.ASK)]


async def test_a_young_pod_is_nobodys_business(node: Node) -> None:
    await node.add_pods("young")
    path = node.state_dir / "young" / RECORD_FILE
    envelope = json.loads(path.read_text())
    envelope["record"]["created_at_ns"] += HOUR_NS
    path.write_text(json.dumps(envelope))
    assert await node.find() == []


async def test_while_the_engine_is_away_only_what_no_boot_has_left_alive_is_removed(
    node: Node, process: int
) -> None:
    await node.add_pods("pod", "old", "undead")
    node.add_container("undead", "c", pid=process)
    for pod in ("old", "undead"):
        node.of_another_boot(pod)
    (node.state_dir / ".removing-x").mkdir()
    (node.state_dir / "half").mkdir()
    (node.state_dir / "strange").mkdir()
    (node.state_dir / "strange" / "file").touch()
    node.sandboxer.stray_containers = [Stray("c", f"{node.state_dir}/gone/tasks/c")]
    node.engine = None
    assert sorted(actions(await node.find())) == [
        ("files", ".removing-x", "remove"),
        ("files", "half", "remove"),
        ("files", "strange", "keep"),
        ("pod", "old", "remove"),
        ("pod", "undead", "keep"),
    ]
    assert await node.collect() == {}
    assert node.names() == ["pod", "strange", "undead"]


@pytest.mark.parametrize("record", ["junk", '{"version": 1000, "boot_id": "x", "record": {}}'])
@pytest.mark.parametrize("where", [RECORD_FILE, "tasks/c/container.json"])
async def test_what_cannot_be_understood_is_shown_and_kept(node: Node, record: str, where: str) -> None:
    await node.add_pods("pod")
    node.add_container("pod", "c")
    (node.state_dir / "pod" / where).write_text(record)
    # What it may stand for is not nobody's either.
    node.sandboxer.stray_containers = [Stray("c", f"{node.state_dir}/pod/tasks/c")]
    (leftover,) = await node.find()
    assert (leftover.kind, leftover.what, leftover.action) == (Kind.POD, "pod", Action.KEEP)
    assert f"pod/{where}" in leftover.why
    assert await node.collect() == {}
    assert (node.state_dir / "pod" / where).read_text() == record


async def test_a_directory_without_a_record_is_removed_unless_something_lives_there(
    node: Node, process: int
) -> None:
    node.add_container("dead", "c1")
    node.add_container("alive", "c2", pid=process)
    (node.state_dir / "engines").mkdir()
    (node.state_dir / "engines" / "task.sock").touch()
    node.engine = EngineList(frozenset({"engines"}), frozenset())
    assert actions(await node.find()) == [
        ("files", "alive", "keep"),
        ("files", "dead", "remove"),
        ("files", "engines", "keep"),
    ]
    assert actions(await node.find(served=True)) == [
        ("files", "alive", "keep"),
        ("files", "dead", "keep"),
        ("files", "engines", "keep"),
    ]
    await node.collect()
    assert node.names() == ["alive", "engines"]


async def test_what_was_not_made_by_us_is_shown_and_kept(node: Node, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").touch()
    (node.state_dir / "link").symlink_to(tmp_path / "elsewhere")
    (node.state_dir / ".removing-link").symlink_to(tmp_path / "elsewhere")
    (node.state_dir / "file").touch()
    (node.state_dir / ".somebodys").mkdir()
    assert actions(await node.find()) == [("files", "file", "keep"), ("files", "link", "keep")]
    await node.collect()
    assert (tmp_path / "elsewhere" / "precious").exists()
    assert node.names() == [".removing-link", ".somebodys", "file", "link"]


async def test_containers_that_no_record_names_are_removed_if_they_were_made_here(node: Node) -> None:
    await node.add_pods("pod")
    node.add_container("pod", "recorded")
    node.engine = EngineList(frozenset({"pod"}), frozenset({"recorded", "busy"}))
    here = f"{node.state_dir}/pod/tasks"
    node.sandboxer.stray_containers = [
        Stray("recorded", f"{here}/recorded"),
        Stray("ours", f"{here}/ours"),
        Stray("busy", f"{here}/busy"),
        Stray("neighbours", f"{node.state_dir}-2/pod/tasks/ours"),
        Stray("nobodys", ""),
    ]
    assert actions(await node.find()) == [
        ("container", "ours", "remove"),
        ("container", "busy", "keep"),
        ("container", "neighbours", "keep"),
        ("container", "nobodys", "keep"),
    ]
    await node.collect()
    left = [stray.container_id for stray in node.sandboxer.stray_containers]
    assert left == ["recorded", "busy", "neighbours", "nobodys"]


async def test_a_container_that_the_engine_has_lost_is_its_pods_business(node: Node, tmp_path: Path) -> None:
    await node.add_pods("pod")
    node.add_container("pod", "lost")
    node.add_container("pod", "known")
    node.add_container("pod", "bundled", bundle=str(tmp_path))
    node.engine = EngineList(frozenset({"pod"}), frozenset({"known"}))
    assert actions(await node.find()) == [("container", "lost", "keep")]


async def test_what_could_not_be_removed_is_told_with_the_reason(node: Node) -> None:
    await node.add_pods("forgotten")
    node.sandboxer.failures["destroy"] = Internal("stuck")
    with log.capture():
        failures = await node.collect()
    assert list(failures.values()) == ["stuck"]
    node.sandboxer.close()
    node.sandboxer = FakeSandboxer()
    assert await node.collect() == {}
    assert node.names() == []
