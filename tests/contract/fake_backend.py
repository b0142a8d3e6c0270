"""A backend without containers: plain processes that wait for their start, as a created container's does."""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import signal
import socket
import subprocess
from contextlib import suppress

from google.protobuf.message import Message

from common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from common.task.backend import PreparedContainer
from common.task.stdio import Stdio

_PATH = "/usr/local/bin:/usr/bin:/bin"
_WAIT_AND_RUN = 'read _ < "$0" && exec "$@"'


class _Running:
    """The processes of one container; the first is held by a FIFO until start()."""

    def __init__(self, gate: str) -> None:
        self.gate = gate
        self.started = False
        self.gate_fd = os.open(gate, os.O_RDWR | os.O_CLOEXEC)
        self.pidfds: list[int] = []
        self.groups: list[int] = []

    def add(self, pid: int) -> None:
        self.pidfds.append(os.pidfd_open(pid))
        self.groups.append(pid)

    @property
    def has_ended(self) -> bool:
        poll = select.poll()
        poll.register(self.pidfds[0], select.POLLIN)
        return bool(poll.poll(0))

    def signal(self, signum: int) -> None:
        for pid in self.groups:
            with suppress(ProcessLookupError):
                os.killpg(pid, signum)

    def close(self) -> None:
        for fd in (self.gate_fd, *self.pidfds):
            os.close(fd)


class FakeBackend:
    """Runs `process.args` of config.json as ordinary processes (`TaskBackend`).

    What shall fail stands in `failures`, by the call's name; where one shall wait ("create", or "started" once
    the process runs) in `gates`.
    """

    def __init__(self) -> None:
        self._containers: dict[str, _Running] = {}
        self.failures: dict[str, Exception] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.updates: list[bytes] = []
        self.cut_execs: dict[str, int] = {}

    def pids(self, container_id: str) -> list[int]:
        """The processes that were started in a container."""
        return self._containers[container_id].groups

    async def create(self, container_id: str, container: PreparedContainer, stdio: Stdio) -> int:
        self._fail("create")
        await self._pass_gate("create")
        if container_id in self._containers:
            raise AlreadyExists(f"container {container_id} exists already")
        with open(f"{container.directory}/config.json", encoding="utf-8") as file:
            args = self._checked(json.load(file)["process"]["args"])
        gate = f"{container.directory}/gate"
        os.mkfifo(gate)
        running = _Running(gate)
        try:
            pid = await self._spawn(["/bin/sh", "-c", _WAIT_AND_RUN, gate, *args], stdio)
        except BaseException:
            running.close()
            raise
        running.add(pid)
        self._containers[container_id] = running
        return pid

    async def start(self, container_id: str, container: PreparedContainer) -> None:
        self._fail("start")
        running = self._alive(container_id)
        os.write(running.gate_fd, b"\n")
        running.started = True
        await self._pass_gate("started")

    async def is_started(self, container_id: str, container: PreparedContainer) -> bool:
        self._fail("is_started")
        return container_id in self._containers and self._containers[container_id].started

    def pid_of_exec(self, exec_id: str, container: PreparedContainer) -> int | None:
        return self.cut_execs.get(exec_id)

    def forget_exec(self, exec_id: str, container: PreparedContainer) -> None:
        self.cut_execs.pop(exec_id, None)

    async def exec(
        self, container_id: str, exec_id: str, container: PreparedContainer, process: bytes, stdio: Stdio
    ) -> int:
        self._fail("exec")
        running = self._alive(container_id)
        pid = await self._spawn(self._checked(json.loads(process)["args"]), stdio)
        running.add(pid)
        return pid

    async def delete(self, container_id: str, container: PreparedContainer) -> None:
        self._fail("delete")
        running = self._containers.pop(container_id, None)
        if running is not None:
            running.signal(signal.SIGKILL)
            running.close()

    async def pause(self, container_id: str, container: PreparedContainer) -> None:
        self._fail("pause")
        self._alive(container_id).signal(signal.SIGSTOP)

    async def resume(self, container_id: str, container: PreparedContainer) -> None:
        self._fail("resume")
        self._alive(container_id).signal(signal.SIGCONT)

    async def update(self, container_id: str, container: PreparedContainer, resources: bytes) -> None:
        self._fail("update")
        self._alive(container_id)
        try:
            json.loads(resources)
        except ValueError as error:
            raise InvalidArgument(f"resources are not JSON: {error}") from error
        self.updates.append(resources)

    async def _pass_gate(self, name: str) -> None:
        if (gate := self.gates.get(name)) is not None:
            await gate.wait()

    def _fail(self, call: str) -> None:
        if (failure := self.failures.get(call)) is not None:
            raise failure

    def _alive(self, container_id: str) -> _Running:
        running = self._containers.get(container_id)
        if running is None:
            raise NotFound(f"container {container_id} does not exist")
        if running.has_ended:
            raise FailedPrecondition(f"container {container_id} is not running")
        return running

    @staticmethod
    def _checked(args: list[str]) -> list[str]:
        program = shutil.which(args[0], path=_PATH)
        if program is None:
            raise InvalidArgument(f"executable file {args[0]} not found in $PATH")
        return [program, *args[1:]]

    @staticmethod
    async def _spawn(argv: list[str], stdio: Stdio) -> int:
        stdin, stdout, stderr = stdio.child_fds
        master = slave = -1
        if stdio.terminal is not None:
            master, slave = os.openpty()
            stdin = stdout = stderr = slave
        try:
            if stdio.terminal is not None:
                # As a runtime does: the terminal is there, and sized, before the program runs.
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(stdio.terminal.socket_path)
                    socket.send_fds(sock, [b"/dev/ptmx"], [master])
                await stdio.terminal.receive_master(5)
            process = subprocess.Popen(  # noqa: ASYNC220 - a fork and no wait
                argv, stdin=stdin, stdout=stdout, stderr=stderr, env={"PATH": _PATH}, start_new_session=True
            )
            process.returncode = 0  # whoever watches the pid reaps it
        finally:
            for fd in (master, slave):
                if fd >= 0:
                    os.close(fd)
        return process.pid


class RecordingSink:
    """Keeps events (`EventSink`); they are delivered once `gate` is set, if there is one."""

    def __init__(self) -> None:
        self.published: list[tuple[str, Message]] = []
        self.flushes = 0
        self.gate: asyncio.Event | None = None

    def publish(self, topic: str, event: Message) -> None:
        self.published.append((topic, event))

    async def flush(self, timeout_s: float) -> None:
        self.flushes += 1
        if self.gate is not None:
            await self.gate.wait()

    def topics(self) -> list[str]:
        return [topic.removeprefix("/tasks/") for topic, _ in self.published]
