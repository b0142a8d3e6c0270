"""Programs that are on record before they run."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.errors import NotFound
from common.linux.pidfd import is_same_process, start_time
from common.process.exits import ExitStatus, ExitWatcher
from common.process.held import Confinement, Held, hold
from common.process.spawn import Child, spawn

WITH_ALL = Confinement(capabilities=True)


@pytest.fixture
async def exits() -> AsyncIterator[ExitWatcher]:
    exits = ExitWatcher()
    yield exits
    exits.close()


def held(exits: ExitWatcher, script: str, log: Path, confinement: Confinement = WITH_ALL) -> Held:
    with log.open("ab") as file:
        return hold(["/bin/sh", "-c", script], watcher=exits, confinement=confinement, stderr=file.fileno())


async def ended(child: Child) -> ExitStatus:
    async with asyncio.timeout(20):
        return await child.wait()


async def test_it_does_nothing_before_it_is_released(exits: ExitWatcher, tmp_path: Path) -> None:
    process = held(exits, f"echo $$ >{tmp_path}/done", tmp_path / "log")
    await asyncio.sleep(0.1)
    assert not (tmp_path / "done").exists()
    assert is_same_process(process.child.pid, process.start_time)
    process.release()
    assert (await ended(process.child)).code == 0
    assert int((tmp_path / "done").read_text()) == process.child.pid, "the same process"


async def test_given_up_it_ends_without_running(exits: ExitWatcher, tmp_path: Path) -> None:
    process = held(exits, f"touch {tmp_path}/done", tmp_path / "log")
    process.close()
    process.close()
    assert (await ended(process.child)).code == 1
    assert not (tmp_path / "done").exists()


def test_it_ends_with_the_daemon_that_has_not_released_it(tmp_path: Path) -> None:
    script = f"""
import asyncio, os, signal
from common.process.exits import ExitWatcher
from common.process.held import Confinement, hold
async def main():
    held = hold(["touch", "{tmp_path}/done"], watcher=ExitWatcher(), confinement=Confinement(capabilities=True))
    print(held.child.pid, held.start_time, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, check=False, cwd=Path(__file__).parents[4]
    )
    pid, started = map(int, done.stdout.split())
    for _ in range(2000):
        if not is_same_process(pid, started):
            break
        time.sleep(0.01)
    assert not is_same_process(pid, started)
    assert not (tmp_path / "done").exists()


async def test_what_it_says_goes_to_the_log_and_its_input_is_empty(
    exits: ExitWatcher, tmp_path: Path
) -> None:
    process = held(exits, "cat; echo out; echo err >&2; ls /proc/self/fd | wc -l", tmp_path / "log")
    process.release()
    await ended(process.child)
    # ls has its directory open besides.
    assert (tmp_path / "log").read_text().split() == ["out", "err", "4"]


async def test_a_program_that_does_not_exist_is_named(exits: ExitWatcher, tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as file:
        process = hold(["/nonesuch"], watcher=exits, confinement=WITH_ALL, stderr=file.fileno())
    process.release()
    assert (await ended(process.child)).code == 127
    assert "/nonesuch" in (tmp_path / "log").read_text()


async def test_a_cgroup_that_is_gone_keeps_it_from_running(exits: ExitWatcher, tmp_path: Path) -> None:
    confinement = Confinement(cgroups=(str(tmp_path / "nonesuch"),), capabilities=True)
    process = held(exits, f"touch {tmp_path}/done", tmp_path / "log", confinement)
    process.release()
    assert (await ended(process.child)).code != 0
    assert not (tmp_path / "done").exists()
    assert "nonesuch/cgroup.procs" in (tmp_path / "log").read_text()


async def test_it_joins_its_cgroups_first(exits: ExitWatcher, tmp_path: Path) -> None:
    groups = [tmp_path / "a b", tmp_path / "c"]
    for group in groups:
        group.mkdir()
    confinement = Confinement(cgroups=tuple(map(str, groups)), capabilities=True)
    process = held(exits, "true", tmp_path / "log", confinement)
    process.release()
    assert (await ended(process.child)).code == 0
    assert [(group / "cgroup.procs").read_text() for group in groups] == ["0\n", "0\n"]


def test_the_command_line_enters_and_gives_up_in_this_order() -> None:
    words = Confinement("/run/netns/x", ("/cg",)).command(["qemu", "-x"])
    assert words[3:] == [
        "sh", "/cg", "--",
        "nsenter", "--net=/run/netns/x", "--",
        "setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--",
        "qemu", "-x",
    ]  # fmt: skip


async def test_an_earlier_program_is_adopted_by_pid_andstart_time(exits: ExitWatcher) -> None:
    earlier = spawn(["sleep", "60"], watcher=exits)
    pid = earlier.pid
    earlier.forget()
    started = start_time(pid)
    with pytest.raises(NotFound):
        Child.adopt(exits, pid, started + 1, "sleep")
    adopted = Child.adopt(exits, pid, started, "sleep")
    ends: list[ExitStatus] = []
    adopted.on_exit = ends.append
    await adopted.kill()
    assert [end.code for end in ends] == [137]
    with pytest.raises(NotFound):
        Child.adopt(exits, pid, started, "sleep")


async def test_a_program_that_is_forgotten_runs_on(exits: ExitWatcher) -> None:
    child = spawn(["sleep", "60"], watcher=exits)
    child.forget()
    assert child.pidfd == -1
    assert os.path.exists(f"/proc/{child.pid}")
    again = Child.adopt(exits, child.pid, start_time(child.pid), "sleep")
    await again.kill()
