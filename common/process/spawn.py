"""Start programs from the event loop with exactly the descriptors, environment and directory they need.

`subprocess.Popen` is used for its vfork path and its close_range. Against `os.posix_spawn` it costs 20 us
more CPU (80 against 60) at the same latency (measured with /bin/true), and posix_spawn can neither close
unknown descriptors nor change the directory. Popen's own reaping is switched off: `ExitWatcher` alone
collects exits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from common.errors import DeadlineExceeded, NotFound, PermissionDenied
from common.linux.pidfd import is_same_process
from common.process.exits import ExitStatus, ExitWatcher, Watch

CAPTURE: Final = -1
"""As `stdout` or `stderr` of `run`: collect the output."""

CAPTURE_LIMIT_BYTES = 1024 * 1024

CLEAN_ENVIRONMENT: Final[Mapping[str, str]] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}

_BOOTSTRAP = "import sys; sys.path[:0] = sys.argv.pop(1).split(':'); from {module} import main; main()"

_READ_BYTES = 65536
_FINAL_READS = CAPTURE_LIMIT_BYTES // _READ_BYTES

# How long a killed program may take to vanish before its caller goes on without it.
_KILL_LIMIT_S = 1.0


def own_program(module: str, *, with_packages: bool = False) -> list[str]:
    """Return the command that runs `main()` of a module of ours, from where we ourselves were loaded.

    :param with_packages: whether it uses others' packages, which it finds where we do.
    """
    # Without -S the interpreter would look for them itself, which takes it three times as long to start.
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    places = [root, *(sys.path if with_packages else ())]
    path = ":".join(dict.fromkeys(place for place in places if os.path.isabs(place)))
    return [sys.executable, "-I", "-S", "-c", _BOOTSTRAP.format(module=module), path]


@dataclass(frozen=True, slots=True)
class Completed:
    """What a finished program left: its status and the captured output (empty where not captured)."""

    status: ExitStatus
    stdout: bytes
    stderr: bytes


class Child:
    """A started program. `on_exit` may be set, and is called once from the event loop when it has ended."""

    __slots__ = ("_status", "_waiters", "_watch", "name", "on_exit", "pid")

    def __init__(
        self, watcher: ExitWatcher, pid: int, name: str, pidfd: int | None = None, start_time: int = 0
    ) -> None:
        self.pid = pid
        self.name = name
        self.on_exit: Callable[[ExitStatus], None] | None = None
        self._status: ExitStatus | None = None
        self._waiters: list[asyncio.Future[ExitStatus]] = []
        self._watch: Watch = watcher.watch(pid, self._on_exit, pidfd, start_time)

    @classmethod
    def adopt(cls, watcher: ExitWatcher, pid: int, start_time: int, name: str) -> Child:
        """Take up a program of an earlier daemon, by its pid and start time (ticks since boot).

        Raises NotFound when it is gone.
        """
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise NotFound(f"process {pid} has ended") from None
        try:
            # Compared with the pidfd open: what has this pid now keeps it.
            if not is_same_process(pid, start_time):
                raise NotFound(f"process {pid} has ended")
            return cls(watcher, pid, name, pidfd, start_time)
        except BaseException:
            os.close(pidfd)
            raise

    @property
    def pidfd(self) -> int:
        """The pidfd, owned by the watch; -1 once the program has ended."""
        return self._watch.pidfd

    @property
    def status(self) -> ExitStatus | None:
        """How it ended, or None while it runs."""
        return self._status

    def signal(self, signum: int) -> None:
        """Send a signal. Raises NotFound once it has ended."""
        self._watch.signal(signum)

    async def wait(self) -> ExitStatus:
        """Wait for the end; any number of callers may."""
        if self._status is not None:
            return self._status
        waiter: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        finally:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)

    async def kill(self) -> None:
        """SIGKILL it and wait, at most a second, until it is gone; harmless when it has ended."""
        with contextlib.suppress(NotFound):
            self.signal(signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KILL_LIMIT_S):
                await self.wait()

    def _on_exit(self, status: ExitStatus) -> None:
        self._status = status
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(status)
        if self.on_exit is not None:
            self.on_exit(status)

    def forget(self) -> None:
        """Watch it no more; it runs on."""
        self._watch.cancel()


def spawn(
    argv: Sequence[str],
    *,
    watcher: ExitWatcher,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
    executable: str | None = None,
) -> Child:
    """Start a program in a session of its own.

    Descriptors stay the caller's; None stands for /dev/null. All other descriptors but `pass_fds` (which keep
    their numbers) are closed in the child. `env` replaces the clean environment. `executable` is the file to execute
    where it is not the one that `argv` names. Raises NotFound when the program or `cwd` does not exist,
    PermissionDenied when it may not be executed, else OSError.
    """
    try:
        process = subprocess.Popen(
            argv,
            executable=executable,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.DEVNULL if stdout is None else stdout,
            stderr=subprocess.DEVNULL if stderr is None else stderr,
            close_fds=True,
            pass_fds=pass_fds,
            env=CLEAN_ENVIRONMENT if env is None else env,
            cwd=cwd,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        if error.filename == cwd:
            raise NotFound(f"cannot start {argv[0]}: directory {cwd} does not exist") from error
        raise NotFound(f"cannot start {argv[0]}: there is no such program; is it installed?") from error
    except PermissionError as error:
        raise PermissionDenied(f"cannot start {argv[0]}: {error.strerror}") from error
    # Without this Popen would wait for the pid by itself at some later time and steal the status.
    process.returncode = 0
    return Child(watcher, process.pid, os.path.basename(argv[0]))


async def run(
    argv: Sequence[str],
    *,
    watcher: ExitWatcher,
    input: bytes | None = None,
    timeout_s: float,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
    executable: str | None = None,
    started: Callable[[Child], None] | None = None,
    to_its_end: bool = False,
) -> Completed:
    """Run a program to its end.

    `stdout` and `stderr` may be `CAPTURE`: up to 1 MiB of each is kept, the rest is read and dropped. Output
    is complete up to the program's exit; what a descendant writes later is not waited for. `input` is served
    from memory as stdin. `started` is told the child right after its start. On timeout or cancellation the
    program is killed; with `to_its_end` a caller that is cancelled waits for it as long as it may take, and only
    a second cancellation kills it. Raises DeadlineExceeded naming the command, and what `spawn` raises.
    """
    with contextlib.ExitStack() as stack:
        if input is not None:
            stdin = stack.enter_context(_memory_file(input))
        captures: list[_Capture | None] = []
        targets: list[int | None] = []
        for target in (stdout, stderr):
            capture = None
            if target == CAPTURE:
                capture = stack.enter_context(_Capture())
                target = capture.write_fd
            captures.append(capture)
            targets.append(target)
        child = spawn(
            argv,
            watcher=watcher,
            stdin=stdin,
            stdout=targets[0],
            stderr=targets[1],
            pass_fds=pass_fds,
            env=env,
            cwd=cwd,
            executable=executable,
        )
        for capture in captures:
            if capture is not None:
                capture.listen()
        try:
            if started is not None:
                started(child)
            async with asyncio.timeout(timeout_s) as limit:
                try:
                    status = await child.wait()
                except asyncio.CancelledError:
                    # Where its watcher has forgotten it the daemon ends, and the program goes on alone.
                    if to_its_end and not limit.expired() and child.pidfd >= 0:
                        await child.wait()
                    raise
        except TimeoutError:
            await child.kill()
            raise DeadlineExceeded(f"{' '.join(argv[:3])} did not end within {timeout_s:g} s") from None
        except BaseException:
            with contextlib.suppress(NotFound):
                child.signal(signal.SIGKILL)
            raise
        out, err = (b"" if capture is None else capture.finish() for capture in captures)
        return Completed(status, out, err)


class _Capture:
    """A pipe whose read end is drained by the event loop."""

    __slots__ = ("_chunks", "_loop", "_read_fd", "_room", "write_fd")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._chunks: list[bytes] = []
        self._room = CAPTURE_LIMIT_BYTES
        self._read_fd, self.write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)

    def __enter__(self) -> _Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_write_end()
        self._close_read_end()

    def listen(self) -> None:
        self._close_write_end()
        self._loop.add_reader(self._read_fd, self._read_some)

    def finish(self) -> bytes:
        # Bounded: a descendant that lives on may write without end.
        for _ in range(_FINAL_READS):
            if self._read_fd < 0 or not self._read_some():
                break
        return b"".join(self._chunks)

    def _read_some(self) -> bool:
        try:
            data = os.read(self._read_fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._close_read_end()
            return False
        if self._room:
            self._chunks.append(data[: self._room])
            self._room -= len(self._chunks[-1])
        return True

    def _close_write_end(self) -> None:
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def _close_read_end(self) -> None:
        if self._read_fd >= 0:
            self._loop.remove_reader(self._read_fd)
            os.close(self._read_fd)
            self._read_fd = -1


@contextlib.contextmanager
def _memory_file(content: bytes) -> Iterator[int]:
    fd = os.memfd_create("input", os.MFD_CLOEXEC)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)
