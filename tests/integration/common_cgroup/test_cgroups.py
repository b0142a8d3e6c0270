"""Real cgroups of this machine: what is in them, what they use, how they run out of memory and end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.cgroup import (
    Cgroup,
    Hierarchies,
    OomWatcher,
    kill_all,
    oom_kill_count,
    pids,
    read_metrics,
    remove_leaf,
    signal_all,
)
from common.cgroup.locate import UNIFIED, Hierarchy
from common.errors import DeadlineExceeded, FailedPrecondition, NotFound
from common.oci.spec import PodView
from common.process.exits import ExitWatcher
from common.task.backend import TaskParts
from common.task.container import Container
from common.task.host_preparer import HostPreparer
from common.task.pod import TaskPod
from common.task.stdio import NO_STDIO
from sandboxers.host.shared_memory import HostSharedMemory
from tests.contract.fake_backend import FakeBackend, RecordingSink
from tests.unit.common.task.conftest import until

HOST = Hierarchies.read()


def v2_view() -> Hierarchies:
    """Return this machine's v2 hierarchy alone, which on a hybrid host has no controllers but kills."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup2 " in line:
            return Hierarchies({UNIFIED: Hierarchy(line.split(" ")[4], "/")})
    pytest.skip("no cgroup2 is mounted")


@pytest.fixture(params=["host", "v2"])
def cgroup(request: pytest.FixtureRequest) -> Iterator[Cgroup]:
    hierarchies = HOST if request.param == "host" else v2_view()
    yield from _made(hierarchies)


@pytest.fixture
def host_cgroup() -> Iterator[Cgroup]:
    yield from _made(HOST)


def _made(hierarchies: Hierarchies) -> Iterator[Cgroup]:
    path = f"/sandboxd-test-{uuid.uuid4().hex[:8]}"
    made = Cgroup(hierarchies, path)
    names = [UNIFIED] if hierarchies.unified else sorted(hierarchies.controllers - {UNIFIED, "cpuset"})
    directories = {directory for name in names if (directory := made.directory(name))}
    for directory in directories:
        os.makedirs(directory, exist_ok=True)
    yield made
    while signal_all(made, signal.SIGKILL):  # only where a test failed
        time.sleep(0.01)
    for directory in directories:
        for inner, _, _ in os.walk(directory, topdown=False):
            os.rmdir(inner)


def start(cgroup: Cgroup, *argv: str) -> subprocess.Popen[bytes]:
    """Start a program inside the cgroup."""
    joins = " ".join(f"echo 0 > {directory}/cgroup.procs;" for directory in cgroup.directories())
    return subprocess.Popen(["/bin/sh", "-c", f'{joins} exec "$@"', "sh", *argv])


def wait_for(cgroup: Cgroup, count: int) -> list[int]:
    deadline = time.monotonic() + 20
    while len(found := pids(cgroup)) < count:
        assert time.monotonic() < deadline, f"only {found} came to {cgroup}"
        time.sleep(0.01)
    return found


async def test_a_process_is_found_in_its_cgroup_and_killed_with_it(cgroup: Cgroup) -> None:
    process = start(cgroup, "sleep", "60")
    assert wait_for(cgroup, 1) == [process.pid]
    await kill_all(cgroup, timeout_s=20)
    assert pids(cgroup) == []
    assert process.wait() == -9


async def test_processes_of_nested_cgroups_are_found_and_killed(cgroup: Cgroup) -> None:
    inner = Cgroup(cgroup._hierarchies, f"{cgroup.path}/a/b")
    for directory in cgroup.directories():
        os.makedirs(f"{directory}/a/b")
    processes = [start(cgroup, "sleep", "60"), start(inner, "sleep", "60")]
    assert wait_for(cgroup, 2) == sorted(process.pid for process in processes)
    await kill_all(cgroup, timeout_s=20)
    assert [process.wait() for process in processes] == [-9, -9]
    remove_leaf(cgroup)
    assert cgroup.directories() == []


async def test_processes_that_keep_starting_others_are_all_killed(cgroup: Cgroup) -> None:
    script = "while :; do sleep 60 & done"
    process = start(cgroup, "sh", "-c", f"ulimit -u 200; for i in 1 2 3; do ({script}) & done; {script}")
    if limit := cgroup.directory("pids"):
        Path(limit, "pids.max").write_text("100") if os.path.exists(f"{limit}/pids.max") else None
    wait_for(cgroup, 20)
    await kill_all(cgroup, timeout_s=20)
    assert pids(cgroup) == []
    process.wait()


async def test_a_signal_reaches_every_process_once(cgroup: Cgroup, tmp_path: Path) -> None:
    script = f"trap 'exit 7' TERM; : >{tmp_path}/$$; while :; do sleep 0.01; done"
    processes = [start(cgroup, "sh", "-c", script) for _ in range(2)]
    async with asyncio.timeout(20):
        while len(os.listdir(tmp_path)) < 2:  # noqa: ASYNC110 - until the traps are set
            await asyncio.sleep(0.01)
    assert signal_all(cgroup, signal.SIGTERM) >= {process.pid for process in processes}
    assert [process.wait() for process in processes] == [7, 7]


async def test_a_frozen_cgroup_is_killed(host_cgroup: Cgroup) -> None:
    process = start(host_cgroup, "sleep", "60")
    wait_for(host_cgroup, 1)
    if host_cgroup.unified:
        Path(host_cgroup.directory("") or "", "cgroup.freeze").write_text("1")
    else:
        Path(host_cgroup.directory("freezer") or "", "freezer.state").write_text("FROZEN")
    await kill_all(host_cgroup, timeout_s=20)
    assert process.wait() == -9


async def test_the_daemon_does_not_kill_itself() -> None:
    own = HOST.locate(os.getpid())
    if not own.directories():
        pytest.skip("the tests run in the root cgroup")
    with pytest.raises(FailedPrecondition, match="daemon itself"):
        await kill_all(own, timeout_s=1)


COUNT_SIGNALS = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN})
print("ready", flush=True)
signal.sigwait({signal.SIGRTMIN})
again = signal.sigtimedwait({signal.SIGRTMIN}, 0.3)
sys.exit(0 if again is None else 1)
"""


async def test_a_signal_to_all_reaches_the_first_process_once(host_cgroup: Cgroup, tmp_path: Path) -> None:
    parts = TaskParts(FakeBackend(), ExitWatcher(), RecordingSink(), OomWatcher(), HOST)
    preparer = HostPreparer(lambda: PodView({}, {}, ""), HostSharedMemory(), str(tmp_path), HOST, True)
    pod = TaskPod("pod", parts, preparer, str(tmp_path))
    container = Container("c", str(tmp_path), NO_STDIO)
    container.cgroup = host_cgroup
    output = tmp_path / "output"
    process = start(
        host_cgroup, "/bin/sh", "-c", f'exec "$@" > {output}', "sh", sys.executable, "-c", COUNT_SIGNALS
    )
    await until(lambda: output.exists() and output.read_text() == "ready\n")
    container.init.pid = process.pid
    container.init.watch = parts.exits.watch(process.pid, container.init.finish)
    await pod.signal(container, container.init, signal.SIGRTMIN, everything=True)
    assert (await container.init.end.wait()).code == 0
    process.returncode = 0
    parts.ooms.close()
    parts.primer.close()
    parts.exits.close()


SIGNAL_OWN_CGROUP = """
import os, signal, sys
from common.cgroup import Cgroup, signal_all
from tests.integration.common_cgroup import test_cgroups as tests

hierarchies = tests.HOST if sys.argv[1] == "host" else tests.v2_view()
for signum in (signal.SIGTERM, signal.SIGKILL):
    assert signal_all(Cgroup(hierarchies, sys.argv[2]), signum) == set()
"""


async def test_a_cgroup_with_the_daemon_in_it_gets_no_signal(cgroup: Cgroup) -> None:
    neighbour = start(cgroup, "sleep", "60")
    wait_for(cgroup, 1)
    view = "host" if cgroup._hierarchies is HOST else "v2"
    assert start(cgroup, sys.executable, "-c", SIGNAL_OWN_CGROUP, view, cgroup.path).wait() == 0
    assert neighbour.poll() is None
    await kill_all(cgroup, timeout_s=20)
    neighbour.wait()


async def test_killing_what_is_gone_or_the_root_does_nothing(cgroup: Cgroup) -> None:
    await kill_all(Cgroup(cgroup._hierarchies, "/"), timeout_s=1)
    await kill_all(Cgroup(cgroup._hierarchies, f"{cgroup.path}/absent"), timeout_s=1)
    assert pids(Cgroup(cgroup._hierarchies, "/")) == []


async def test_what_does_not_die_in_time_is_named(cgroup: Cgroup) -> None:
    process = start(cgroup, "sleep", "60")
    wait_for(cgroup, 1)
    with pytest.raises(DeadlineExceeded, match=str(process.pid)):
        await kill_all(cgroup, timeout_s=0)
    process.wait()


async def test_a_cgroup_in_use_is_not_removed(cgroup: Cgroup) -> None:
    process = start(cgroup, "sleep", "60")
    wait_for(cgroup, 1)
    with pytest.raises(FailedPrecondition, match="in use"):
        remove_leaf(cgroup)
    await kill_all(cgroup, timeout_s=20)
    process.wait()
    for directory in cgroup.directories():
        os.makedirs(directory, exist_ok=True)


async def test_the_use_of_a_process_is_measured(host_cgroup: Cgroup) -> None:
    before = read_metrics(host_cgroup)
    process = start(
        host_cgroup, sys.executable, "-c", "x = bytearray(20 << 20); sum(range(2000000)); input()"
    )
    process.wait()
    after = read_metrics(host_cgroup)
    assert type(before) is type(after)
    assert after.ByteSize() > 100
    if host_cgroup.unified:
        assert after.cpu.usage_usec > before.cpu.usage_usec + 10_000  # type: ignore[union-attr]
    else:
        assert after.cpu.usage.total > before.cpu.usage.total + 10_000_000  # type: ignore[union-attr]
        assert after.memory.usage.max > 20 << 20  # type: ignore[union-attr]


async def test_a_removed_cgroup_has_no_metrics(host_cgroup: Cgroup) -> None:
    with pytest.raises(NotFound):
        read_metrics(Cgroup(HOST, f"{host_cgroup.path}/absent"))


def limit_memory(cgroup: Cgroup, limit_bytes: int) -> None:
    directory = cgroup.directory("memory")
    name = "memory.max" if cgroup.unified else "memory.limit_in_bytes"
    if directory is None or not os.path.exists(f"{directory}/{name}"):
        pytest.skip("no memory controller")
    Path(directory, name).write_text(str(limit_bytes))
    swap = Path(directory, "memory.swap.max" if cgroup.unified else "memory.memsw.limit_in_bytes")
    if swap.exists():
        swap.write_text("0" if cgroup.unified else str(limit_bytes))


HUNGRY = "x = bytearray(256 << 20)"


async def test_a_kill_for_want_of_memory_is_told(host_cgroup: Cgroup) -> None:
    limit_memory(host_cgroup, 24 << 20)
    watcher = OomWatcher()
    told = asyncio.get_running_loop().create_future()
    watch = watcher.watch(host_cgroup, told.set_result)
    process = start(host_cgroup, sys.executable, "-c", HUNGRY)
    try:
        assert await asyncio.wait_for(told, 20) == 1
    finally:
        process.kill()
        process.wait()
    assert oom_kill_count(host_cgroup) == 1
    assert not watch.check()
    watcher.close()


async def test_the_counter_tells_at_the_exit_before_any_notification(host_cgroup: Cgroup) -> None:
    limit_memory(host_cgroup, 24 << 20)
    watcher, told = OomWatcher(), list[int]()
    watch = watcher.watch(host_cgroup, told.append)
    process = start(host_cgroup, sys.executable, "-c", HUNGRY)
    process.wait()  # blocks the loop: no notification can have been read
    assert watch.check()
    await asyncio.sleep(0.05)
    assert told == [1]
    watcher.close()


async def test_a_neighbour_s_shortage_is_not_told_to_a_cgroup_that_lost_nobody(host_cgroup: Cgroup) -> None:
    """On v1 the shortage of a pod wakes the watchers of all its containers."""
    limit_memory(host_cgroup, 24 << 20)
    directory = host_cgroup.directory("memory")
    if host_cgroup.unified:
        Path(directory or "", "cgroup.subtree_control").write_text("+memory")
    names = ("hungry", "calm")
    hungry, calm = (Cgroup(HOST, f"{host_cgroup.path}/{name}") for name in names)
    for parent in host_cgroup.directories():
        for name in names:
            os.makedirs(f"{parent}/{name}")
    watcher, told = OomWatcher(), list[str]()
    watcher.watch(hungry, lambda _: told.append("hungry"))
    watcher.watch(calm, lambda _: told.append("calm"))
    process = start(hungry, sys.executable, "-c", HUNGRY)
    process.wait()
    await asyncio.sleep(1.3)
    assert told == ["hungry"]
    watcher.close()


async def test_removed_cgroups_leave_no_watch_behind(host_cgroup: Cgroup) -> None:
    limit_memory(host_cgroup, 24 << 20)
    if host_cgroup.unified:
        Path(host_cgroup.directory("memory") or "", "cgroup.subtree_control").write_text("+memory")
    watcher = OomWatcher()
    inner = Cgroup(HOST, f"{host_cgroup.path}/inner")
    os.mkdir(inner.directory("memory") or "")
    if not os.path.exists(f"{inner.directory('memory')}/memory.stat"):
        pytest.skip("the memory controller is not delegated here")
    watch = watcher.watch(inner, lambda _: None)
    assert watcher.watch_count == 1
    remove_leaf(inner)
    if host_cgroup.unified:
        # Unlike v1 the kernel says nothing of it (kernfs knows no IN_IGNORED); who removes it lets go.
        watch.cancel()
    async with asyncio.timeout(20):
        while watcher.watch_count:  # noqa: ASYNC110 - what the watcher does with the kernel's word
            await asyncio.sleep(0.01)
    watcher.close()
