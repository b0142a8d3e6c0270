"""An engine and a supervised sandboxer whose daemon is made to die, and what they leave behind."""

import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from common.linux.fd_holder import NAME as FD_HOLDER
from common.ttrpc import Client
from tests.chaos.kubelet import Kubelet
from tests.chaos.sizes import MANAGER, SUPERVISOR
from tests.engine.cri import Cri
from tests.engine.daemons import descriptors, stable_descriptors
from tests.engine.engine import Engine
from tests.engine.handlers import RUNC
from tests.engine.images import CHECKOUT
from tests.engine.namespaces import wait_until
from tests.node import SLOWER
from tests.settling import settle

HOOK = Path(__file__).with_name("hook")
PLAIN_MANAGER = Path(__file__).with_name("service_manager.py")
# What containerd says once it has lost a task's connection.
LOST_CONNECTION = re.compile(r"ttrpc: (server )?closed")
PROCESSES_OF_DAEMONS = re.compile(r"containerd|catatonit")
DAEMONS = re.compile(rf"(python|{FD_HOLDER})[0-9.]*")
CALL_TIMEOUT_S = 20.0


class Trial(Kubelet):
    """What happens to the sandboxer of one engine."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.directory / "chaos", engine.ours)
        self.engine = engine
        self.directory.mkdir()
        self.without = ""

    @property
    def cri(self) -> Cri:
        return self.engine.cri

    def start(
        self,
        *,
        code: Path = CHECKOUT,
        config: Path | None = None,
        env: Mapping[str, str] | None = None,
        keeper: str = SUPERVISOR,
    ) -> None:
        """Start what keeps the descriptors (`KEEPERS`), which starts the daemon from the code in a directory."""
        self.without = (env or {}).get("SANDBOXD_WITHOUT", "")
        self.may_forget_exec_codes = keeper == MANAGER
        settings = {
            "PYTHONPATH": f"{HOOK}:{code}",
            "CHAOS_DIRECTORY": str(self.directory),
            **(env or {}),
        }
        manager = [sys.executable, "-I", str(PLAIN_MANAGER), str(self.directory)]
        self.engine.start_sandboxer(
            config or self.engine.ours.config,
            env=settings,
            supervise=keeper == SUPERVISOR,
            manager=manager if keeper == MANAGER else (),
        )

    def impatient_config(self, grace_s: float) -> Path:
        """Write a configuration with which what the engine has forgotten is collected sooner."""
        text = self.engine.ours.config.read_text()
        settings = {"interval_s": 1.0, "grace_s": grace_s}
        for key, value in settings.items():
            text, count = re.subn(rf"^  {key}: .*$", f"  {key}: {value}", text, flags=re.MULTILINE)
            if count != 1:
                raise ValueError(f"the configuration has {count} keys {key}")
        path = self.directory / "impatient.yaml"
        path.write_text(text)
        return path

    def named(self, trial: str) -> str:
        """Under which name the figures of a trial are kept: with the conditions that are not the usual ones."""
        kind = "" if self.handler == RUNC else f"{self.handler.type}-"
        return kind + "-without-".join([trial, *self.without.split()])

    # ---------------------------------------------------------------- the daemon

    def arm_next(self, failpoints: str) -> None:
        """Arm the next daemon, and only that one."""
        new = self.directory / "arm.new"
        new.write_text(failpoints)
        new.rename(self.directory / "arm")

    def arm(self, failpoints: str) -> None:
        """Arm the daemon that runs."""
        self.arm_next(failpoints)
        os.kill(self.engine.daemon_pid, signal.SIGUSR1)
        wait_until(
            lambda: not (self.directory / "arm").exists(), timeout_s=20, what="the daemon to take failpoints"
        )

    def hold(self) -> None:
        """Let no daemon start until `release`."""
        (self.directory / "hold").touch()

    def release(self) -> None:
        (self.directory / "hold").unlink(missing_ok=True)

    def restart(self) -> None:
        """kill -9, and wait for the next daemon."""
        self.engine.kill_daemon()
        self.engine.wait_for_daemon()

    def replace(self) -> None:
        """Let the supervisor start another daemon in good order, as `systemctl reload` does, and wait for it."""
        starts = self.starts
        self.engine.signal_sandboxer(signal.SIGHUP)
        wait_until(lambda: self.starts > starts, timeout_s=20, what="another daemon")
        self.engine.wait_for_daemon()

    @property
    def starts(self) -> int:
        """How many daemons have been started so far."""
        try:
            return len((self.directory / "starts").read_text().splitlines())
        except FileNotFoundError:
            return 0

    def forget_compiled_modules(self) -> None:
        """Let every module be compiled again."""
        for path in (self.engine.namespaces.root / "var/cache/sandboxd/wasm").iterdir():
            path.unlink()

    # ---------------------------------------------------------------- the client

    async def task_client(self, pod: str) -> Client:
        """Open a connection of our own to a pod's Task service."""
        path = self.state(pod, "task.sock")
        # Through a descriptor: seen from here the path is longer than a socket's may be.
        directory = os.open(path.parent, os.O_PATH)
        try:
            return await Client.connect(f"/proc/self/fd/{directory}/{path.name}", timeout_s=CALL_TIMEOUT_S)
        finally:
            os.close(directory)

    # ---------------------------------------------------------------- what is left

    def remains(self) -> set[str]:
        """Everything that pods consist of, as text."""
        root = self.engine.namespaces.root
        found = {f"cgroup {path}" for base in self.engine.namespaces.cgroups for path, _, _ in os.walk(base)}
        found |= {f"file {path}" for path in _files(root, "run/sandboxd") if not self._is_daemons(path)}
        found |= {f"netns {path.name}" for path in (root / "run/netns").glob("*")}
        mounts = Path(f"/proc/{self.engine.namespaces.first_pid}/mountinfo").read_text().splitlines()
        found |= {f"mount {line.split()[4]}" for line in mounts}
        found |= {f"process {line}" for line in _processes(root / "proc")}
        found |= {f"supervisor's {kind}" for kind in descriptors(self.engine.sandboxer_pid)}
        return found | {f"daemon's {kind}" for kind in stable_descriptors(self.engine.daemon_pid)}

    def expect_nothing_more_than(self, before: set[str]) -> None:
        """Fail unless, soon, nothing is there that was not there before."""

        def left() -> set[str]:
            try:
                return self.remains() - before
            except (FileNotFoundError, ProcessLookupError) as error:
                return {f"what goes while it is looked at: {error}"}

        if leaks := settle(left, 30 * SLOWER, interval_s=0.05):
            raise AssertionError("left behind:\n  " + "\n  ".join(leaks))

    def lost_connections(self) -> list[str]:
        """The lines of containerd's log that tell of a connection that broke."""
        log = (self.engine.logs / "containerd.log").read_text(errors="replace")
        return [line for line in log.splitlines() if LOST_CONNECTION.search(line)]

    def state(self, *parts: str) -> Path:
        """A path below the sandboxer's state directory, as seen from here."""
        return self.engine.namespaces.root.joinpath(self.engine.ours.state_dir, *parts)

    def _is_daemons(self, path: str) -> bool:
        """Whether a path below /run is owned by the daemon and not by a pod."""
        ours = self.engine.ours
        hidden = rf"/{ours.state_dir}(/\.[a-z0-9.-]+)?"
        return re.fullmatch(rf"{hidden}|/{ours.socket}|/{ours.socket.parent}", path) is not None


def _files(root: Path, below: str) -> Iterator[str]:
    prefix = len(str(root))
    for path, directories, files in os.walk(root / below):
        yield from (f"{path[prefix:]}/{name}" for name in [*directories, *files])


def _processes(proc: Path) -> Iterator[str]:
    numbers = Counter[str]()
    for process in proc.iterdir():
        if process.name.isdigit():
            try:
                name = (process / "comm").read_text().strip()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if (daemons := DAEMONS.fullmatch(name)) is not None:
                # A daemon that has taken the place of another is no difference, but one more is.
                kind = daemons[1]
                numbers[kind] += 1
                yield f"{kind} number {numbers[kind]}"
            elif not PROCESSES_OF_DAEMONS.fullmatch(name):
                yield f"{process.name} {name}"
