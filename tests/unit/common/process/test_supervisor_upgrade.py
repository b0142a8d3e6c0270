"""Another version of the supervisor takes the place of the running one, or is refused."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.children import children_of
from tests.unit.common.process.supervised import ROOT, Supervised, until

VERSION = """
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
if len(handed()) == 1:
    reader, writer = os.pipe()
    os.write(writer, b"kept")
    tell("FDSTORE=1\\nFDPOLL=0\\nFDNAME=c1", reader)
tell("READY=1")
say("version", NUMBER, os.getppid(), *sorted(handed()))
while True:
    signal.pause()
"""


def test_an_upgrade_keeps_its_pid_and_everything_else(tmp_path: Path) -> None:
    with Supervised(tmp_path, VERSION.replace("NUMBER", "1")) as supervised:
        assert supervised.line() == f"version 1 {supervised.pid} exits"
        for number in (2, 3):
            supervised.write(VERSION.replace("NUMBER", str(number)))
            supervised.send(signal.SIGHUP)
            assert supervised.line() == f"version {number} {supervised.pid} c1 exits"


def test_a_version_that_cannot_be_loaded_is_refused_and_the_child_goes_on(tmp_path: Path) -> None:
    with Supervised(tmp_path, VERSION.replace("NUMBER", "1")) as supervised:
        supervised.line()
        before = children_of(supervised.pid)
        supervised.file.write_text("import nothing_of_this_name\n")
        supervised.send(signal.SIGHUP)
        until(lambda: "supervisor.not_replaced" in supervised.errors())
        assert children_of(supervised.pid) == before


def test_without_an_interpreter_an_upgrade_is_refused_and_the_child_goes_on(tmp_path: Path) -> None:
    interpreter = tmp_path / "python"
    interpreter.symlink_to(sys.executable)
    with Supervised(tmp_path, VERSION.replace("NUMBER", "1"), interpreter=str(interpreter)) as supervised:
        supervised.line()
        interpreter.unlink()
        supervised.send(signal.SIGHUP)
        until(lambda: "supervisor.not_replaced" in supervised.errors())
        interpreter.symlink_to(sys.executable)
        supervised.send(signal.SIGHUP)
        assert supervised.line() == f"version 1 {supervised.pid} c1 exits"


WITHOUT_ROOM = """
import os, sys
sys.path.insert(0, {root!r})
from common.process.supervisor import Supervisor
calls = []

def failing(function, on):
    def call(*arguments):
        calls.append(function)
        if calls.count(function) in on:
            raise OSError(11, "no room")
        return function(*arguments)
    return call

{failing}
sys.exit(Supervisor([sys.executable, "-I", sys.argv[1]]).run())
"""


@pytest.mark.parametrize(
    "failing",
    [
        "os.fork = failing(os.fork, {1})",
        # The first is the log of exits.
        "os.memfd_create = failing(os.memfd_create, {2})",
    ],
)
def test_without_room_for_a_process_or_its_state_it_tries_again(tmp_path: Path, failing: str) -> None:
    script = WITHOUT_ROOM.format(root=str(ROOT), failing=failing)
    with Supervised(tmp_path, VERSION.replace("NUMBER", "1"), script=script) as supervised:
        assert supervised.line() == f"version 1 {supervised.pid} exits"
        supervised.send(signal.SIGHUP)
        assert supervised.line() == f"version 1 {supervised.pid} c1 exits"


def test_while_a_new_version_is_tried_everything_goes_on(tmp_path: Path) -> None:
    hears = "signal.signal(signal.SIGUSR1, lambda *_: say('heard'))\n"
    with Supervised(tmp_path, hears + VERSION.replace("NUMBER", "1")) as supervised:
        supervised.line()
        supervised.write(VERSION.replace("NUMBER", "2"))
        waits = f"import os, time\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n"
        supervised.file.write_text(waits + supervised.file.read_text())
        supervised.send(signal.SIGHUP)
        until(lambda: len(children_of(supervised.pid)) == 2)
        supervised.send(signal.SIGUSR1)
        assert supervised.line() == "heard"
        (tmp_path / "go").touch()
        assert supervised.line() == f"version 2 {supervised.pid} c1 exits"


def test_told_to_stop_while_a_new_version_is_tried_it_stops(tmp_path: Path) -> None:
    with Supervised(tmp_path, VERSION.replace("NUMBER", "1")) as supervised:
        supervised.line()
        supervised.file.write_text("import time\ntime.sleep(60)\n")
        supervised.send(signal.SIGHUP)
        until(lambda: len(children_of(supervised.pid)) == 2)
        supervised.send(signal.SIGTERM)
        assert supervised.wait() == 0


STOPPED_IN_BETWEEN = """
import os, signal, sys
sys.path.insert(0, {root!r})
from common.process.supervisor import Supervisor

class ToldToStop(Supervisor):
    def _replace_self(self):
        os.kill(os.getpid(), signal.SIGTERM)
        super()._replace_self()

sys.exit(ToldToStop([sys.executable, "-I", sys.argv[1]]).run())
"""


def test_a_stop_at_the_moment_of_an_upgrade_is_heard(tmp_path: Path) -> None:
    script = STOPPED_IN_BETWEEN.format(root=str(ROOT))
    with Supervised(tmp_path, VERSION.replace("NUMBER", "1"), script=script) as supervised:
        supervised.line()
        supervised.send(signal.SIGHUP)
        assert supervised.wait() == 0


def test_a_new_version_that_fails_its_first_start_is_started_again(tmp_path: Path) -> None:
    with Supervised(tmp_path, VERSION.replace("NUMBER", "1")) as supervised:
        supervised.line()
        supervised.write("say('bad'); os._exit(1)")
        supervised.send(signal.SIGHUP)
        assert [supervised.line(), supervised.line()] == ["bad", "bad"]
        supervised.write(VERSION.replace("NUMBER", "1"))
        supervised.send(signal.SIGHUP)
        while (line := supervised.line()) == "bad":
            pass
        assert line == f"version 1 {supervised.pid} c1 exits"
