"""The supervisor keeps what its child gives it, and outlives every death of it."""

from __future__ import annotations

import itertools
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from tests.unit.common.process.supervised import ROOT, Supervised

ENDS_BOTH = "os.kill(os.getppid(), signal.SIGTERM); signal.pause()"
STORES_AND_DIES = """
if len(handed()) == 1:
    tell("READY=1")
    for number in range(60):
        reader, writer = os.pipe()
        os.write(writer, b"%d" % number)
        tell(f"FDSTORE=1\\nFDPOLL=0\\nFDNAME=c{number}", reader)
        os.close(reader); os.close(writer)
    tell("FDSTOREREMOVE=1\\nFDNAME=c7")
    die()
say(*sorted(f"{name}={os.read(fds[0], 10).decode()}" for name, fds in handed().items() if name != "exits"))
time.sleep(60)
"""


def test_all_that_was_said_before_a_kill_counts_for_the_next(tmp_path: Path) -> None:
    with Supervised(tmp_path, STORES_AND_DIES) as supervised:
        assert supervised.line().split() == sorted(f"c{n}={n}" for n in range(60) if n != 7)


def test_several_descriptors_of_a_name_and_several_messages_add_up(tmp_path: Path) -> None:
    body = """
    if len(handed()) == 1:
        tell("READY=1")
        tell("FDSTORE=1\\nFDPOLL=0\\nFDNAME=p1", *os.pipe())
        tell("FDSTORE=1\\nFDPOLL=0\\nFDNAME=p1", *os.pipe(), 0)
        die()
    say(len(handed()["p1"]))
    """
    with Supervised(tmp_path, dedent(body) + ENDS_BOTH) as supervised:
        assert supervised.line() == "5"
        assert supervised.wait() == 0


@pytest.mark.parametrize("name", ["", "exits", "ninechars", "a:b", "a b"])
def test_a_name_that_could_not_be_handed_back_is_refused(tmp_path: Path, name: str) -> None:
    body = f"""
    if not os.path.exists({str(tmp_path / "again")!r}):
        open({str(tmp_path / "again")!r}, "w").close()
        tell("READY=1")
        tell("FDSTORE=1\\nFDPOLL=0\\nFDNAME={name}", *os.pipe())
        die()
    say(*handed(), os.environ["LISTEN_FDS"])
    """
    with Supervised(tmp_path, dedent(body)) as supervised:
        assert supervised.line() == "exits 1"
        assert '"event":"descriptors.not_kept"' in supervised.errors()


def test_what_it_listens_on_has_no_address_that_a_stranger_could_use(tmp_path: Path) -> None:
    with Supervised(tmp_path, "tell('READY=1'); say('ready'); time.sleep(60)") as supervised:
        supervised.line()
        descriptors = Path(f"/proc/{supervised.pid}/fd").iterdir()
        links = {os.readlink(descriptor) for descriptor in descriptors}
        sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
        own = [fields for fields in sockets if f"socket:[{fields[6]}]" in links]
    assert [len(fields) for fields in own] == [7], "one, without a path"


def test_what_a_dead_child_has_left_stores_nothing(tmp_path: Path) -> None:
    body = """
    if len(handed()) == 1 and not os.path.exists(sys.argv[0] + ".again"):
        open(sys.argv[0] + ".again", "w").close()
        tell("READY=1")
        if os.fork():
            die()
        say("here", os.getppid())
        try:
            while True:
                time.sleep(0.01)
                if os.path.exists(sys.argv[0] + ".now"):
                    tell("FDSTORE=1\\nFDPOLL=0\\nFDNAME=x1", 0)
        except OSError as error:
            say(type(error).__name__)
            os._exit(0)
    say("next")
    time.sleep(0.5)
    open(sys.argv[0] + ".now", "w").close()
    time.sleep(60)
    """
    with Supervised(tmp_path, dedent(body)) as supervised:
        lines = [supervised.line() for _ in range(3)]
        assert sorted(line.split()[0] for line in lines) == ["BrokenPipeError", "here", "next"]


def test_a_child_that_stops_talking_is_no_work(tmp_path: Path) -> None:
    body = "tell('READY=1'); manager.close(); say('closed'); time.sleep(60)"
    with Supervised(tmp_path, body) as supervised:
        supervised.line()
        stat = Path(f"/proc/{supervised.pid}/stat")

        def ticks() -> int:
            return sum(map(int, stat.read_text().rpartition(")")[2].split()[11:13]))

        before = ticks()
        time.sleep(0.3)
        assert ticks() - before < 3, "it does not spin"


def test_a_supervisor_that_is_behind_has_room_for_the_start_of_many_pods(tmp_path: Path) -> None:
    body = """
    tell("READY=1")
    manager.setblocking(False)
    os.kill(os.getppid(), signal.SIGSTOP)
    for number in range(150):
        tell(f"FDSTORE=1\\nFDPOLL=0\\nFDNAME=c{number}", 0)
    os.kill(os.getppid(), signal.SIGCONT)
    say("told")
    time.sleep(60)
    """
    with Supervised(tmp_path, dedent(body)) as supervised:
        assert supervised.line() == "told"


def test_a_barrier_is_passed_after_all_before_it_is_handled(tmp_path: Path) -> None:
    body = """
    tell("READY=1")
    for number in range(200):
        tell(f"FDSTORE=1\\nFDPOLL=0\\nFDNAME=c{number}", 0)
    reader, writer = os.pipe()
    tell("BARRIER=1", writer)
    os.close(writer)
    os.read(reader, 1)
    say(len(os.listdir(f"/proc/{os.getppid()}/fd")) >= 200)
    """
    with Supervised(tmp_path, dedent(body)) as supervised:
        assert supervised.line() == "True"


@pytest.mark.parametrize("code", [0, 1, 3])
def test_a_child_that_never_was_ready_ends_it_with_its_own_code(tmp_path: Path, code: int) -> None:
    with Supervised(tmp_path, f"say(os.getpid()); os._exit({code})") as supervised:
        supervised.line()
        assert supervised.wait() == code


def test_a_child_that_was_ready_is_started_again_ever_later(tmp_path: Path) -> None:
    with Supervised(tmp_path, "tell('READY=1'); say(time.monotonic()); os._exit(1)") as supervised:
        starts = [float(supervised.line()) for _ in range(5)]
        waits = [after - before for before, after in itertools.pairwise(starts)]
        assert [0.05 * 2**n < wait for n, wait in enumerate(waits)] == [True] * 4


def test_a_child_that_was_ready_and_ends_well_is_started_again_too(tmp_path: Path) -> None:
    body = "tell('READY=1'); say('here')"
    with Supervised(tmp_path, body) as supervised:
        assert [supervised.line() for _ in range(3)] == ["here"] * 3


def test_a_child_that_is_killed_before_it_was_ready_is_started_again(tmp_path: Path) -> None:
    with Supervised(tmp_path, "say(os.getpid()); die()") as supervised:
        assert supervised.line() != supervised.line()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_lets_its_child_end_first(tmp_path: Path, number: signal.Signals) -> None:
    body = """
    def stop(*_):
        say("stopped")
        os._exit(0)
    signal.signal(signal.SIGTERM, stop)
    tell("FDSTORE=1\\nFDPOLL=0\\nFDNAME=c1", 0)
    tell("READY=1")
    say("ready")
    while True:
        signal.pause()
    """
    with Supervised(tmp_path, dedent(body)) as supervised:
        assert supervised.line() == "ready"
        supervised.send(number)
        assert supervised.line() == "stopped"
        assert supervised.wait() == 0
        assert '"event":"connections.lost"' in supervised.errors()


def test_a_stop_right_after_a_restart_is_heard(tmp_path: Path) -> None:
    # The signal comes at any moment of a fork, an exec or a wait.
    for wait_s in (0.0, 0.02, 0.05, 0.08, 0.11, 0.14):
        with Supervised(tmp_path, "tell('READY=1'); say('ready'); os._exit(1)") as supervised:
            supervised.line()
            time.sleep(wait_s)
            supervised.send(signal.SIGTERM)
            assert supervised.wait() in (0, 1)


def test_other_signals_are_passed_on(tmp_path: Path) -> None:
    body = """
    signal.signal(signal.SIGUSR1, lambda *_: say("one"))
    signal.signal(signal.SIGUSR2, lambda *_: say("two"))
    say("ready")
    while True:
        signal.pause()
    """
    with Supervised(tmp_path, dedent(body)) as supervised:
        supervised.line()
        for number, word in ((signal.SIGUSR1, "one"), (signal.SIGUSR2, "two")):
            supervised.send(number)
            assert supervised.line() == word


def test_the_child_does_not_outlive_it(tmp_path: Path) -> None:
    with Supervised(tmp_path, "say(os.getpid()); time.sleep(60)") as supervised:
        pidfd = os.pidfd_open(int(supervised.line()))
        supervised.process.kill()
        ended = select.select([pidfd], [], [], 20)[0]
        os.close(pidfd)
        assert ended


# -- below a service manager -------------------------------------------------------------------------


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(20)
        yield sock


def receive(manager: socket.socket) -> tuple[str, list[int]]:
    data, fds, _, _ = socket.recv_fds(manager, 4096, 10)
    return data.decode(), list(fds)


def test_what_concerns_the_service_reaches_the_manager_above(tmp_path: Path, manager: socket.socket) -> None:
    body = """
    tell("FDSTORE=1\\nFDPOLL=0\\nFDNAME=c1", 0)
    tell("MAINPID=1\\nREADY=1\\nSTATUS=fine")
    tell("STOPPING=1")
    tell("FDSTOREREMOVE=1\\nFDNAME=c1")
    signal.signal(signal.SIGTERM, lambda *_: (tell("STOPPING=1"), os._exit(0)))
    say("told")
    while True:
        signal.pause()
    """
    with Supervised(tmp_path, dedent(body), {"NOTIFY_SOCKET": str(tmp_path / "notify")}) as supervised:
        messages = [receive(manager) for _ in range(4)]
        for _, fds in messages:
            for fd in fds:
                os.close(fd)
        assert [(text, len(fds)) for text, fds in messages] == [
            ("FDSTORE=1\nFDPOLL=0\nFDNAME=exits", 1),
            ("FDSTORE=1\nFDPOLL=0\nFDNAME=c1", 1),
            ("READY=1\nSTATUS=fine", 0),
            # Not that its child stops: the service does not.
            ("FDSTOREREMOVE=1\nFDNAME=c1", 0),
        ]
        assert supervised.line() == "told"
        supervised.send(signal.SIGTERM)
        assert receive(manager) == ("STOPPING=1", [])
        assert supervised.wait() == 0
        assert "connections.lost" not in supervised.errors()


def test_what_the_manager_above_has_kept_is_handed_on(tmp_path: Path) -> None:
    (tmp_path / "program.py").touch()
    body = "say(*(f'{name}:{len(fds)}' for name, fds in sorted(handed().items())))\n" + ENDS_BOTH
    with Supervised(tmp_path, body):
        pass  # only to have the program written
    script = f"""
import os, sys
for number in (3, 4, 5):
    os.dup2(0, number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="3", LISTEN_FDNAMES="c1:c1:p2")
os.execv(sys.executable, [sys.executable, "-I", {str(tmp_path / "program.py")!r}, "--supervise"])
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (0, "c1:2 exits:1 p2:1\n"), done.stderr


def test_a_log_that_the_manager_above_has_kept_is_not_taken_for_a_daemon_that_was_ready(
    tmp_path: Path,
) -> None:
    with Supervised(tmp_path, "os._exit(3)"):
        pass  # only to have the program written
    script = f"""
import os, sys
os.dup2(os.memfd_create("exits"), 9)
os.dup2(9, 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="exits")
os.execv(sys.executable, [sys.executable, "-I", {str(tmp_path / "program.py")!r}, "--supervise"])
"""
    done = subprocess.run([sys.executable, "-I", "-c", script], timeout=30, check=False)
    assert done.returncode == 3


# -- what it costs ------------------------------------------------------------------------------------


def test_what_it_says_is_one_json_object_per_line(tmp_path: Path) -> None:
    body = """
    tell('READY=1')
    tell('FDSTORE=1\\nFDNAME=a"\\\\\\tü', 0)
    if os.path.exists(sys.argv[0] + ".again"):
        os.kill(os.getppid(), signal.SIGTERM)
        signal.pause()
    open(sys.argv[0] + ".again", "w").close()
    die()
    """
    with Supervised(tmp_path, dedent(body)) as supervised:
        assert supervised.wait() == 0
        lines = [json.loads(line) for line in supervised.errors().splitlines()]
    assert [line["event"] for line in lines] == [
        "descriptors.not_kept",
        "daemon.died",
        "descriptors.not_kept",
    ]
    assert lines[0]["group"] == 'a"\\\tü'
    assert (lines[1]["level"], lines[1]["exit_code"]) == ("warning", -9)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", lines[1]["ts"])


def test_it_loads_little(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import common.process.supervisor; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(ROOT)], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not loaded & {
        "typing",
        "contextlib",
        "json",
        "asyncio",
        "subprocess",
        "logging",
        "grpc",
        "yaml",
        "re",
    }


def test_it_weighs_less_than_8_mib_with_3000_descriptors(tmp_path: Path) -> None:
    body = """
    tell("READY=1")
    for number in range(1000):
        tell(f"FDSTORE=1\\nFDPOLL=0\\nFDNAME=c{number}", 0, 1, 2)
    reader, writer = os.pipe()
    tell("BARRIER=1", writer)
    os.close(writer)
    os.read(reader, 1)
    say("stored")
    time.sleep(60)
    """
    with Supervised(tmp_path, dedent(body)) as supervised:
        assert supervised.line() == "stored"
        rollup = Path(f"/proc/{supervised.pid}/smaps_rollup").read_text()
        pss = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
        assert pss is not None
        assert int(pss[1]) < 8 * 1024
