"""A private set of namespaces and cgroups, in which daemons can run, fail and be killed without a trace."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tests.children import children_of
from tests.node import SLOWER

ENTRANCE = Path(__file__).with_name("enter-namespaces")
# The shell joins the cgroups before it enters, as a cgroup namespace alone moves nobody.
JOIN = 'for cgroup in $0; do echo $$ >"$cgroup/cgroup.procs"; done; exec "$@"'


class Namespaces:
    """Mount, network, PID, IPC, UTS and cgroup namespaces that die as a whole (unshare(1), --kill-child).

    `directory` holds the log of the first process. Raises RuntimeError if they cannot be made.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._ready = directory / "namespaces.ready"
        self._log = directory / "namespaces.log"
        with self._log.open("wb") as log:
            self._outer = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", str(ENTRANCE), name, str(self._ready)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(
                lambda: self._ready.exists() or self._outer.poll() is not None,
                timeout_s=20,
                what="the namespaces",
            )
            if not self._ready.exists():
                raise RuntimeError(f"no private namespaces: {self._log.read_text()}")
        except BaseException:
            self._outer.kill()
            self._outer.wait()
            raise
        self.cgroups = [Path(path) for path in self._ready.read_text().split()]
        self.first_pid = children_of(self._outer.pid)[0]

    @property
    def root(self) -> Path:
        """The private file system as seen from outside; it also serves to connect to unix sockets in it."""
        return Path(f"/proc/{self.first_pid}/root")

    @property
    def process_cgroups(self) -> list[Path]:
        """Those of the cgroups, or in them, that the daemons are in."""
        return [path / "engine" if (path / "engine").is_dir() else path for path in self.cgroups]

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The command line that runs `arguments` inside."""
        # fmt: off
        return [
            "sh", "-c", JOIN, " ".join(map(str, self.process_cgroups)),
            "nsenter", f"--target={self.first_pid}",
            "--mount", "--net", "--pid", "--ipc", "--uts", "--cgroup", "--",
            *arguments,
        ]
        # fmt: on

    def run(self, arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end and return its text output; raises CalledProcessError."""
        settings: dict[str, Any] = {"check": True, "text": True, "capture_output": True, **options}
        return subprocess.run(self.command(arguments), **settings)

    def spawn(
        self, arguments: Sequence[str], log: IO[bytes], env: Mapping[str, str] | None = None
    ) -> "Daemon":
        """Start a daemon inside with its output in `log`."""
        process = subprocess.Popen(
            self.command(arguments),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=env,
            start_new_session=True,
        )
        return Daemon(process)

    def close(self) -> None:
        """Kill everything inside, wait for its end, and remove the cgroups. Idempotent."""
        if self._outer.poll() is None:
            self._outer.kill()
        self._outer.wait()
        # --kill-child is asynchronous: the namespaces are gone when the cgroups are empty.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.first_pid, signal.SIGKILL)
        for cgroup in self.cgroups:
            wait_until(lambda cgroup=cgroup: _removed(cgroup), timeout_s=20, what=f"the end of {cgroup}")
        self._ready.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Daemon:
    """A daemon inside, started through nsenter, which stays around as its parent."""

    def __init__(self, entrance: subprocess.Popen[bytes]) -> None:
        self._entrance = entrance

    @property
    def pid(self) -> int:
        """The daemon's pid as seen from outside; raises ProcessLookupError once it has ended."""
        # sh and nsenter replace themselves; with --pid nsenter then forks once.
        try:
            return children_of(self._entrance.pid)[0]
        except (FileNotFoundError, IndexError):
            raise ProcessLookupError(f"the daemon under {self._entrance.pid} has ended") from None

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return self._entrance.poll()

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 20) -> int:
        """Send a signal and wait for the end; past the deadline kill it. Returns the exit status."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        # nsenter stops itself while the daemon is stopped, and would never notice the end.
        self._entrance.send_signal(signal.SIGCONT)
        try:
            return self._entrance.wait(timeout_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            return self._entrance.wait()


def wait_until(condition: Any, timeout_s: float, what: str, interval_s: float = 0.01) -> None:
    """Poll a condition; raises TimeoutError naming `what`. On a node it may take longer (`SLOWER`)."""
    deadline = time.monotonic() + timeout_s * SLOWER
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s} s for {what}")
        time.sleep(interval_s)


def _removed(cgroup: Path) -> bool:
    """Try to remove a cgroup with all its children; False while a process is still in one."""
    for directory, _, _ in os.walk(cgroup, topdown=False):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            pass
        except OSError:
            return False
    return not cgroup.exists()
