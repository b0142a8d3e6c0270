"""Somebody sits at a terminal while the daemon is killed."""

import time

import pytest

from tests.chaos.sizes import KEEPERS
from tests.chaos.trial import Trial
from tests.chaos.workload import Pod
from tests.engine.streaming import exec_stream

# Told from the shell's own hang-up.
SHELL = 'trap "echo hung up" HUP; echo ready; while read word; do echo "$word: $(stty size)"; done; exit 9'


@pytest.mark.parametrize("keeper", KEEPERS)
def test_a_terminal_outlives_the_daemon_with_its_size(trial: Trial, keeper: str) -> None:
    trial.start(keeper=keeper)
    pod = Pod(trial)
    container = pod.run("sleep", "1000000")
    with exec_stream(trial.engine, container.id, "sh", "-c", SHELL, tty=True) as terminal:
        terminal.expect(b"ready")
        terminal.resize(132, 50)
        # No answer comes to a resize, and it has a way of its own.
        terminal.ask(b"before\n", b"before: 50 132")

        trial.restart()
        terminal.write(b"after\n")
        terminal.expect(b"after: 50 132")
        terminal.resize(90, 30)
        terminal.ask(b"smaller\n", b"smaller: 30 90")

        # What is typed and written while no daemon runs is not lost either.
        trial.hold()
        trial.engine.kill_daemon()
        terminal.write(b"nobody\n")
        time.sleep(1)
        trial.release()
        terminal.expect(b"nobody: 30 90")
        terminal.write(b"\x04")
        assert terminal.wait() == 9
        assert b"hung up" not in terminal.output
    assert trial.told == []
    trial.engine.wait_for_daemon()
    pod.remove()
    assert trial.lost_connections() == []
