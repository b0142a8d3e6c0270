"""What a daemon finds when it comes back: pods of an earlier one, of another boot, and such as it cannot understand."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from common import log
from common.descriptors.store import NoStore
from common.errors import Internal, NotFound, Unavailable
from sandboxers.records import RECORD_FILE, SandboxRecord
from sandboxers.registry import SandboxRegistry
from sandboxers.states import SandboxState
from tests.contract.fake_sandboxer import FakeSandboxer
from tests.unit.sandboxers.conftest import Daemon, NewDaemon, change_record, pod, record, record_path, started

# -- recovery --------------------------------------------------------------------------------------


async def test_a_running_pod_is_taken_up(new_daemon: NewDaemon) -> None:
    before = new_daemon()
    await started(before)
    after = new_daemon()
    await after.registry.recover()
    old, entry = before.registry.entry("pod"), after.registry.entry("pod")
    assert (entry.state, entry.endpoint, entry.pod) == (SandboxState.READY, old.endpoint, old.pod)
    assert entry.created_at_ns == old.created_at_ns
    assert after.sandboxer.recovered == {"pod": True}
    after.sandboxer.sandboxes["pod"].end(3, 4)
    await entry.end.wait()
    assert entry.exit_code == 3


async def test_a_stopped_pod_is_taken_up_with_its_end(new_daemon: NewDaemon) -> None:
    before = new_daemon()
    await started(before)
    before.sandboxer.sandboxes["pod"].end(7, 99)
    after = new_daemon()
    await after.registry.recover()
    entry = after.registry.entry("pod")
    await asyncio.wait_for(entry.end.wait(), 20)
    assert (entry.exit_code, entry.exited_at_ns, entry.state) == (7, 99, SandboxState.STOPPED)
    assert after.sandboxer.recovered == {"pod": False}
    await after.registry.stop("pod", 1)
    await after.registry.shutdown("pod")


@pytest.mark.parametrize("state", ["being started", "failed to start", "being removed"])
async def test_what_nobody_was_told_of_and_what_was_being_removed_is_removed(
    new_daemon: NewDaemon, state_dir: Path, state: str
) -> None:
    await new_daemon().registry.create(pod())
    change_record(state_dir, state=state)
    after = new_daemon()
    await after.registry.recover()
    assert os.listdir(state_dir) == []
    assert after.sandboxer.calls == [("recover", "pod"), ("destroy", "pod")]
    assert after.sandboxer.recovered == {"pod": False}
    assert len(after.registry) == 0


async def test_a_pod_that_was_created_can_still_be_started(new_daemon: NewDaemon) -> None:
    await new_daemon().registry.create(pod())
    after = new_daemon()
    await after.registry.recover()
    assert after.sandboxer.calls == []
    await after.registry.start("pod")
    assert after.registry.entry("pod").state is SandboxState.READY


async def test_a_removal_that_fails_again_is_kept_and_tried_again(
    new_daemon: NewDaemon, state_dir: Path
) -> None:
    await new_daemon().registry.create(pod())
    change_record(state_dir, state="being removed", created_at_ns=1)
    after = new_daemon()
    after.sandboxer.failures["destroy"] = Internal("stuck")
    with log.capture() as lines:
        await after.registry.recover()
    assert [line["event"] for line in lines] == ["sandbox.not_removed"]
    assert after.registry.entry("pod").state is SandboxState.REMOVAL_FAILED
    after.sandboxer.failures.clear()
    await after.registry.forget_unwanted(0)
    assert os.listdir(state_dir) == []


async def test_files_of_a_removed_pod_are_removed_by_the_next_daemon(
    new_daemon: NewDaemon, state_dir: Path
) -> None:
    (state_dir / ".removing-pod" / "tasks").mkdir(parents=True)
    (state_dir / ".removing-pod" / RECORD_FILE).write_text("whatever")
    (state_dir / ".removingother").mkdir()
    after = new_daemon()
    await after.registry.recover()
    assert os.listdir(state_dir) == [".removingother"]
    assert after.registry.untouched == {}


async def test_files_of_an_earlier_removal_are_in_nobodys_way(daemon: Daemon, state_dir: Path) -> None:
    (state_dir / ".removing-pod" / "x").mkdir(parents=True)
    await started(daemon)
    await daemon.registry.shutdown("pod")
    assert os.listdir(state_dir) == []


async def test_a_pod_of_another_boot_is_rolled_back(new_daemon: NewDaemon, state_dir: Path) -> None:
    await started(new_daemon())
    path = record_path(state_dir)
    path.write_text(json.dumps({**json.loads(path.read_text()), "boot_id": "another"}))
    after = new_daemon()
    await after.registry.recover()
    assert os.listdir(state_dir) == []


@pytest.mark.parametrize("state", ["being stopped", "not completely stopped"])
async def test_a_pod_that_was_being_stopped_waits_for_the_next_stop(
    new_daemon: NewDaemon, state_dir: Path, state: str
) -> None:
    await started(new_daemon())
    change_record(state_dir, state=state)
    after = new_daemon()
    await after.registry.recover()
    assert after.registry.entry("pod").state is SandboxState.STOP_FAILED
    await after.registry.stop("pod", 1)
    assert after.registry.entry("pod").state is SandboxState.STOPPED


@pytest.mark.parametrize(
    "text",
    [
        "",
        "junk",
        '{"version": 1, "boot_id": "x", "record": {}}',
        '{"version": 1, "boot_id": "x", "record": {"pod": {"a": 1}, "state": "running", "created_at_ns": 1}}',
        '{"version": 1, "boot_id": "","record": {"pod": {"sandbox_id":"p"}, "state": "", "created_at_ns":1}}',
    ],
)
async def test_a_pod_with_an_unreadable_record_is_left_untouched_and_the_others_go_on(
    new_daemon: NewDaemon, state_dir: Path, text: str
) -> None:
    before = new_daemon()
    await started(before)
    await started(before, "other")
    record_path(state_dir).write_text(text)
    for _ in range(2):
        after = new_daemon()
        with log.capture() as lines:
            await after.registry.recover()
        assert "sandbox.not_recovered" in [line["event"] for line in lines]
        assert len(after.registry) == 1
        assert after.registry.entry("other").state is SandboxState.READY
    assert record_path(state_dir).read_text() == text
    assert sorted(os.listdir(state_dir / "pod")) == ["pod", "sandbox.json", "task.sock"]
    assert list(after.registry.untouched) == [str(state_dir / "pod")]
    for call in (
        after.registry.create(pod()),
        after.registry.start("pod"),
        after.registry.stop("pod", 1),
        after.registry.shutdown("pod"),
    ):
        with pytest.raises(Unavailable, match=r"left as it is in .*/pod: .*repair or remove it"):
            await call


async def test_a_record_from_the_future_is_refused_and_untouched(
    new_daemon: NewDaemon, state_dir: Path
) -> None:
    await started(new_daemon())
    path = record_path(state_dir)
    path.write_text(json.dumps({"version": SandboxRecord.VERSION + 1, "boot_id": "x", "record": {"new": 1}}))
    text, names = path.read_text(), sorted(os.listdir(state_dir / "pod"))
    after = new_daemon()
    with log.capture() as lines:
        await after.registry.recover()
    assert "start the version that wrote it" in lines[0]["error"]
    assert (path.read_text(), sorted(os.listdir(state_dir / "pod"))) == (text, names)
    assert after.sandboxer.calls == []
    with pytest.raises(Unavailable, match="start the version that wrote it"):
        after.registry.entry("pod")


async def test_a_pod_with_a_hashed_directory_is_not_taken_for_an_unknown_one(
    new_daemon: NewDaemon, state_dir: Path
) -> None:
    sandbox_id = "f" * 76
    await new_daemon().registry.create(pod(sandbox_id))
    (directory,) = state_dir.iterdir()
    (directory / RECORD_FILE).write_text("junk")
    assert directory.name != sandbox_id
    after = new_daemon()
    await after.registry.recover()
    with pytest.raises(Unavailable):
        after.registry.entry(sandbox_id)
    with pytest.raises(NotFound):
        after.registry.entry("another")


async def test_a_pod_that_cannot_be_taken_up_is_left_alone(new_daemon: NewDaemon, state_dir: Path) -> None:
    before = new_daemon()
    await started(before)
    await started(before, "second")
    after = new_daemon()
    after.sandboxer.failures["recover"] = KeyError("bug")
    with log.capture() as lines:
        await after.registry.recover()
    assert [line["event"] for line in lines] == ["sandbox.not_recovered"] * 2
    assert len(after.registry) == 0
    assert sorted(os.listdir(state_dir)) == ["pod", "second"]
    assert record(state_dir)["state"] == "running"
    with pytest.raises(Unavailable, match="bug"):
        after.registry.entry("pod")


async def test_an_empty_directory_is_what_an_interrupted_create_leaves(
    new_daemon: NewDaemon, state_dir: Path
) -> None:
    (state_dir / "empty").mkdir()
    (state_dir / "half").mkdir()
    (state_dir / "half" / "sandbox.json.new").touch()
    (state_dir / "strange").mkdir()
    (state_dir / "strange" / "file").touch()
    (state_dir / ".oci").mkdir()
    (state_dir / "file").touch()
    await new_daemon().registry.recover()
    assert sorted(os.listdir(state_dir)) == [".oci", "file", "strange"]


async def test_many_pods_come_and_go_without_a_trace(daemon: Daemon, state_dir: Path) -> None:
    for number in range(200):
        await started(daemon, f"pod{number}")
        await daemon.registry.shutdown(f"pod{number}")
    assert os.listdir(state_dir) == []
    assert len(daemon.registry) == 0


async def test_a_long_state_directory_leaves_room_for_every_socket(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    parent = tmp_path_factory.mktemp("s")
    state_dir = parent / ("d" * (51 - len(str(parent)) - 1))
    state_dir.mkdir()
    registry = SandboxRegistry(FakeSandboxer(), str(state_dir), 1)
    for length in range(20, 50):
        await registry.create(pod("f" * length))
    assert any((state_dir / ("f" * length)).exists() for length in range(20, 50))
    for directory in state_dir.iterdir():
        for socket in (
            "tty99999999.sock",
            "machine/monitor.sock",
            "machine/vsock.backend",
            "machine/vsock_1025",
        ):
            assert len(f"{directory}/{socket}") <= 106


# -- what outlives a daemon ------------------------------------------------------------------------


class Names(NoStore):
    """A store of which only the names matter."""

    __slots__ = ("removed",)

    def __init__(self) -> None:
        super().__init__()
        self.removed: list[str] = []

    def remove(self, name: str) -> None:
        self.removed.append(name)


async def test_a_pod_keeps_its_group_of_descriptors_until_it_is_removed(state_dir: Path) -> None:
    registry = SandboxRegistry(FakeSandboxer(), str(state_dir), 5, Names())
    await registry.create(pod("first"))
    await registry.create(pod("second"))
    assert record(state_dir, "second")["descriptors"] == "p2"
    sandboxer, store = FakeSandboxer(), Names()
    registry = SandboxRegistry(sandboxer, str(state_dir), 5, store)
    await registry.recover()
    assert sandboxer.sandboxes["second"].group == "p2"
    await registry.shutdown("second")
    assert store.removed == ["p2"]


async def test_a_pod_of_a_version_without_a_store_gets_a_group(
    new_daemon: NewDaemon, state_dir: Path
) -> None:
    await started(new_daemon())
    envelope = json.loads(record_path(state_dir).read_text())
    del envelope["record"]["descriptors"]
    record_path(state_dir).write_text(json.dumps({**envelope, "version": 1}))
    after = new_daemon()
    await after.registry.recover()
    assert record(state_dir)["descriptors"] == after.sandboxer.sandboxes["pod"].group == "p1"
