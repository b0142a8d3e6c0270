"""kill -9 of the process that modules are forked from: what runs goes on, and what starts next starts."""

import contextlib
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos.sizes import SEED, WITHOUT, WITHOUT_IDS
from tests.chaos.trial import Trial
from tests.chaos.workload import Pod
from tests.children import children_of
from tests.engine.cri import RUNNING
from tests.engine.handlers import WASM, Handler
from tests.engine.namespaces import wait_until

ROUNDS = 5
KILLS = 6
STARTS = 40


@pytest.fixture
def handler() -> Handler:
    return WASM


def fork_servers(trial: Trial) -> list[int]:
    """The pids, as seen from here, of the fork servers; what they have forked is in PID namespaces of its own."""
    supervisor = trial.engine.sandboxer_pid
    return [
        pid
        for pid in _below(supervisor)
        if b"fork_server" in _command(pid) and _pid_namespace(pid) == _pid_namespace(supervisor)
    ]


def kill_fork_server(trial: Trial) -> None:
    (pid,) = fork_servers(trial)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in fork_servers(trial), timeout_s=20, what="the end of the fork server")


@pytest.mark.parametrize("without", WITHOUT, ids=WITHOUT_IDS)
def test_no_container_minds_the_death_of_the_fork_server(trial: Trial, without: str) -> None:
    trial.start(env={"SANDBOXD_WITHOUT": without})
    first = Pod(trial)
    first.end_writer(first.writer())
    first.remove()
    before = trial.remains()
    pod = Pod(trial)
    writer = pod.writer()
    echo = pod.run(*pod.programs.echo(5), name="echo", stdin=True)
    for number in range(ROUNDS):
        kill_fork_server(trial)
        assert pod.status(writer).state == pod.status(echo).state == RUNNING
        pod.expect_exec(writer, 20 + number)
        code = pod.exit_code(pod.run(*pod.programs.say("out", "err", 30 + number), name=f"say{number}"))
        assert code == 30 + number
    kill_fork_server(trial)
    # Signals, exit codes and logs have never needed it.
    pod.end_writer(writer)
    pod.remove()
    assert trial.told == []
    assert trial.lost_connections() == []
    trial.expect_nothing_more_than(before)


def test_starts_that_the_fork_server_dies_under_come_to_an_end(trial: Trial) -> None:
    print(f"repeat with CHAOS_SEED={SEED}")
    rng = random.Random(SEED)
    trial.start()
    pods = [Pod(trial) for _ in range(4)]
    pods[0].end_writer(pods[0].writer("first"))

    def start(number: int) -> None:
        pod = pods[number % len(pods)]
        code = 10 + number
        said = pod.run(*pod.programs.say("out", "err", code, pause_s=0.1), name=f"say{number}")
        assert pod.exit_code(said) == code

    with ThreadPoolExecutor(8) as pool:
        started = [pool.submit(start, number) for number in range(STARTS)]
        for _ in range(KILLS):
            time.sleep(rng.uniform(0, 0.5))
            # It may be dead already, or not there yet.
            with contextlib.suppress(ProcessLookupError, ValueError):
                kill_fork_server(trial)
        for future in started:
            future.result()
    for pod in pods:
        pod.remove()
    assert trial.lost_connections() == []


def test_the_daemon_and_the_fork_server_die_together(trial: Trial) -> None:
    trial.start()
    pod = Pod(trial)
    writer = pod.writer()
    for number in range(ROUNDS):
        kill_fork_server(trial)
        trial.restart()
        assert pod.status(writer).state == RUNNING
        pod.expect_exec(writer, 40 + number)
        assert len(fork_servers(trial)) == 1
    pod.end_writer(writer)
    pod.remove()
    assert trial.lost_connections() == []


def _below(pid: int) -> list[int]:
    """A process's descendants."""
    try:
        children = children_of(pid)
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [found for child in children for found in [child, *_below(child)]]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _pid_namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""
