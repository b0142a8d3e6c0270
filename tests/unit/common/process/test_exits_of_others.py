"""Exit codes of processes that are not our children: below a supervisor, on newer kernels and on older ones."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest

from common.linux.pidfd import start_time
from common.process import exits
from common.process.exit_log import DAEMON, ExitLog
from common.process.exits import ExitStatus, ExitWatcher
from tests.unit.common.process.supervised import ROOT, Supervised

KERNEL = tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
WITHOUT = ["", "pidfd-info", "pidfd-info pidfd-hup"]

# The first daemon starts containers and dies; the second finds out how they end, some before and some after it came.
DAEMON_BODY = """
import asyncio, json
from common.linux.pidfd import start_time
from common.linux.procs import set_child_subreaper
from common.process.exit_log import ExitLog
from common.process.exits import ExitWatcher

RECORD = sys.argv[0] + ".record"

def first_life():
    set_child_subreaper()
    tell("READY=1")
    records = []
    for code in range(20):
        reader, writer = os.pipe()
        # Every second one ends while nobody is there, the others when they are told to.
        command = f"exit {{code}}" if code % 2 else f"trap 'exit {{code}}' TERM; echo; while :; do sleep 0.05; done"
        waits = f"while [ -e /proc/{{os.getpid()}} ]; do sleep 0.01; done; " if code % 2 else ""
        pid = os.posix_spawn(
            "/bin/sh", ["sh", "-c", waits + command], {{"PATH": "/bin:/usr/bin"}},
            file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)],
        )
        if not code % 2:
            os.read(reader, 1)
        records.append((pid, start_time(pid)))
        pidfd = os.pidfd_open(pid)
        tell(f"FDSTORE=1\\nFDPOLL=0\\nFDNAME=t{{code}}", pidfd)
    with open(RECORD, "w") as file:
        json.dump(records, file)
    die()

async def second_life():
    log = ExitLog(handed()["exits"][0])
    watcher = ExitWatcher(log)
    ends = [asyncio.get_running_loop().create_future() for _ in range(20)]
    time.sleep(PAUSE_S)
    began_ns = time.time_ns()
    with open(RECORD) as file:
        records = json.load(file)
    for code, (pid, started) in enumerate(records):
        pidfd = os.dup(handed()[f"t{{code}}"][0])
        try:
            same = start_time(pid) == started
        except ProcessLookupError:
            same = False
        if same:
            watch = watcher.watch(pid, ends[code].set_result, pidfd, started)
            if not code % 2:
                watch.signal(signal.SIGTERM)
        else:
            ends[code].set_result(watcher.ended(pid, started, pidfd))
            os.close(pidfd)
    statuses = await asyncio.wait_for(asyncio.gather(*ends), 20)
    say([status.code for status in statuses] == list(range(20)), [status.code for status in statuses])
    say(all(status.known for status in statuses))
    early = [status.exited_at_ns for code, status in enumerate(statuses) if code % 2]
    # Since they had to end, and not when somebody came to see.
    say(all(os.stat(RECORD).st_mtime_ns - 1e9 < at < began_ns for at in early))
    cpu_s = time.process_time()
    await asyncio.sleep(0.3)
    say(time.process_time() - cpu_s < 0.05, watcher.watch_count)
    watcher.close()

if os.path.exists(RECORD):
    asyncio.run(second_life())
else:
    first_life()
""".replace("{{", "{").replace("}}", "}")


@pytest.mark.parametrize("without", WITHOUT)
def test_every_code_and_time_is_true_across_the_death_of_the_daemon(tmp_path: Path, without: str) -> None:
    body = DAEMON_BODY.replace("PAUSE_S", "1.0")
    with Supervised(tmp_path, body, {"SANDBOXD_WITHOUT": without}) as supervised:
        lines = [supervised.line(30.0) for _ in range(4)]
    assert lines[0].startswith("True"), lines
    assert lines[1:] == ["True", "True", "True 0"]


def test_an_older_kernel_without_a_supervisor_says_that_the_code_is_unknown() -> None:
    script = """
    import asyncio, os, sys
    sys.path.insert(0, sys.argv[1])
    from common.process.exits import ExitWatcher

    async def main(pid):
        watcher = ExitWatcher()
        end = asyncio.get_running_loop().create_future()
        watcher.watch(pid, end.set_result)
        print("watching", flush=True)
        status = await asyncio.wait_for(end, 20)
        print(status.code, status.known)
        watcher.close()

    asyncio.run(main(int(sys.argv[2])))
    """
    process = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
    argv = [sys.executable, "-I", "-c", dedent(script), str(ROOT), str(process.pid)]
    environment = {"SANDBOXD_WITHOUT": "pidfd-info pidfd-hup"}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == "watching\n"
        assert process.stdin is not None
        process.stdin.close()
        time.sleep(0.7)  # a zombie all that time
        process.wait()
        output, _ = watching.communicate(timeout=20)
    assert output == "255 False\n"


@pytest.mark.skipif(KERNEL < (6, 15), reason="no PIDFD_GET_INFO")
@pytest.mark.may_skip("the kernel is older than 6.15")
async def test_a_foreign_parent_may_take_any_time_to_reap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exits, "_SLOW_RETRIES", 2)
    script = (
        "import os; p = os.spawnlp(os.P_NOWAIT, 'sh', 'sh', '-c', 'exit 7'); print(p, flush=True); input()"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", f"{script}; os.waitpid(p, 0)", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    watcher = ExitWatcher()
    end: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
    watcher.watch(int(await parent.stdout.readline()), end.set_result)
    await asyncio.sleep(1.0)  # longer than the retries
    assert not end.done()
    parent.stdin.write(b"\n")
    status = await asyncio.wait_for(end, 20)
    assert (status.code, status.known) == (7, True)
    watcher.close()
    parent.stdin.close()
    await parent.wait()


async def test_the_end_of_our_own_child_is_in_the_log_before_anybody_is_told() -> None:
    log = ExitLog.create(DAEMON)
    watcher = ExitWatcher(log)
    end: asyncio.Future[tuple[ExitStatus, bool]] = asyncio.get_running_loop().create_future()
    read_fd, write_fd = os.pipe()
    pid = os.posix_spawn(
        "/bin/sh", ["sh", "-c", "read x; kill -9 $$"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, read_fd, 0)]
    )
    started = start_time(pid)
    watcher.watch(pid, lambda status: end.set_result((status, log.find(pid, started) is not None)))
    os.close(write_fd)
    os.close(read_fd)
    status, was_logged = await asyncio.wait_for(end, 20)
    assert (status.code, was_logged) == (137, True)
    # What a successor is told, to which nothing is left but the log.
    assert watcher.ended(pid, started, None) == status
    assert watcher.ended(pid, started + 1, None) is None
    watcher.close()
    log.close()
