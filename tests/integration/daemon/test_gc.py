"""sandboxctl gc with real containers: what belongs to nobody goes, and what only looks like it stays."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest_asyncio

from proto.gen.runtime.v1 import api_pb2 as cri
from sandboxers.embedded import BUNDLES, EMBEDDED_DIR, RECORD_FILE
from tests.contract.fake_engine import FakeEngine
from tests.integration.daemon.lab import CGROUP_PARENT, Lab, until
from tests.integration.daemon.test_restart import Node

SETTINGS = "gc:\n  interval_s: 0.0\n  grace_s: 0.0\n"

# A process in a cgroup of every hierarchy: its name begins like a container's of ours.
NEIGHBOUR = f"""
for top in /sys/fs/cgroup /sys/fs/cgroup/*; do
    parent=$top{CGROUP_PARENT}
    [ -d $parent ] || continue
    mkdir $parent/$1
    for knob in cpuset.cpus cpuset.mems; do
        [ -e $parent/cgroup.controllers ] || [ ! -e $parent/$knob ] || cat $parent/$knob >$parent/$1/$knob
    done
    echo $$ >$parent/$1/cgroup.procs
done
exec sleep 5000
"""


class Table:
    """What one run has printed: (kind, last part of what, action) per row."""

    def __init__(self, run: subprocess.CompletedProcess[str]) -> None:
        self.status = run.returncode
        self.stdout, self.stderr = run.stdout, run.stderr
        self.rows = set()
        lines = [line for line in run.stdout.splitlines() if line and not line.startswith("sandboxd itself")]
        if lines and lines[0].startswith("KIND"):
            action = lines[0].index("ACTION")
            for line in lines[1:]:
                kind, what = line.split()[:2]
                self.rows.add((kind, what.rsplit("/", 1)[-1], line[action:]))


class CollectedNode(Node):
    """A daemon of the test's own whose engine knows what the test says."""

    engine: FakeEngine

    async def prepare(self) -> None:
        address = f"{self.daemon.base}/engine.sock"
        text = self.daemon.config.read_text().replace("engine:\n", f"engine:\n  address: {address}\n")
        self.daemon.config.write_text(text + SETTINGS)
        self.engine = await FakeEngine(str(self.lab.path(address))).start()
        await self.daemon.start()

    async def collect(self, *arguments: str) -> Table:
        config = f"{self.daemon.base}/config.yaml"
        command = [sys.executable, "-m", "sandboxctl", "--config", config, "gc", *arguments]
        run = await asyncio.to_thread(
            self.lab.namespaces.run, command, check=False, env=self.daemon.environment
        )
        print(run.stdout, run.stderr)
        return Table(run)


@pytest_asyncio.fixture(loop_scope="session")
async def node(lab: Lab, _nothing_is_left_or_disturbed: None) -> AsyncIterator[CollectedNode]:
    node = CollectedNode(lab)
    await node.prepare()
    yield node
    await node.engine.stop()
    await node.close()


@contextmanager
def neighbours(node: CollectedNode, container_id: str) -> Iterator[int]:
    """A process, a cgroup and a mount that are called almost like ours, and the pid of the process."""
    lab, name = node.lab, f"{container_id}0"
    mount = f"{node.daemon.state_dir}0/.removing-x/data"
    lab.path(mount).mkdir(parents=True)
    lab.run("mount", "-t", "tmpfs", "tmpfs", mount)
    lab.path(f"{mount}/precious").touch()
    before = set(lab.processes())
    with (lab.directory / "neighbour.log").open("ab") as log:
        process = lab.namespaces.spawn(["sh", "-c", NEIGHBOUR, "sh", name], log)
    try:
        pid = 0
        while not pid:
            new = {pid for pid, comm in lab.processes().items() if comm == "sleep"} - before
            pid = next(iter(new), 0)
        yield pid
        assert lab.processes().get(pid) == "sleep"
        assert lab.path(f"{mount}/precious").exists()
        assert any(line.endswith(f"/{name}") for line in lab.inventory().cgroups)
    finally:
        process.stop(signal.SIGKILL)
        lab.run("umount", mount)
        shutil.rmtree(lab.path(f"{node.daemon.state_dir}0"))
        lab.run("sh", "-c", f"rmdir $(find /sys/fs/cgroup -name {name})")


async def test_without_a_daemon_what_nobody_owns_is_removed_and_nothing_else(
    node: CollectedNode, lab: Lab
) -> None:
    kept, forgotten, shared = await node.pod(), await node.pod(), await node.pod(pid=cri.POD)
    known, stray = await kept.running(), await kept.running()
    lost = [await forgotten.running(), await shared.running()]
    node.daemon.stop(signal.SIGKILL)
    state = node.daemon.state_dir
    # Somebody has deleted a record; and a daemon has died while it removed the files of a pod.
    shutil.rmtree(kept.file(f"tasks/{stray.id}"))
    lab.path(f"{state}/.removing-pod/shm").mkdir(parents=True)
    lab.run("mount", "-t", "tmpfs", "tmpfs", f"{state}/.removing-pod/shm")
    node.engine.sandboxes, node.engine.tasks = {kept.id}, {known.id}
    expected = {
        ("pod", forgotten.id),
        ("pod", shared.id),
        ("container", stray.id),
        ("mount", "shm"),
        ("files", ".removing-pod"),
    }
    with neighbours(node, lost[0].id) as neighbour:
        dry = await node.collect("--dry-run")
        assert (dry.status, dry.rows) == (1, {(*row, "remove") for row in expected})
        alive = {neighbour, known.pid, stray.pid, *(container.pid for container in lost)}
        assert alive <= lab.processes().keys()

        wet = await node.collect()
        assert (wet.status, wet.rows) == (0, {(*row, "removed") for row in expected})
        gone = {stray.pid, shared.pid, *(container.pid for container in lost)}
        await until(lambda: not gone & lab.processes().keys(), 20, "their end")
        assert known.pid in lab.processes()
        cgroups = {path.rsplit("/", 1)[-1] for path in lab.inventory().cgroups}
        assert known.id in cgroups
        assert not cgroups & {stray.id, *(container.id for container in lost)}
        names = [path.name for path in lab.path(state).iterdir() if not path.name.startswith(".")]
        assert names == [kept.id]
        assert not lab.is_mounted(f"{state}/.removing-pod/shm")
        again = await node.collect()
        assert (again.status, again.rows) == (0, set())
        assert "nothing is left over" in again.stdout
    await node.start()
    await kept.connect()
    assert await known.state() == "running"


async def test_a_running_daemon_is_asked_and_its_own_is_left_alone(node: CollectedNode, lab: Lab) -> None:
    kept, forgotten = await node.pod(), await node.pod()
    known, lost = await kept.running(), await forgotten.running()
    lab.path(f"{node.daemon.state_dir}/.removing-x").mkdir()
    node.engine.sandboxes, node.engine.tasks = {kept.id}, {known.id}
    dry = await node.collect("--dry-run")
    assert dry.status == 1
    assert dry.rows == {("pod", forgotten.id, "ask sandboxd to remove"), ("files", ".removing-x", "keep")}
    wet = await node.collect()
    assert wet.rows == {("pod", forgotten.id, "removed"), ("files", ".removing-x", "keep")}
    assert lost.pid not in lab.processes()
    assert await known.state() == "running"
    assert (await node.controller("Status", kept.id)).state == "SANDBOX_READY"
    lab.path(f"{node.daemon.state_dir}/.removing-x").rmdir()


async def test_while_the_engine_is_away_nothing_of_this_boot_is_touched(
    node: CollectedNode, lab: Lab
) -> None:
    pod = await node.pod()
    container = await pod.running()
    await node.engine.stop()
    node.daemon.stop(signal.SIGKILL)
    for _ in range(2):
        table = await node.collect()
        assert (table.status, table.rows) == (0, set())
        assert "what it may have forgotten stays" in table.stderr
    assert container.pid in lab.processes()
    await node.start()
    await pod.connect()
    assert await container.state() == "running"


async def test_a_pod_that_cannot_be_understood_is_shown_and_kept(node: CollectedNode, lab: Lab) -> None:
    pod = await node.pod()
    container = await pod.running()
    node.daemon.stop(signal.SIGKILL)
    record = pod.file("sandbox.json")
    good = record.read_bytes()
    record.write_bytes(good[:40])
    table = await node.collect()
    assert (table.status, table.rows) == (1, {("pod", pod.id, "keep")})
    assert container.pid in lab.processes()
    record.write_bytes(good)
    await node.start()
    await pod.connect()
    assert await container.state() == "running"


async def test_the_daemon_itself_removes_what_the_engine_has_forgotten(node: CollectedNode, lab: Lab) -> None:
    config = node.daemon.config
    config.write_text(config.read_text().replace("interval_s: 0.0", "interval_s: 0.1"))
    kept, forgotten, embedded = await node.pod(), await node.pod(), await node.pod()
    known, abandoned, lost = await kept.running(), await kept.running(), await forgotten.running()
    node.engine.sandboxes, node.engine.tasks = {kept.id}, {known.id}
    # Another engine's, which its record shows (`sandboxctl run`).
    others = await embedded.running()
    records = lab.path(EMBEDDED_DIR)
    (records / embedded.id / BUNDLES / others.id).mkdir(parents=True)
    (records / embedded.id / RECORD_FILE).touch()
    # As an engine does that has lost the connection for good.
    node.daemon.stop(signal.SIGKILL)
    shutil.rmtree(lab.path(abandoned.directory))
    await node.start()
    gone = {lost.pid, abandoned.pid}
    await until(lambda: not gone & lab.processes().keys(), 20, "the collection")
    await until(lambda: not lab.path(forgotten.directory).exists(), 20, "the removal of its files")
    await kept.connect()
    assert await known.state() == "running"
    # Whoever has made it: an engine may lose what this very daemon runs.
    later = await kept.running()
    shutil.rmtree(lab.path(later.directory))
    await until(lambda: later.pid not in lab.processes(), 20, "the collection")
    assert await known.state() == "running"
    assert others.pid in lab.processes()
    shutil.rmtree(records)
