"""A daemon finds the namespaces of a pod that an earlier one has made, and takes no others for them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest

from common.linux.namespaces import namespace_id
from common.process.exits import ExitStatus, ExitWatcher
from common.process.spawn import CAPTURE, run
from common.records import read_record, write_record
from sandboxers.host.pod_namespaces import RECORD_FILE, NamespacesRecord, PodNamespaces
from sandboxers.pod_config import NamespaceMode, PodConfig

CHECKOUT = Path(__file__).resolve().parents[3]
MAPPING = [[0, 200000, 65536]]

# A daemon that makes a pod's namespaces, starts a process inside, tells its pid, and is killed.
EARLIER_DAEMON = """
import asyncio, json, os, signal, subprocess, sys

sys.path.insert(0, sys.argv[1])
from common.linux import procs
from common.process.exits import ExitWatcher
from sandboxers.pod_config import PodConfig
from sandboxers.host.pod_namespaces import PodNamespaces

async def main():
    namespaces = PodNamespaces(PodConfig(**json.loads(sys.argv[3])), ExitWatcher(), print)
    await namespaces.make({}, sys.argv[2])
    joinable = namespaces.joinable()
    options = [f"--{kind}={joinable[kind]}" for kind in ("ipc", "uts")]
    command = ["nsenter", *options, "sh", "-c", "echo $$; exec sleep 60"]
    member = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    print(member.stdout.readline().decode(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

procs.set_child_subreaper()
asyncio.run(main())
"""


@pytest.fixture(scope="module", autouse=True)
def _subreaper(subreaper: None) -> None:
    """What a daemon leaves becomes a child of this process."""


class Pod:
    """A pod whose daemon is dead: its record is in `directory`, `member` is the pid of what runs in it."""

    def __init__(self, watcher: ExitWatcher, directory: str) -> None:
        self.watcher = watcher
        self.directory = directory
        self.config = PodConfig("pod")
        self.member = 0
        self.init = 0
        self.deaths: list[ExitStatus] = []
        self._taken_up: list[PodNamespaces] = []

    async def be_left(self, **config: Any) -> None:
        """Have a daemon make it, and die."""
        fields = {"hostname": "pod-a", "pid": NamespaceMode.CONTAINER, **config}
        self.config = PodConfig("pod", **fields)
        argv = [sys.executable, "-c", EARLIER_DAEMON, str(CHECKOUT), self.directory]
        argv.append(json.dumps(dataclasses.asdict(self.config)))
        daemon = await run(argv, watcher=self.watcher, stdout=CAPTURE, timeout_s=20)
        assert daemon.status.code == 137
        self.member = int(daemon.stdout)
        self.init = self.record.init_pid

    def successor(self) -> PodNamespaces:
        """What a new daemon has of it before it recovers."""
        namespaces = PodNamespaces(self.config, self.watcher, self.deaths.append)
        self._taken_up.append(namespaces)
        return namespaces

    async def recover(self, pids: Iterable[int] = (), sysctls: dict[str, str] | None = None) -> PodNamespaces:
        namespaces = self.successor()
        await namespaces.recover(pids, sysctls or {}, self.directory, {}, None)
        return namespaces

    @property
    def record(self) -> NamespacesRecord:
        return read_record(f"{self.directory}/{RECORD_FILE}", NamespacesRecord)[0]

    def rewrite(self, **changes: Any) -> None:
        write_record(f"{self.directory}/{RECORD_FILE}", dataclasses.replace(self.record, **changes))

    async def remove(self) -> None:
        for namespaces in self._taken_up:
            await namespaces.release()
        for pid in (self.member, self.init):
            if pid and os.path.exists(f"/proc/{pid}"):
                os.kill(pid, signal.SIGKILL)
                await gone(pid)


@pytest.fixture
async def pod(watcher: ExitWatcher, tmp_path: Path) -> AsyncIterator[Pod]:
    pod = Pod(watcher, str(tmp_path))
    yield pod
    await pod.remove()


async def gone(pid: int) -> None:
    """Wait until there is no such process, not even a zombie."""
    async with asyncio.timeout(20):
        while os.path.exists(f"/proc/{pid}"):  # noqa: ASYNC110 - nothing tells the end of a stranger's child
            await asyncio.sleep(0.005)


def inodes(namespaces: PodNamespaces) -> dict[str, int]:
    """The namespaces that can be joined, as a record has them."""
    return {kind: namespace_id(path)[1] for kind, path in namespaces.joinable().items() if path is not None}


def hostname(namespaces: PodNamespaces) -> str:
    command = ["nsenter", f"--uts={namespaces.joinable()['uts']}", "hostname"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


async def test_namespaces_are_found_again_where_a_process_runs(pod: Pod) -> None:
    await pod.be_left()
    left = pod.record
    assert left.inodes == {kind: namespace_id(f"/proc/{pod.member}/ns/{kind}")[1] for kind in ("ipc", "uts")}
    namespaces = await pod.recover([pod.member])
    assert inodes(namespaces) == left.inodes
    assert hostname(namespaces) == "pod-a"
    assert pod.record == left


async def test_what_was_found_again_lives_without_the_process(pod: Pod) -> None:
    await pod.be_left()
    left = pod.record.inodes
    namespaces = await pod.recover([pod.member])
    os.kill(pod.member, signal.SIGKILL)
    await gone(pod.member)
    assert inodes(namespaces) == left
    assert hostname(namespaces) == "pod-a"


async def test_descriptors_found_again_are_not_inherited(pod: Pod) -> None:
    await pod.be_left()
    namespaces = await pod.recover([pod.member])
    paths = [path for path in namespaces.joinable().values() if path is not None]
    assert len(paths) == 2
    assert not any(os.get_inheritable(int(os.path.basename(path))) for path in paths)


async def test_foreign_namespaces_are_passed_over(pod: Pod) -> None:
    await pod.be_left()
    namespaces = await pod.recover([os.getpid(), pod.member])
    assert inodes(namespaces) == pod.record.inodes


async def test_foreign_namespaces_are_never_taken(pod: Pod) -> None:
    await pod.be_left()
    left = pod.record.inodes
    namespaces = await pod.recover([os.getpid()])
    # The member keeps the old ones, so their inodes cannot have been given away again.
    own = {namespace_id(f"/proc/self/ns/{kind}")[1] for kind in left}
    assert set(inodes(namespaces).values()).isdisjoint({*own, *left.values()})
    assert pod.record.inodes == inodes(namespaces)


@pytest.mark.parametrize("survivor", ["nobody", "one that has just ended"])
async def test_where_nothing_runs_namespaces_are_made_anew(pod: Pod, survivor: str) -> None:
    await pod.be_left()
    os.kill(pod.member, signal.SIGKILL)
    await gone(pod.member)
    pids = [] if survivor == "nobody" else [pod.member]
    namespaces = await pod.recover(pids, {"kernel.shmmax": "4242"})
    assert hostname(namespaces) == "pod-a"
    command = ["nsenter", f"--ipc={namespaces.joinable()['ipc']}", "cat", "/proc/sys/kernel/shmmax"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "4242\n"
    assert pod.record.inodes == inodes(namespaces)


async def test_without_a_record_namespaces_are_made_anew(pod: Pod) -> None:
    await pod.be_left()
    left = pod.record.inodes
    os.unlink(f"{pod.directory}/{RECORD_FILE}")
    namespaces = await pod.recover([pod.member])
    assert set(inodes(namespaces).values()).isdisjoint(left.values())
    assert hostname(namespaces) == "pod-a"


async def test_the_init_of_a_shared_pid_namespace_is_found_again_with_all_it_holds(pod: Pod) -> None:
    await pod.be_left(pid=NamespaceMode.POD, uid_mappings=MAPPING, gid_mappings=MAPPING)
    left = pod.record
    namespaces = await pod.recover([pod.member])
    assert namespaces.init_pid == pod.init
    assert left.inodes.keys() == {"user", "ipc", "uts", "pid"}
    assert inodes(namespaces) == left.inodes
    await namespaces.release()
    await gone(pod.init)
    assert namespaces.init_pid == 0
    assert pod.deaths == []


async def test_the_death_of_an_init_that_was_found_again_is_told(pod: Pod) -> None:
    await pod.be_left(pid=NamespaceMode.POD)
    namespaces = await pod.recover()
    os.kill(namespaces.init_pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while not pod.deaths:  # noqa: ASYNC110 - any condition, not only what sets an event
            await asyncio.sleep(0.005)
    assert [status.code for status in pod.deaths] == [137]
    assert namespaces.init_pid == 0


async def test_an_init_that_died_unseen_is_told(pod: Pod) -> None:
    await pod.be_left(pid=NamespaceMode.POD)
    os.kill(pod.init, signal.SIGKILL)
    await gone(pod.init)
    namespaces = await pod.recover([pod.member])
    (status,) = pod.deaths
    assert (status.code, status.known) == (255, False)
    assert namespaces.init_pid == 0


async def test_a_process_that_has_the_pid_of_an_init_is_not_taken_for_it(pod: Pod) -> None:
    await pod.be_left(pid=NamespaceMode.POD)
    # Both may have started in the same clock tick.
    pod.rewrite(init_pid=pod.member, init_start_time=pod.record.init_start_time - 1)
    namespaces = await pod.recover()
    assert len(pod.deaths) == 1
    await namespaces.release()
    namespaces.find_init(pod.directory)
    await namespaces.release()
    assert os.path.exists(f"/proc/{pod.member}")


async def test_the_init_of_a_start_that_was_killed_is_found_and_ended(pod: Pod) -> None:
    await pod.be_left(pid=NamespaceMode.POD)
    namespaces = pod.successor()
    namespaces.find_init(pod.directory)
    assert namespaces.init_pid == pod.init
    await namespaces.release()
    await gone(pod.init)


@pytest.mark.parametrize("mode", [NamespaceMode.CONTAINER, NamespaceMode.POD])
async def test_namespaces_that_cannot_be_recorded_are_not_kept(
    watcher: ExitWatcher, tmp_path: Path, mode: NamespaceMode
) -> None:
    namespaces = PodNamespaces(PodConfig("pod", pid=mode), watcher, lambda _: None)
    with pytest.raises(FileNotFoundError):
        await namespaces.make({}, str(tmp_path / "none"))
    assert inodes(namespaces) == {}
    assert namespaces.init_pid == 0
