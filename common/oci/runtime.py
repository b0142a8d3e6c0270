"""Driving an OCI runtime's command line: crun, runc, or any other that takes runc's arguments.

Each call is one external command, counted by `invocations`: what stands here is what a pod's start pays for.
Errors are taken from the runtime's own log, since its stderr belongs to the container.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence

from common.errors import (
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    SandboxdError,
)
from common.oci.read_only_program import ReadOnlyProgram
from common.process.exits import ExitWatcher
from common.process.orphans import outlive
from common.process.spawn import CAPTURE, CLEAN_ENVIRONMENT, run

_CODES: tuple[tuple[str, type[SandboxdError]], ...] = (
    # What crun and runc say, and whose fault it is; the first match wins.
    ("not found in $path", InvalidArgument),
    ("executable file not found", InvalidArgument),
    ("exec format error", InvalidArgument),
    ("open executable", InvalidArgument),
    ("permission denied", InvalidArgument),
    ("no such file or directory", InvalidArgument),
    ("not a directory", InvalidArgument),
    ("device or resource busy", FailedPrecondition),
    ("is not running", FailedPrecondition),
    ("not running", FailedPrecondition),
    ("stopped container", FailedPrecondition),
    ("already exists", AlreadyExists),
    ("does not exist", NotFound),
)


class OciRuntime:
    """One runtime binary with one state root.

    `root` is the runtime's own state directory, apart from every engine's, so that no other tool's
    `delete` or `list` can reach our containers.
    """

    __slots__ = ("_program", "_watcher", "invocations", "root", "timeout_s")

    def __init__(self, binary: str, root: str, watcher: ExitWatcher, timeout_s: float) -> None:
        # Looked up once: each exec would try every directory of PATH again.
        self._program = ReadOnlyProgram(shutil.which(binary, path=CLEAN_ENVIRONMENT["PATH"]) or binary)
        self.root = root
        self.timeout_s = timeout_s
        self.invocations = 0
        self._watcher = watcher

    def load(self) -> None:
        """Make what calls have in common, so that the first one need not."""
        self._program.executable()

    def close(self) -> None:
        """Give up what calls have in common; commands that run go on."""
        self._program.close()

    def knows(self, container_id: str) -> bool:
        """Tell whether there is a container of this id, of whatever pod."""
        return os.path.lexists(f"{self.root}/{container_id}")

    async def create(
        self,
        container_id: str,
        bundle: str,
        stdio: tuple[int, int, int],
        console_socket: str | None,
        systemd_cgroup: bool,
    ) -> int:
        """Create a container from `bundle` and return the pid of its first process, which waits for start()."""
        pid_file = f"{bundle}/init.pid"
        options = ["--bundle", bundle, "--pid-file", pid_file]
        if console_socket is not None:
            options += ["--console-socket", console_socket]
        driver = ["--systemd-cgroup"] if systemd_cgroup else []
        await self._run(
            "create", [*options, container_id], f"{bundle}/log.json", stdio=stdio, global_options=driver
        )
        return _read_pid(pid_file)

    async def start(self, container_id: str, bundle: str) -> None:
        """Let the created process execute the user's command."""
        await self._run("start", [container_id], f"{bundle}/log.json")

    async def status(self, container_id: str, bundle: str) -> str:
        """Return the state of a container: "created", "running", "paused" or "stopped".

        :raise NotFound: the runtime knows no such container.
        """
        return await self._state(container_id, f"{bundle}/log.json", "status")

    async def bundle(self, container_id: str) -> str:
        """Return the bundle from which a container was created, which may be gone.

        :raise Internal: the runtime does not know.
        """
        return await self._state(container_id, os.devnull, "bundle")

    async def _state(self, container_id: str, log: str, key: str) -> str:
        output = await self._run("state", [container_id], log)
        try:
            return str(json.loads(output)[key])
        except (ValueError, KeyError, TypeError) as error:
            raise Internal(f"the state of container {container_id} cannot be understood: {error}") from error

    def pid_of_exec(self, process_file: str) -> int:
        """Return the pid that an exec has left whose caller has died, 0 if there is none."""
        try:
            return _read_pid(f"{process_file}.pid")
        except Internal:
            return 0

    @staticmethod
    def forget_exec(process_file: str) -> None:
        """Remove the files that an exec has left."""
        for path in (f"{process_file}.pid", f"{process_file}.log"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    async def settle(self) -> None:
        """Wait for the ends of the commands that an earlier daemon has left running; kill what outstays the limit."""
        await outlive(["--root", self.root], self.timeout_s)

    async def exec(
        self, container_id: str, process_file: str, stdio: tuple[int, int, int], console_socket: str | None
    ) -> int:
        """Start one more process in a running container and return its pid; `forget_exec` removes its files."""
        pid_file, log = f"{process_file}.pid", f"{process_file}.log"
        options = ["--detach", "--process", process_file, "--pid-file", pid_file]
        if console_socket is not None:
            options += ["--console-socket", console_socket]
        await self._run("exec", [*options, container_id], log, stdio=stdio)
        return _read_pid(pid_file)

    async def delete(self, container_id: str, bundle: str) -> None:
        """Remove what the runtime holds of a container, killing what is left of it; an unknown one is no error."""
        if self.knows(container_id):
            await self._run("delete", ["--force", container_id], f"{bundle}/log.json")

    async def pause(self, container_id: str, bundle: str) -> None:
        """Freeze all processes of a container."""
        await self._run("pause", [container_id], f"{bundle}/log.json")

    async def resume(self, container_id: str, bundle: str) -> None:
        """Thaw all processes of a container."""
        await self._run("resume", [container_id], f"{bundle}/log.json")

    async def update(self, container_id: str, bundle: str, resources: bytes) -> None:
        """Apply new limits; `resources` is JSON of the specification's LinuxResources."""
        path = f"{bundle}/resources.json"
        with open(path, "wb") as file:
            file.write(resources)
        await self._run("update", ["--resources", path, container_id], f"{bundle}/log.json")

    async def _run(
        self,
        command: str,
        arguments: Sequence[str],
        log: str,
        stdio: tuple[int, int, int] | None = None,
        global_options: Sequence[str] = (),
    ) -> bytes:
        self.invocations += 1
        argv = [
            self._program.path,
            "--root",
            self.root,
            "--log",
            log,
            "--log-format",
            "json",
            *global_options,
            command,
        ]
        argv += arguments
        stdin, stdout, stderr = stdio or (None, CAPTURE if command == "state" else None, None)
        log_start = _size(log)
        completed = await run(
            argv,
            watcher=self._watcher,
            executable=self._program.executable(),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            timeout_s=self.timeout_s,
            # What a runtime had in hand when it was killed nobody knows and nobody cleans.
            to_its_end=True,
        )
        if completed.status.code != 0:
            what = f"{os.path.basename(self._program.path)} {command} of container {arguments[-1]}"
            raise _failure(what, completed.status.code, _last_error(log, log_start))
        return completed.stdout


def _failure(what: str, code: int, message: str) -> SandboxdError:
    text = f"{what}: {message or f'exit code {code} without a message'}"
    lowered = message.lower()
    for pattern, error in _CODES:
        if pattern in lowered:
            return error(text)
    return Internal(text)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _last_error(log: str, start: int) -> str:
    """Return the newest error of a runtime's JSON log after `start`, or its raw end where it is not JSON.

    runc writes a line per entry, newer cruns spread an entry over several lines.
    """
    try:
        with open(log, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(start if start <= size else 0, size - 16384))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    decoder, found, position = json.JSONDecoder(), "", text.find("{")
    while position >= 0:
        try:
            entry, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            end = position + 1
        else:
            if isinstance(entry, dict) and entry.get("level") in ("error", "fatal"):
                found = str(entry.get("msg", "")).strip()[:1000]
        position = text.find("{", end)
    lines = text.splitlines()
    return found or (lines[-1][:1000] if lines else "")


def _read_pid(path: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (FileNotFoundError, ValueError) as error:
        raise Internal(f"the OCI runtime left no pid in {path}: {error}") from error
