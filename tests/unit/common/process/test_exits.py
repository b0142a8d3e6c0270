"""Every watched process ends in exactly one callback; no zombie stays."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from common.errors import AlreadyExists, NotFound
from common.process.exits import ExitStatus, ExitWatcher, Watch

ROOT = Path(__file__).parents[4]


@pytest.fixture
async def watcher() -> AsyncIterator[ExitWatcher]:
    watcher = ExitWatcher()
    yield watcher
    watcher.close()
    watcher.close()


def start(script: str) -> int:
    return os.posix_spawn("/bin/sh", ["sh", "-c", script], {"PATH": "/bin:/usr/bin"})


async def end_of(watcher: ExitWatcher, pid: int) -> ExitStatus:
    future: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
    watcher.watch(pid, future.set_result)
    return await asyncio.wait_for(future, 20)


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].startswith("Z")
    except FileNotFoundError:
        return False


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the kernel tells no event
            await asyncio.sleep(0.005)


DAEMON = """
import asyncio, os, subprocess, sys, time
sys.path.insert(0, sys.argv[1])
from common.linux import procs
from common.process.exits import ExitWatcher

async def end_of(watcher, pid):
    future = asyncio.get_running_loop().create_future()
    watcher.watch(pid, future.set_result)
    return await asyncio.wait_for(future, 20)

async def main(watcher):
{body}

async def run():
    watcher = ExitWatcher()
    await main(watcher)
    watcher.close()

procs.set_child_subreaper()
asyncio.run(run())
"""


def run_as_daemon(body: str) -> str:
    """Run the body of `async def main(watcher)` in a process that is a child subreaper; return its output."""
    script = DAEMON.replace("{body}", textwrap.indent(textwrap.dedent(body), "    "))
    argv = [sys.executable, "-I", "-c", script, str(ROOT)]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


CODES = [("exit 0", 0), ("exit 42", 42), ("kill -9 $$", 137), ("kill -15 $$", 143)]


@pytest.mark.parametrize(("script", "code"), CODES)
async def test_codes_follow_the_shell_convention(watcher: ExitWatcher, script: str, code: int) -> None:
    before_ns = time.time_ns()
    status = await end_of(watcher, start(script))
    assert status == ExitStatus(code, status.exited_at_ns, known=True)
    assert before_ns <= status.exited_at_ns <= time.time_ns()
    assert watcher.watch_count == 0


async def test_a_process_that_is_a_zombie_already_is_told(watcher: ExitWatcher) -> None:
    with watcher.adoption():
        pid = start("exit 5")
        await until(lambda: is_zombie(pid))
        await asyncio.sleep(0.1)
        status = await end_of(watcher, pid)
    assert status.code == 5


async def test_many_processes_at_once_each_get_their_own_code(watcher: ExitWatcher) -> None:
    codes = [random.randrange(256) for _ in range(100)]
    statuses = await asyncio.gather(*(end_of(watcher, start(f"exit {code}")) for code in codes))
    assert [status.code for status in statuses] == codes


async def test_a_signal_reaches_the_process_and_later_finds_nobody(watcher: ExitWatcher) -> None:
    future: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
    watch = watcher.watch(start("exec sleep 10"), future.set_result)
    watch.signal(signal.SIGTERM)
    assert (await future).code == 143
    with pytest.raises(NotFound, match=str(watch.pid)):
        watch.signal(signal.SIGTERM)


async def test_a_cancelled_watch_does_not_call_back_and_its_zombie_goes(watcher: ExitWatcher) -> None:
    called: list[ExitStatus] = []
    pid = start("sleep 0.02")
    watch = watcher.watch(pid, called.append)
    watch.cancel()
    watch.cancel()
    await asyncio.sleep(0.3)
    assert called == []
    assert not Path(f"/proc/{pid}").exists()


async def test_a_callback_may_cancel_another_watch_of_the_same_moment(watcher: ExitWatcher) -> None:
    called: list[int] = []
    watches: list[Watch] = []
    with watcher.adoption():
        pids = [start("exit 0") for _ in range(2)]
        await until(lambda: all(map(is_zombie, pids)))

        def ended(index: int) -> None:
            called.append(index)
            watches[1 - index].cancel()

        watches.extend(watcher.watch(pid, lambda _, i=i: ended(i)) for i, pid in enumerate(pids))  # type: ignore[misc]
        await asyncio.sleep(0.05)
    assert len(called) == 1
    await asyncio.sleep(0.2)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


async def test_an_unknown_zombie_is_reaped_but_not_while_an_adoption_is_open(watcher: ExitWatcher) -> None:
    with watcher.adoption():
        pid = start("exit 0")
        await asyncio.sleep(0.25)
        assert is_zombie(pid)
    await asyncio.sleep(0.25)
    assert not Path(f"/proc/{pid}").exists()


async def test_an_unknown_zombie_in_an_adoption_does_not_delay_watched_ones(watcher: ExitWatcher) -> None:
    with watcher.adoption():
        unknown = start("exit 0")
        await until(lambda: is_zombie(unknown))
        assert (await end_of(watcher, start("exit 9"))).code == 9
    await until(lambda: not is_zombie(unknown))


async def test_a_missing_process_and_a_second_watch_are_refused(watcher: ExitWatcher) -> None:
    pid = start("exec sleep 10")
    future: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
    watch = watcher.watch(pid, future.set_result)
    with pytest.raises(AlreadyExists, match=str(pid)):
        watcher.watch(pid, future.set_result)
    watch.signal(signal.SIGKILL)
    await future
    with pytest.raises(NotFound, match=str(pid)):
        watcher.watch(pid, future.set_result)


LAZY_PARENT = """
import os, time
child = os.fork()
if not child:
    time.sleep(0.1)
    os._exit(7)
print(child, flush=True)
time.sleep(0.5)
os.wait()
"""


async def test_a_process_of_another_parent_is_told_once_that_one_reaps_it(watcher: ExitWatcher) -> None:
    # The parent is busy for 0.4 s after its child has ended.
    read_fd, write_fd = os.pipe()
    argv = [sys.executable, "-I", "-c", LAZY_PARENT]
    parent = os.posix_spawn(sys.executable, argv, {}, file_actions=[(os.POSIX_SPAWN_DUP2, write_fd, 1)])
    os.close(write_fd)
    with open(read_fd) as output:
        pid = int(output.readline())
    cpu_s = time.process_time()
    status = await end_of(watcher, pid)
    assert time.process_time() - cpu_s < 0.1, "no spinning on the readable pidfd"
    if status.known:
        assert status.code == 7
    else:
        assert status.code == 255
    await until(lambda: not Path(f"/proc/{parent}").exists())


def test_orphans_are_collected_even_when_they_end_before_they_are_ours() -> None:
    output = run_as_daemon(
        """
        codes = []
        for number in range(30):
            with watcher.adoption():
                # The parent does not reap: the orphan has ended before it is reparented.
                script = "import os, sys, time; pid = os.fork(); pid or os._exit(int(sys.argv[1]));"
                script += "print(pid, flush=True); time.sleep(0.01)"
                argv = [sys.executable, "-I", "-S", "-c", script, str(number)]
                parent = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
                pid = int(parent.stdout.readline())
                ended = asyncio.ensure_future(end_of(watcher, pid))
                await asyncio.sleep(0)
                await end_of(watcher, parent.pid)
                parent.returncode = 0
                parent.stdout.close()
                status = await ended
            codes.append(status.code if status.known else -1)
        print(codes == list(range(30)), codes)
        """
    )
    assert output.startswith("True"), output


def test_double_forked_leftovers_are_swept() -> None:
    output = run_as_daemon(
        """
        for _ in range(10):
            shell = subprocess.Popen(["sh", "-c", "(sleep 0.02 &)"])
            await end_of(watcher, shell.pid)
            shell.returncode = 0
        await asyncio.sleep(0.5)
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            print("children:", file.read())
        """
    )
    assert output == "children: \n"


async def test_nothing_happens_while_nothing_ends(watcher: ExitWatcher) -> None:
    pids = [start("exec sleep 10") for _ in range(5)]
    done = [asyncio.ensure_future(end_of(watcher, pid)) for pid in pids]
    await asyncio.sleep(0.1)
    cpu_s = time.process_time()
    await asyncio.sleep(0.5)
    assert time.process_time() - cpu_s < 0.01
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert {status.code for status in await asyncio.gather(*done)} == {137}
