"""A task backend that runs WebAssembly modules: a process each, forked by the fork server, a child of the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from common.cgroup import (
    Cgroup,
    Hierarchies,
    apply_limits,
    kill_all,
    parse_cgroups_path,
    remove_leaf,
    set_frozen,
)
from common.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    SandboxdError,
)
from common.failpoints import Failpoint, failpoint
from common.linux.pidfd import open_same_process, start_time
from common.oci.spec import check_resources
from common.records import read_record, write_record
from common.task.backend import PreparedContainer
from common.task.stdio import Stdio
from sandboxers.wasm import launch
from sandboxers.wasm.compiler import Compiler
from sandboxers.wasm.files import CONFIG_FILE, ProcessFiles
from sandboxers.wasm.fork_server import ForkServer, receive
from sandboxers.wasm.plan import pid_namespace

_KILL_TIMEOUT_S = 10.0
_TERMINAL_TIMEOUT_S = 10.0
_STEP_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A process that was forked; with its start time (ticks since boot) its pid is an identity."""

    VERSION: ClassVar[int] = 1

    pid: int
    start_time: int


class WasmBackend:
    """Runs modules (`TaskBackend`)."""

    __slots__ = ("_compiler", "_hierarchies", "_server")

    def __init__(self, server: ForkServer, compiler: Compiler, hierarchies: Hierarchies) -> None:
        self._server = server
        self._compiler = compiler
        self._hierarchies = hierarchies

    async def create(self, container_id: str, container: PreparedContainer, stdio: Stdio) -> int:
        """Let a process become the container and load its module, up to the gate of its start; or nothing.

        :raise AlreadyExists: the container's directory or cgroup has a process already, which is left alone.
        :raise InvalidArgument: there is no module, or it cannot be run, and why; or the cgroup has not the container's
            name.
        """
        if container.cgroups_path and self._own_cgroup(container_id, container) is None:
            # What bears another name is never removed, whoever has made it (`Hierarchies.of_container`).
            raise InvalidArgument(
                f"container {container_id}: the cgroup {container.cgroups_path} must be named after the container: "
                f"/<parent>/{container_id}, or <slice>:<prefix>:{container_id} with systemd"
            )
        files = ProcessFiles(container.directory)
        if os.path.lexists(files.record):
            raise AlreadyExists(f"container {container_id} exists already")
        try:
            with _shared_pid_namespace(container) as joined:
                return await self._launch(f"container {container_id}", container, stdio, files, joined)
        except BaseException:
            _remove(files)
            raise

    async def start(self, container_id: str, container: PreparedContainer) -> None:
        """Open the gate."""
        if not _open_gate(ProcessFiles(container.directory)):
            raise FailedPrecondition(f"container {container_id} does not wait for its start")

    async def is_started(self, container_id: str, container: PreparedContainer) -> bool:
        """Tell whether the gate was opened; if that was cut short, do it now."""
        return _is_opened(ProcessFiles(container.directory))

    async def exec(
        self, container_id: str, exec_id: str, container: PreparedContainer, process: bytes, stdio: Stdio
    ) -> int:
        """Run another module of the image beside the first one.

        :raise FailedPrecondition: the first process has ended.
        :raise InvalidArgument: there is no module, or it cannot be run, and why.
        """
        files = ProcessFiles(container.directory, exec_id)
        first = self._open_process(ProcessFiles(container.directory))
        if first < 0:
            raise FailedPrecondition(f"the first process of container {container_id} has ended")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            with open(os.open(files.request, flags, 0o600), "wb") as file:
                file.write(process)
            what = f"exec {exec_id} of container {container_id}"
            pid = await self._launch(what, container, stdio, files, first, exec_id)
            _open_gate(files)
            return pid
        except BaseException:
            self.forget_exec(exec_id, container)
            raise
        finally:
            os.close(first)

    def pid_of_exec(self, exec_id: str, container: PreparedContainer) -> int | None:
        """Look at the files that an exec leaves while it is being started; one that still waits has failed."""
        files = ProcessFiles(container.directory, exec_id)
        if not os.path.lexists(files.request):
            return None
        record = _read(files.record)
        if record is None:
            return 0
        if _is_opened(files):
            return record.pid
        self._kill(files)
        return 0

    def forget_exec(self, exec_id: str, container: PreparedContainer) -> None:
        """Remove the files of an exec."""
        _remove(ProcessFiles(container.directory, exec_id))

    async def delete(self, container_id: str, container: PreparedContainer) -> None:
        """Kill what is left of the container, and remove its cgroup."""
        self._kill(ProcessFiles(container.directory))
        cgroup = self._own_cgroup(container_id, container)
        if cgroup is not None:
            await kill_all(cgroup, _KILL_TIMEOUT_S)
            remove_leaf(cgroup)

    async def pause(self, container_id: str, container: PreparedContainer) -> None:
        """Freeze all processes of the container."""
        await set_frozen(self._cgroup(container_id, container), True)

    async def resume(self, container_id: str, container: PreparedContainer) -> None:
        """Thaw all processes of the container."""
        await set_frozen(self._cgroup(container_id, container), False)

    async def update(self, container_id: str, container: PreparedContainer, resources: bytes) -> None:
        """Apply new limits. How far linear memory may grow was decided when the module was instantiated."""
        check_resources(resources, f"the update of container {container_id}")
        cgroup = self._cgroup(container_id, container)
        # The kernel may have to make room in there first, for 0.1 s and more.
        await asyncio.to_thread(apply_limits, cgroup, json.loads(resources))

    # -- launching ---------------------------------------------------------------------------------

    async def _launch(
        self,
        what: str,
        container: PreparedContainer,
        stdio: Stdio,
        files: ProcessFiles,
        joined: int,
        exec_id: str = "",
    ) -> int:
        os.mkfifo(files.gate, 0o600)
        message: launch.Message = {
            "directory": container.directory,
            "exec": exec_id,
            "console": stdio.terminal.socket_path if stdio.terminal else "",
            "new_pid_namespace": container.private_pid_namespace and not exec_id,
        }
        fds = [*stdio.child_fds, *([joined] if joined >= 0 else [])]
        pid = await self._try_to_launch(what, message, fds, stdio, files)
        if not pid:
            # A server that dies with a launch in its hands has taken it along.
            await self._server.ensure_alive()
            pid = await self._try_to_launch(what, message, fds, stdio, files)
        if not pid:
            raise Internal(f"{what}: its process has died while it was being made")
        return pid

    async def _try_to_launch(
        self, what: str, message: launch.Message, fds: list[int], stdio: Stdio, files: ProcessFiles
    ) -> int:
        """Return the pid of a process that waits at its gate; 0 if none has ever said a word."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            ours.setblocking(False)
            launch.tell_senders(ours)
            with theirs:
                await self._server.launch(message, [theirs.fileno(), *fds])
            failpoint(Failpoint.MODULE_LAUNCHED)
            # The containers of a pod have their directories beside each other.
            pod = os.path.dirname(str(message["directory"]))
            pid = await self._attend(ours, what, files.record, pod)
            if pid and stdio.terminal:
                await stdio.terminal.receive_master(_TERMINAL_TIMEOUT_S)
            failpoint(Failpoint.MODULE_READY)
            if pid:
                _go_on(ours, what)
        return pid

    async def _attend(self, channel: socket.socket, what: str, record_path: str, pod: str) -> int:
        """Serve a process until it is ready; return its pid, which is on record from its first message on."""
        pid = 0
        while (received := await self._next(channel, what)) is not None:
            message, fds, sender = received
            try:
                launch.raise_error(message, what)
                if not pid:
                    pid = sender
                    write_record(record_path, ProcessRecord(pid, start_time(pid)))
                    failpoint(Failpoint.MODULE_RECORDED)
                if "missing" not in message:
                    return pid
                await self._compile(channel, message, fds, pod)
            finally:
                for fd in fds:
                    os.close(fd)
        if pid:
            raise Internal(f"{what}: its process has died while it was being made")
        return 0

    async def _next(self, channel: socket.socket, what: str) -> launch.Received | None:
        try:
            async with asyncio.timeout(_STEP_TIMEOUT_S):
                return await receive(channel)
        except TimeoutError:
            raise DeadlineExceeded(f"{what}: its process says nothing for {_STEP_TIMEOUT_S:g} s") from None

    async def _compile(
        self, channel: socket.socket, message: launch.Message, fds: Sequence[int], pod: str
    ) -> None:
        try:
            key = await self._compiler.compile(launch.Missing(**message["missing"]), fds[0], pod)
            answer: launch.Message = {"key": key}
        except SandboxdError as error:
            answer = launch.error_message(error)
        with contextlib.suppress(OSError):
            launch.send(channel, answer)  # if it has died, that shows at once

    # -- what is there -----------------------------------------------------------------------------

    def _cgroup(self, container_id: str, container: PreparedContainer) -> Cgroup:
        if not container.cgroups_path:
            raise FailedPrecondition(f"container {container_id} has no cgroup of its own")
        return self._hierarchies.at(parse_cgroups_path(container.cgroups_path).path)

    def _own_cgroup(self, container_id: str, container: PreparedContainer) -> Cgroup | None:
        return self._hierarchies.of_container(container.cgroups_path, container_id)

    def _open_process(self, files: ProcessFiles) -> int:
        """Return a pidfd of a process, which is the caller's; -1 if it has ended or never was."""
        record = _read(files.record)
        with contextlib.suppress(ProcessLookupError):
            if record is not None:
                return open_same_process(record.pid, record.start_time)
        return -1

    def _kill(self, files: ProcessFiles) -> None:
        pidfd = self._open_process(files)
        if pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)


def _go_on(channel: socket.socket, what: str) -> None:
    try:
        launch.send(channel, {})
    except OSError:
        raise Internal(f"{what}: its process has died while it was being made") from None


def _open_gate(files: ProcessFiles) -> bool:
    """Let a process go on that waits at its gate; tell whether one does."""
    try:
        fd = os.open(files.gate, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False  # nobody waits there (ENXIO), or it has been opened
    try:
        # From here on it counts as started, whoever writes the byte.
        os.rename(files.gate, files.open_gate)
        failpoint(Failpoint.MODULE_RELEASED)
        os.write(fd, b"\n")
    finally:
        os.close(fd)
    return True


def _is_opened(files: ProcessFiles) -> bool:
    if not os.path.lexists(files.open_gate):
        return False
    # Who opened it may have died before the byte was written; one too many is read by nobody.
    with contextlib.suppress(OSError):
        fd = os.open(files.open_gate, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(fd, b"\n")
        finally:
            os.close(fd)
    return True


def _read(path: str) -> ProcessRecord | None:
    try:
        record, of_this_boot = read_record(path, ProcessRecord)
    except FileNotFoundError:
        return None
    return record if of_this_boot else None


def _remove(files: ProcessFiles) -> None:
    # The request last: without it there was no exec.
    for path in (files.gate, files.open_gate, files.record, files.request):
        if path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


@contextlib.contextmanager
def _shared_pid_namespace(container: PreparedContainer) -> Iterator[int]:
    """Open the PID namespace that a container shares with its pod; -1 where it has its own, or the host's."""
    if container.private_pid_namespace:
        yield -1
        return
    with open(f"{container.directory}/{CONFIG_FILE}", "rb") as file:
        path = pid_namespace(json.loads(file.read()))
    if not path:
        yield -1
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidArgument(f"the PID namespace {path} cannot be joined: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)
