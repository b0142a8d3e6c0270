"""A machine of its own where nothing runs, and `sandboxctl` inside; after each test nothing may be left there."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import IO, Any

import pytest

from tests.children import children_of
from tests.integration.daemon.lab import CHECKOUT, IMAGE, Lab

_TIMEOUT_S = 60
_OURS = ("/run/sandboxd/embedded", "/var/lib/sandboxd/embedded", "/var/lib/cni/networks")


class Machine:
    """Runs `sandboxctl` in a lab, whose image is a root file system of busybox."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def command(self, *words: str) -> list[str]:
        """The command line that runs `sandboxctl` inside, as seen from here."""
        return self.lab.namespaces.command([sys.executable, "-m", "sandboxctl", *words])

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start `sandboxctl` inside."""
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "COLUMNS": "80"}
        return subprocess.Popen(self.command(*words), env=environment, text=True, **options)

    def ctl(self, *words: str, input: str | None = None) -> tuple[int, str, str]:
        """Run `sandboxctl` inside to its end: exit code and both outputs."""
        stdin: int | IO[str] = subprocess.DEVNULL if input is None else subprocess.PIPE
        process = self.start(*words, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        output, errors = process.communicate(input, _TIMEOUT_S)
        return process.returncode, output, errors

    def run(
        self, *command: str, options: tuple[str, ...] = (), input: str | None = None
    ) -> tuple[int, str, str]:
        """Run a command in a pod of its own, which is removed."""
        return self.ctl("run", "--rm", *options, IMAGE, "--", *command, input=input)

    def detach(self, *command: str, options: tuple[str, ...] = ()) -> str:
        """Start a pod that runs on, and return its id."""
        code, output, errors = self.ctl("run", "-d", *options, IMAGE, "--", *command)
        assert code == 0, errors
        return output.strip()

    def remove(self, pod: str) -> None:
        """Remove a pod."""
        code, _, errors = self.ctl("rm", "--force", pod)
        assert code == 0, errors

    def log(self, pod: str, container: str = "main") -> str:
        """What a container has written so far."""
        return self.lab.path(f"/var/lib/sandboxd/embedded/{pod}/{container}.log").read_text()


def eventually(condition: Callable[[], object], what: str, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def inner_pid(process: subprocess.Popen[str]) -> int:
    """The pid of the command itself: nsenter, which we have started, has it as its child."""
    (inner,) = children_of(process.pid)
    return inner


def supervisors(machine: Machine) -> list[str]:
    found = []
    for pid in machine.lab.processes():
        # Any other may end meanwhile.
        with contextlib.suppress(OSError):
            if b"--supervise" in machine.lab.path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(str(pid))
    return found


def daemon_of(machine: Machine, supervisor: str) -> str:
    return machine.lab.run("pgrep", "-P", supervisor).split()[0]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture
async def machine(lab: Lab) -> AsyncIterator[Machine]:
    machine = Machine(lab)
    before = lab.inventory(0, *_OURS)
    yield machine
    # The bridge, and what its plugin knows of addresses, are the network's and stay.
    after = lab.inventory(0, *_OURS)
    stays = {path for path in after.files if path.startswith(("/.lock", "/.daemons", "/sandboxd"))}
    await lab.expect_nothing_more_than(before._replace(files=before.files | stays), 0, *_OURS)
    daemons = lab.path("/run/sandboxd/embedded/.daemons")
    assert not daemons.exists() or os.listdir(daemons) == [], "a daemon without pods"
