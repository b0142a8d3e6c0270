"""A machine of its own for sandboxer daemons, with one image and a runtime that can be sabotaged."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from sandboxers.garbage import RECORD_FILE as GARBAGE_RECORD
from sandboxers.start_log import FILE as START_LOG
from tests.engine.namespaces import Namespaces
from tests.settling import async_settle

CHECKOUT = Path(__file__).resolve().parents[3]

# All that the daemons and their pods use lies here, in the machine's private /run.
BASE = "/run/lab"
IMAGE = f"{BASE}/image"
BINARY = f"{BASE}/bin/runtime"
SABOTAGE = f"{BASE}/sabotage"
CALLS = f"{BASE}/runtime.calls"
CGROUP_PARENT = "/kubepods/burstable"

# A real OCI runtime in a wrapper that writes down how it is called. A file <container>.<command> in the
# sabotage directory is executed first: it can fail, hang, or put something in the way.
RUNTIME = f"""\
#!/bin/sh
printf '%s\\n' "$*" >>{CALLS}
for id; do
    case $id in create | start | exec | delete | pause | resume | update) command=${{command:-$id}} ;; esac
done
runtime=crun
script={SABOTAGE}/$id.$command
[ -e "$script" ] && . "$script"
exec $runtime "$@"
"""

ACCOUNTS = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n"

# The daemons themselves, which tests start and stop: by the names of their processes.
DAEMONS = ("python", Path(sys.executable).resolve().name[:15], Path(sys.executable).name[:15])

_UNSTABLE = re.compile(rf"anon_inode:\[(eventfd|eventpoll)\]|.*/{re.escape(START_LOG)}")


class Inventory(NamedTuple):
    """Everything that pods consist of, as text, so that a difference explains itself."""

    mounts: frozenset[str]
    cgroups: frozenset[str]
    processes: frozenset[str]
    files: frozenset[str]
    descriptors: frozenset[str]

    def additions(self, later: Inventory) -> list[str]:
        """What `later` has more. A process stays the same when it executes another program."""
        pids = {process.split(" ")[0] for process in self.processes}
        return [
            f"{kind}: {thing}"
            for kind, old, new in zip(self._fields, self, later, strict=True)
            for thing in sorted(new - old)
            if kind != "processes" or thing.split(" ")[0] not in pids
        ]


class Lab:
    """The machine. Paths are those inside; `path` turns them into ours. Removed by `close`."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="sandboxd-lab-"))
        try:
            self.namespaces = Namespaces(self.directory, self.directory.name)
            try:
                self._install()
            except BaseException:
                self.namespaces.close()
                raise
        except BaseException:
            shutil.rmtree(self.directory)
            raise

    def path(self, inside: str) -> Path:
        """The same file as seen from here."""
        return self.namespaces.root / inside.lstrip("/")

    def is_mounted(self, inside: str) -> bool:
        """Whether something is mounted there."""
        table = Path(f"/proc/{self.namespaces.first_pid}/mountinfo").read_text(errors="replace")
        return any(line.split(" ")[4] == inside for line in table.splitlines())

    def run(self, *command: str) -> str:
        """Run a command inside to its end and return its output."""
        return self.namespaces.run(command).stdout

    def close(self) -> None:
        """End everything inside and remove it. Idempotent."""
        self.namespaces.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what pods are made of ---------------------------------------------------------------------

    def inventory(self, daemon_pid: int = 0, *state_dirs: str) -> Inventory:
        """List what exists inside now; the descriptors are those of a daemon."""
        table = Path(f"/proc/{self.namespaces.first_pid}/mountinfo").read_text(errors="replace")
        return Inventory(
            frozenset(line.split(" ")[4] for line in table.splitlines()),
            frozenset(_directories(self.path("/sys/fs/cgroup"))),
            frozenset(f"{pid} {comm}" for pid, comm in self.processes().items() if comm not in DAEMONS),
            frozenset(path for state in state_dirs for path in _files(self.path(state))),
            frozenset(_descriptors(daemon_pid)) if daemon_pid else frozenset(),
        )

    def processes(self) -> dict[int, str]:
        """The processes inside, by their pids inside, with their names; zombies too."""
        found = {}
        proc = self.path("/proc")
        for name in os.listdir(proc):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    found[int(name)] = (proc / name / "comm").read_text().strip()
        return found

    async def expect_nothing_more_than(
        self, before: Inventory, daemon_pid: int = 0, *state_dirs: str
    ) -> None:
        """Fail unless, soon, nothing exists that had not existed before."""
        leaks = await async_settle(lambda: before.additions(self.inventory(daemon_pid, *state_dirs)))
        if leaks:
            raise AssertionError("left behind inside:\n  " + "\n  ".join(leaks))

    # -- means -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def sabotage(self, container_id: str, command: str, script: str) -> Iterator[None]:
        """While open, the runtime executes `script` before `command` on this container.

        The script sees the arguments as `$@`, and may set `$runtime`.
        """
        path = self.path(f"{SABOTAGE}/{container_id}.{command}")
        path.write_text(script + "\n")
        try:
            yield
        finally:
            path.unlink()

    @contextlib.contextmanager
    def gated(self, container_id: str, command: str, before: str = ":", after: str = ":") -> Iterator[Path]:
        """While open, the runtime waits, between two scripts, until the file exists that this gives.

        Without scripts of the caller's that is before `command`.
        """
        gate = f"{BASE}/gate"
        script = f"{before}; while [ ! -e {gate} ]; do sleep 0.02; done; {after}"
        try:
            with self.sabotage(container_id, command, script):
                yield self.path(gate)
        finally:
            self.path(gate).unlink(missing_ok=True)

    async def runtime_called(self, container_id: str) -> None:
        """Wait until the runtime has been called for a container."""
        await until(lambda: any(container_id in call for call in self.runtime_calls()), 20, "the runtime")

    def runtime_calls(self) -> list[str]:
        """The command lines of all invocations of the runtime so far."""
        path = self.path(CALLS)
        return path.read_text().splitlines() if path.exists() else []

    @contextlib.contextmanager
    def network(self, name: str) -> Iterator[str]:
        """A network namespace as an engine's plugin would leave it, and its path."""
        self.run("sh", "-c", f"ip netns add {name} && ip -n {name} link set lo up")
        try:
            yield f"/run/netns/{name}"
        finally:
            self.run("ip", "netns", "delete", name)

    def _install(self) -> None:
        for directory in (IMAGE, f"{BASE}/bin", SABOTAGE, "/run/netns"):
            self.path(directory).mkdir(parents=True)
        # The first one turns /run/netns into a mount.
        with self.network("first"):
            pass
        runtime = self.path(BINARY)
        runtime.write_text(RUNTIME)
        runtime.chmod(0o755)
        image = self.path(IMAGE)
        for directory in ("bin", "etc", "proc", "sys", "dev", "tmp", "root", "run"):
            (image / directory).mkdir()
        (image / "tmp").chmod(0o1777)
        (image / "etc/passwd").write_text(ACCOUNTS)
        shutil.copy2("/bin/busybox", image / "bin/busybox")
        applets = subprocess.run(["/bin/busybox", "--list"], check=True, capture_output=True, text=True)
        for applet in applets.stdout.split():
            if applet != "busybox":
                (image / "bin" / applet).symlink_to("busybox")
        # The parent of the pods' cgroups is the engine's: it is here before every pod and after it.
        top = self.path("/sys/fs/cgroup")
        if (top / "cgroup.controllers").exists():
            self._make_unified_parent(top, CGROUP_PARENT)
        else:
            for hierarchy in top.iterdir():
                if hierarchy.is_dir():
                    self._make_parent(hierarchy, CGROUP_PARENT)

    @staticmethod
    def _make_unified_parent(top: Path, cgroup: str) -> None:
        directory = top
        for part in cgroup.strip("/").split("/"):
            directory = directory / part
            directory.mkdir()
            controllers = (directory / "cgroup.controllers").read_text().split()
            (directory / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))

    @staticmethod
    def _make_parent(hierarchy: Path, cgroup: str) -> None:
        directory = hierarchy
        for part in cgroup.strip("/").split("/"):
            directory = directory / part
            directory.mkdir()
            for knob in ("cpuset.cpus", "cpuset.mems"):
                if (directory / knob).exists():
                    (directory / knob).write_text((directory.parent / knob).read_text())


class Daemon:
    """A sandboxer inside a lab, by default of the runc type. `extra` are keys of its configuration, by section."""

    def __init__(
        self,
        lab: Lab,
        name: str,
        kind: str = "runc",
        python: Path = Path(sys.executable),
        **extra: Mapping[str, Any],
    ) -> None:
        self.lab = lab
        self._python = python
        self.name = name
        self.base = f"{BASE}/{name}"
        self.state_dir = f"{self.base}/state"
        self.socket = lab.path(f"{self.base}/api.sock")
        self.events_socket = lab.path(f"{self.base}/events.sock")
        self.log = lab.directory / f"{name}.log"
        self._process: Any = None
        lab.path(self.base).mkdir()
        lab.path(self.state_dir).mkdir()
        # Of its own, so that a test can fill it without filling the machine.
        lab.run("mount", "-t", "tmpfs", "-o", "mode=700,size=24m", "tmpfs", self.state_dir)
        sections: dict[str, dict[str, Any]] = {
            "log": {"level": "debug", "format": "json"},
            "engine": {"events_address": f"{self.base}/events.sock"},
            "pod": {"stop_timeout_s": 5.0},
        }
        if kind == "runc":
            sections["runtime"] = {"binary": BINARY, "timeout_s": 20.0}
        for section, keys in extra.items():
            sections.setdefault(section, {}).update(keys)
        lines = [f"type: {kind}", f"socket: {self.base}/api.sock", f"state_dir: {self.state_dir}"]
        for section, keys in sections.items():
            lines += [f"{section}:", *(f"  {key}: {value}" for key, value in keys.items())]
        self.config = lab.path(f"{self.base}/config.yaml")
        self.config.write_text("\n".join(lines) + "\n")

    @property
    def pid(self) -> int:
        """Its pid as seen from here; ProcessLookupError once it has ended."""
        pid: int = self._process.pid
        return pid

    @property
    def inner_pid(self) -> int:
        """Its pid as seen by its pods' machine."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"^NSpid:.*\s(\d+)$", status, re.MULTILINE)[1])  # type: ignore[index]

    @property
    def command(self) -> list[str]:
        return [str(self._python), "-m", "sandboxers", "--config", f"{self.base}/config.yaml"]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(CHECKOUT)}

    async def start(self) -> None:
        """Start it and wait until it has recovered and listens."""
        seen = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = self.lab.namespaces.spawn(self.command, log, self.environment)
        await until(
            lambda: self._process.returncode is not None or "daemon.ready" in self.log_since(seen),
            60,
            "the daemon",
        )
        if self._process.returncode is not None:
            raise RuntimeError(f"the daemon ended with {self._process.returncode}:\n{self.log_since(seen)}")

    def stop(self, signum: int = 15) -> int:
        """Send a signal, wait for the end, return the exit status (that of nsenter, which passes it on)."""
        status: int = self._process.stop(signum)
        return status

    def remove(self) -> None:
        """End it and take away what is its; its pods must be gone."""
        if self._process is not None and self._process.returncode is None:
            self.stop()
        self.lab.run("umount", self.state_dir)
        shutil.rmtree(self.lab.path(self.base))

    def log_since(self, offset: int) -> str:
        """What it has logged after a size of the log file."""
        with self.log.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")

    def inventory(self) -> Inventory:
        """What exists inside, with this daemon's files and descriptors."""
        return self.lab.inventory(self.pid, self.state_dir)

    async def expect_nothing_more_than(self, before: Inventory) -> None:
        """Fail unless, soon, nothing exists that had not existed before."""
        await self.lab.expect_nothing_more_than(before, self.pid, self.state_dir)

    def memory_kib(self) -> int:
        """Its memory that is not of files, which does not depend on who else maps them."""
        rollup = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return int(re.search(r"^Anonymous:\s+(\d+)", rollup, re.MULTILINE)[1])  # type: ignore[index]


async def until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Wait for a condition; TimeoutError names `what`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s} s for {what}")
        await asyncio.sleep(0.005)


def _directories(root: Path) -> Iterator[str]:
    prefix = len(str(root))
    for path, directories, _ in os.walk(root):
        yield from (f"{path[prefix:]}/{name}" for name in directories)


def _files(root: Path) -> Iterator[str]:
    prefix = len(str(root))
    for path, directories, files in os.walk(root):
        # What is below a container's mount is its own affair. The log of starts is no pod's, and bounded; nor is
        # the record of what was collected, which a daemon has as soon as there was a pod for some minutes.
        own = (START_LOG, GARBAGE_RECORD)
        names = [*directories, *(name for name in files if not name.startswith(own))]
        yield from (f"{path[prefix:]}/{name}" for name in names)


def _descriptors(pid: int) -> Iterator[str]:
    kinds: Counter[str] = Counter()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
            # gRPC opens and closes these as it likes; the log of starts is open from the first one on.
            if not _UNSTABLE.fullmatch(target):
                kinds[re.sub(r":\[\d+\]$", "", target)] += 1
    for kind, count in kinds.items():
        yield from (f"{kind} number {number + 1}" for number in range(count))
