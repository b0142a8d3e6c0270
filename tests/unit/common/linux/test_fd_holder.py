"""What shares our descriptors holds the FIFOs among them over our death, nothing else, and costs next to nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.errors import Unimplemented
from common.linux import fd_holder

ROOT = Path(__file__).parents[4]

# Opens after the holder was started: a FIFO, a lock, a listener, and (as its stdout) a pipe.
DAEMON = """
import fcntl, os, socket, sys
from common.linux.fd_holder import start_fd_holder
ballast = bytearray(16 << 20)
holder = start_fd_holder(os.pidfd_open(os.getpid()))
fifo = os.open("fifo", os.O_WRONLY)
lock = open("lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
listener = socket.socket(socket.AF_UNIX)
listener.bind("socket")
listener.listen()
print(holder, flush=True)
if sys.stdin.readline():
    os.close(fifo)
    sys.stdin.read()
"""


class Daemon:
    """A process with a holder."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        os.mkfifo(directory / "fifo")
        self.reader = os.open(directory / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        self.process = subprocess.Popen(
            [sys.executable, "-c", DAEMON],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.holder = int(self.process.stdout.readline())
        self.pidfd = os.pidfd_open(self.holder)

    @property
    def fifo_ended(self) -> bool:
        """Whether the reader of the FIFO sees an end."""
        poll = select.poll()
        poll.register(self.reader, 0)
        return bool(poll.poll(0))

    def kill(self) -> None:
        self.process.kill()
        assert self.process.stdout is not None
        assert self.process.stdout.read() == b""  # the pipe has ended
        self.process.wait()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        assert select.select([self.pidfd], [], [], 5)[0]
        for fd in (self.reader, self.pidfd):
            os.close(fd)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path)
    yield daemon
    daemon.close()


def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_only_fifos_outlive_a_daemon_that_is_killed(daemon: Daemon) -> None:
    daemon.kill()

    def is_unlocked() -> bool:
        with open(daemon.directory / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def is_refused() -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(daemon.directory / "socket"))
            except ConnectionRefusedError:
                return True
        return False

    until(is_unlocked)
    until(is_refused)
    held = [os.readlink(entry) for entry in Path(f"/proc/{daemon.holder}/fd").iterdir()]
    assert held == [str(daemon.directory / "fifo")]
    assert not daemon.fifo_ended
    os.kill(daemon.holder, signal.SIGKILL)
    until(lambda: daemon.fifo_ended)


def test_a_daemon_that_closes_a_fifo_ends_it(daemon: Daemon) -> None:
    assert not daemon.fifo_ended
    assert daemon.process.stdin is not None
    daemon.process.stdin.write(b"close it\n")
    daemon.process.stdin.flush()
    until(lambda: daemon.fifo_ended)


def test_no_signal_but_sigkill_ends_a_holder(daemon: Daemon) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGSTOP, signal.SIGCONT):
        os.kill(daemon.holder, number)
    status = Path(f"/proc/{daemon.holder}/status")
    until(lambda: "State:\tS" in status.read_text())
    daemon.kill()
    assert not daemon.fifo_ended


def test_it_has_a_name_no_command_line_and_two_pages(daemon: Daemon) -> None:
    proc = Path(f"/proc/{daemon.holder}")
    pages = 2 * os.sysconf("SC_PAGE_SIZE") // 1024
    until(lambda: "[stack]" not in (proc / "maps").read_text())
    rollup = dict(line.split(":", 1) for line in (proc / "smaps_rollup").read_text().splitlines()[1:])
    assert int(rollup["Rss"].split()[0]) <= pages
    assert (proc / "comm").read_text() == f"{fd_holder.NAME}\n"
    assert (proc / "cmdline").read_bytes() == b""
    permissions = [line.split()[1] for line in (proc / "maps").read_text().splitlines()]
    assert [p for p in permissions if "w" in p and "x" in p] == []


@pytest.mark.may_skip(
    "kernels before 6.3 know no PR_SET_MDWE, which is what systemd's MemoryDenyWriteExecute= sets"
)
def test_where_memory_cannot_be_made_executable_it_is_refused() -> None:
    code = "import ctypes, sys; sys.exit(ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0 and 3 or exec(sys.stdin.read()))"
    program = DAEMON.replace("fifo = ", "sys.exit(0); ")
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=program,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 3:
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert "PermissionError" in done.stderr
    assert "mprotect for holding descriptors" in done.stderr


def test_an_unknown_architecture_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fd_holder, "_CODE", {})
    with pytest.raises(Unimplemented, match=os.uname().machine):
        fd_holder.start_fd_holder(0)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_code_for_each_machine_fits_into_a_page(machine: str) -> None:
    assert 0 < len(fd_holder._CODE[machine]) <= 4096
