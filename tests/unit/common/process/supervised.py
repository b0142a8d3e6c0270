"""A program below a real supervisor; what it prints is read line by line."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[4]

# As `sandboxers.__main__` does it. Line by line, so that no line is lost in a buffer when the process is killed.
PROGRAM = """
import os, sys
sys.path.insert(0, {root!r})
if "--supervise" in sys.argv:
    from common.process.supervisor import supervise
    supervise(sys.orig_argv)
    sys.exit()

import array, signal, socket, time

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

manager = socket.socket(fileno=int(os.environ["NOTIFY_SOCKET"].removeprefix("fd:")))
manager.setblocking(True)

def tell(message, *fds):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    manager.sendmsg([message.encode()], rights)

def handed():
    assert os.environ["LISTEN_PID"] == str(os.getpid())
    names = os.environ["LISTEN_FDNAMES"].split(":")
    assert len(names) == int(os.environ["LISTEN_FDS"])
    return {{name: [3 + i for i, other in enumerate(names) if other == name] for name in names}}

def die():
    signal.raise_signal(signal.SIGKILL)

{body}
"""


class Supervised:
    """Starts the program under `python FILE --supervise`, and ends whatever is left of it."""

    def __init__(
        self,
        directory: Path,
        body: str,
        env: Mapping[str, str] | None = None,
        interpreter: str = sys.executable,
        script: str = "",
    ) -> None:
        """:param script: what to run as the supervisor, with the program as its argument, instead of the program."""
        self.file = directory / "program.py"
        self.write(body)
        self._unread = b""
        self._errors = (directory / "errors").open("w+b")
        self.process = subprocess.Popen(
            [interpreter, "-I", *(["-c", script] if script else []), str(self.file), "--supervise"],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={"PATH": "/usr/bin:/bin", **(env or {})},
        )
        self.pid = self.process.pid

    def write(self, body: str) -> None:
        """Install another version of the program."""
        self.file.write_text(PROGRAM.format(root=str(ROOT), body=body))

    def __enter__(self) -> Supervised:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdout is not None
        # Its child dies with it; the rest is told by the end of what they all write to.
        self.process.kill()
        self.process.wait()
        with self.process.stdout as output:
            while select.select([output], [], [], 10)[0] and os.read(output.fileno(), 65536):
                pass
        if kind is not None:
            print(self.errors())
        self._errors.close()

    def errors(self) -> str:
        """Return what supervisor and program have written to their standard error."""
        self._errors.flush()
        return Path(self._errors.name).read_text()

    def line(self, timeout_s: float = 30.0) -> str:
        """Return the next line that the program prints."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            left_s = max(0.0, deadline - time.monotonic())
            assert select.select([self.process.stdout], [], [], left_s)[0], f"no line; {self.errors()}"
            piece = os.read(self.process.stdout.fileno(), 65536)
            assert piece, f"it has ended; {self.errors()}"
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Return the supervisor's exit code."""
        return self.process.wait(20)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
