"""A process's standard streams, as the engine names them: FIFOs handed straight to the process.

Facts (fifo(7), pipe(7); engine contract section 4.1): a reader that vanishes kills the writer with SIGPIPE
unless somebody else holds a read end, and that hold must not be a write end, or the engine would never see
the end of the output. So the daemon holds O_RDONLY on what the process writes, O_WRONLY on what it reads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass

from common.errors import InvalidArgument, NotFound
from common.task.terminal import Terminal


@dataclass(frozen=True, slots=True)
class StdioSpec:
    """The strings of a Create or Exec request; State gives them back letter by letter."""

    terminal: bool
    stdin: str
    stdout: str
    stderr: str


_OUR_FAULT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})

NO_STDIO = StdioSpec(False, "", "", "")


class Stdio:
    """The open streams of one process. Owns its descriptors; every closing method is idempotent.

    Life: open, hand `child_fds` to the process, `release_child()`, `close_stdin()` when the engine asks or the
    process has ended, `close()` when the process is deleted.
    """

    __slots__ = ("_child_fds", "_holds", "_stdin_hold", "terminal")

    def __init__(self, spec: StdioSpec, owner: tuple[int, int], directory: str) -> None:
        """Open the streams.

        :param owner: the host's uid and gid of the process, who must be able to reopen /dev/stdout.
        :param directory: where the console socket of a terminal may lie for a moment.
        :raise InvalidArgument: a path is not a FIFO (or file:// URI), or uses a scheme that is not supported.
        :raise NotFound: a path does not exist.
        """
        self._child_fds: list[int] = []
        self._holds: list[int] = []
        self._stdin_hold = -1
        self.terminal: Terminal | None = None
        try:
            if spec.terminal:
                self._open_terminal(spec, directory)
            else:
                self._open_streams(spec, owner)
        except BaseException:
            self.close()
            raise

    @property
    def child_fds(self) -> tuple[int, int, int]:
        """The descriptors for the process's 0, 1 and 2."""
        stdin, stdout, stderr = self._child_fds
        return stdin, stdout, stderr

    def release_child(self) -> None:
        """Close the process's ends in this process, once it has them."""
        for fd in self._child_fds:
            os.close(fd)
        self._child_fds.clear()

    def close_stdin(self) -> None:
        """Let the process read end-of-file once the engine's writer is gone too; what is buffered is still read."""
        if self._stdin_hold >= 0:
            os.close(self._stdin_hold)
            self._stdin_hold = -1

    def close(self) -> None:
        """Close everything."""
        self.release_child()
        self.close_stdin()
        if self.terminal is not None:
            self.terminal.close()
            self.terminal = None
        for fd in self._holds:
            os.close(fd)
        self._holds.clear()

    def _open_streams(self, spec: StdioSpec, owner: tuple[int, int]) -> None:
        if spec.stdin:
            child, self._stdin_hold = open_fifo(spec.stdin, owner)
            self._child_fds.append(child)
            os.set_blocking(child, True)
        else:
            self._child_fds.append(_open_null())
        for path in (spec.stdout, spec.stderr):
            if not path:
                self._child_fds.append(_open_null())
            elif path.startswith("file://"):
                self._child_fds.append(_open_log_file(path.removeprefix("file://"), owner))
            else:
                hold, child = open_fifo(path, owner)
                self._holds.append(hold)
                self._child_fds.append(child)
                os.set_blocking(child, True)

    def _open_terminal(self, spec: StdioSpec, directory: str) -> None:
        # Engines may name a FIFO for stderr all the same: a terminal has one output, and they expect no second.
        root = (0, 0)
        source, sink = -1, -1
        with contextlib.ExitStack() as undo:
            if spec.stdin:
                source, self._stdin_hold = open_fifo(spec.stdin, root)
                undo.callback(os.close, source)
            if spec.stdout:
                hold, sink = open_fifo(spec.stdout, root)
                self._holds.append(hold)
                undo.callback(os.close, sink)
            self.terminal = Terminal(directory, source, sink)
            undo.pop_all()
        for _ in range(3):
            self._child_fds.append(_open_null())


def open_fifo(path: str, owner: tuple[int, int]) -> tuple[int, int]:
    """Open both ends of a FIFO, which then belongs to `owner`: (read end, write end), both non-blocking."""
    inode = _pin_fifo(path)
    try:
        link = f"/proc/self/fd/{inode}"
        reader = os.open(link, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if owner != (0, 0):
                os.fchown(reader, *owner)
            return reader, os.open(link, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except BaseException:
            os.close(reader)
            raise
    finally:
        os.close(inode)


def _pin_fifo(path: str) -> int:
    """Return an O_PATH descriptor of a FIFO: what is checked is what will be opened, whatever happens to the path."""
    path = path.removeprefix("fifo://")
    if "://" in path:
        scheme = path.split("://", 1)[0]
        raise InvalidArgument(
            f'standard streams of the form {scheme}:// are not supported: use FIFOs (containerd: io_type = "") or file://'
        )
    if not path.startswith("/") or "/../" in path or "\0" in path:
        raise InvalidArgument(
            f"the path of a standard stream must be absolute and without '..': {path[:200]!r}"
        )
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"the FIFO {path[:200]} of a standard stream does not exist") from None
    except OSError as error:
        if error.errno in _OUR_FAULT:
            raise
        raise InvalidArgument(
            f"cannot open {path[:200]!r} for a standard stream: {error.strerror}"
        ) from error
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidArgument(f"{path[:200]} is not a FIFO: standard streams must be FIFOs or file:// URIs")
    return fd


def _open_log_file(path: str, owner: tuple[int, int]) -> int:
    if not path.startswith("/") or "/../" in path or "\0" in path:
        raise InvalidArgument(
            f"the path of a file:// stream must be absolute and without '..': {path[:200]!r}"
        )
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o640)
    except OSError as error:
        if error.errno in _OUR_FAULT:
            raise
        raise InvalidArgument(
            f"cannot open file://{path[:200]} for a standard stream: {error.strerror}"
        ) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidArgument(f"file://{path[:200]} is not a regular file")
        os.set_blocking(fd, True)
        if owner != (0, 0):
            os.fchown(fd, *owner)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_null() -> int:
    return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
