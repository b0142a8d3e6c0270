"""A process's standard streams, as the engine names them: FIFOs handed straight to the process.

Facts (fifo(7), pipe(7); engine contract section 4.1): a reader that vanishes kills the writer with SIGPIPE
unless somebody else holds a read end, and that hold must not be a write end, or the engine would never see
the end of the output. So the daemon holds O_RDONLY on what the process writes, O_WRONLY on what it reads.

Copies of the holds go to a descriptor store, so that a writer of logs and a reader of stdin do not notice the
daemon's death. Kept in four groups, since they end at different times: what ends with the process's record
("t", with its pidfd), the hold on stdin ("i"), a terminal with its FIFOs ("y"), and what the process is given ("o")
until it has it: an engine that once saw the end of the output does not read on when the process is made after all.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from functools import partial

from common.descriptors.store import DescriptorStore, NoStore, all_sent
from common.errors import InvalidArgument, SandboxdError
from common.failpoints import Failpoint, failpoint
from common.task.fifos import (
    OUR_FAULT,
    READER_TIMEOUT_S,
    open_again,
    open_both_ends,
    open_end,
    readers_came,
    reopen_end,
)
from common.task.terminal import Terminal


@dataclass(frozen=True, slots=True)
class StdioSpec:
    """The strings of a Create or Exec request; State gives them back letter by letter."""

    terminal: bool
    stdin: str
    stdout: str
    stderr: str


NO_STDIO = StdioSpec(False, "", "", "")

PROCESS_GROUP = "t"
_STDIN_GROUP = "i"
_TERMINAL_GROUP = "y"
_GIVEN_GROUP = "o"
_NO_STORE = NoStore()


class Stdio:
    """The open streams of one process. Owns its descriptors; every closing method is idempotent.

    Life: open, `attend()`, hand `child_fds` to the process, `release_child()`, `confirm()`, `close_stdin()` when the
    engine asks or the process has ended, `close()` when the process is deleted.
    """

    __slots__ = (
        "_child_fds",
        "_holds",
        "_keeps_given",
        "_name",
        "_stdin_hold",
        "_store",
        "_unread",
        "terminal",
    )

    def __init__(
        self,
        spec: StdioSpec,
        owner: tuple[int, int],
        directory: str,
        store: DescriptorStore = _NO_STORE,
        name: str = "",
    ) -> None:
        """Open the streams.

        :param owner: the host's uid and gid of the process, who must be able to reopen /dev/stdout.
        :param directory: where the console socket of a terminal may lie for a moment.
        :param store: where copies are kept, under `name` of the kind `PROCESS_GROUP`.
        :raise InvalidArgument: a path is not a FIFO (or file:// URI), or uses a scheme that is not supported.
        :raise NotFound: a path does not exist.
        """
        self._child_fds: list[int] = []
        self._holds: list[int] = []
        self._stdin_hold = -1
        self._store = store
        self._name = name
        self._keeps_given = False
        self._unread: list[int] = []
        self.terminal: Terminal | None = None
        try:
            if not directory:
                return
            if spec.terminal:
                self._open_terminal(spec, directory)
            else:
                self._open_streams(spec, owner)
            if self._stdin_hold >= 0:
                self._put(_STDIN_GROUP, [self._stdin_hold])
        except BaseException:
            self.close()
            raise

    @classmethod
    def recover(
        cls, spec: StdioSpec, stdin_closed: bool, store: DescriptorStore, name: str
    ) -> tuple[Stdio, int | None]:
        """Go on with the streams of a process that an earlier daemon has started; return its pidfd too, if it was kept.

        What was not kept is opened anew where that helps: a lost terminal cannot be.
        """
        stdio = cls(spec, (0, 0), "", store, name)
        kept = _Kept.take(store, name)
        _close_given(store, name)
        stdio._remove(_GIVEN_GROUP)
        if stdin_closed:
            stdio._remove(_STDIN_GROUP)
        else:
            stdio._stdin_hold, kept.stdin_hold = kept.stdin_hold, -1
        if spec.terminal:
            if kept.master >= 0:
                stdio._attach(Terminal.recover(kept.master, kept.source, kept.sink))
                kept.master = kept.source = kept.sink = -1
        else:
            stdio._holds, kept.holds = kept.holds, []
            if not stdio._holds:
                stdio._hold_again(spec, stdin_closed)
        pidfd, kept.pidfd = kept.pidfd, -1
        kept.close()
        return stdio, pidfd if pidfd >= 0 else None

    @staticmethod
    def discard(spec: StdioSpec, store: DescriptorStore, name: str, *, reopen: bool) -> str:
        """Let go of the streams of a process that an earlier daemon has not made.

        Copies of what it was to be given stay kept, lest the engine sees an end of them, under the name that is
        returned: remove that when the process was made after all, or never will be. Empty if there is nothing.

        :param reopen: whether what was not kept yet is opened anew, for its holder (`common.linux.fd_holder`) goes when
            recovery is over.
        """
        if not name or not store.keeps:
            return ""
        _Kept.take(store, name).close()
        for group in (PROCESS_GROUP, _STDIN_GROUP, _TERMINAL_GROUP):
            store.remove(group + name[1:])
        group, given = _GIVEN_GROUP + name[1:], _given_fifos(spec)
        kept = _close_given(store, name)
        if reopen and kept < len(given):
            for path, mode in given:
                with contextlib.suppress(SandboxdError, OSError):
                    fd = open_end(path, mode)
                    store.put(group, [fd])
                    os.close(fd)
                    kept += 1
        return group if kept else ""

    async def attend(self, timeout_s: float = READER_TIMEOUT_S) -> None:
        """Return when the engine reads the output: at once, normally. Only then is the process to be made."""
        await readers_came(self._unread, timeout_s)
        while self._unread:
            self._holds.append(reopen_end(self._unread.pop(0), os.O_RDONLY))

    def keep(self, pidfd: int) -> None:
        """Let copies of what the process needs to live on be kept, its pidfd among them."""
        if self._store.keeps:
            self._put(PROCESS_GROUP, [pidfd, *self._holds])

    async def kept(self) -> None:
        """Return when our death does not end what the process needs: at once, normally."""
        await all_sent(self._store)

    def _keep_terminal(self) -> None:
        if self.terminal is not None and self.terminal.fds:
            self._put(_TERMINAL_GROUP, self.terminal.fds)
            self._attach(self.terminal)
            failpoint(Failpoint.TERMINAL_RECEIVED)

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

    def confirm(self) -> None:
        """Keep what the process was given no longer: it is on record as made, and will not be made again."""
        if self._keeps_given:
            self._keeps_given = False
            self._remove(_GIVEN_GROUP)

    def close_stdin(self) -> None:
        """Let the process read end-of-file once the engine's writer is gone too; what is buffered is still read."""
        if self._stdin_hold >= 0:
            os.close(self._stdin_hold)
            self._stdin_hold = -1
            self._remove(_STDIN_GROUP)
            failpoint(Failpoint.STDIN_CLOSED)

    @property
    def is_behind(self) -> bool:
        """Whether output that was written is still to be passed on by this process."""
        return False

    async def pass_on(self, timeout_s: float) -> None:
        """Pass that output on, or give up after `timeout_s`."""

    def close(self) -> None:
        """Close everything."""
        self._unread.clear()
        self._remove(PROCESS_GROUP)
        self.confirm()
        self.release_child()
        self.close_stdin()
        if self.terminal is not None:
            self.terminal.close()
            self.terminal = None
        for fd in self._holds:
            os.close(fd)
        self._holds.clear()

    def _put(self, group: str, fds: list[int]) -> None:
        if self._name:
            self._store.put(group + self._name[1:], fds)

    def _remove(self, group: str) -> None:
        if self._name:
            self._store.remove(group + self._name[1:])

    def _keep_given(self, fds: list[int]) -> None:
        if fds and self._store.keeps:
            self._keeps_given = True
            self._put(_GIVEN_GROUP, fds)

    def _attach(self, terminal: Terminal) -> None:
        self.terminal = terminal
        terminal.on_close = partial(self._remove, _TERMINAL_GROUP)

    def _hold_again(self, spec: StdioSpec, stdin_closed: bool) -> None:
        for path in (spec.stdout, spec.stderr):
            if path and not path.startswith("file://"):
                with contextlib.suppress(SandboxdError, OSError):
                    hold, writer = open_both_ends(path, None)
                    os.close(writer)
                    self._holds.append(hold)
        if spec.stdin and not stdin_closed and self._stdin_hold < 0:
            with contextlib.suppress(SandboxdError, OSError):
                reader, self._stdin_hold = open_both_ends(spec.stdin, None)
                os.close(reader)

    def _open_streams(self, spec: StdioSpec, owner: tuple[int, int]) -> None:
        given: list[int] = []
        if spec.stdin:
            child = self._open_input(spec.stdin, owner)
            self._child_fds.append(child)
            given.append(child)
        else:
            self._child_fds.append(_open_null())
        self._keep_given(given)
        for path in (spec.stdout, spec.stderr):
            if not path:
                self._child_fds.append(_open_null())
            elif path.startswith("file://"):
                self._child_fds.append(_open_log_file(path.removeprefix("file://"), owner))
            else:
                child = self._open_output(path, owner)
                self._child_fds.append(child)
                failpoint(Failpoint.OUTPUT_OPENED)
                self._keep_given([child])
                given.append(child)
        for fd in given:
            os.set_blocking(fd, True)

    def _open_input(self, path: str, owner: tuple[int, int]) -> int:
        """Return the non-blocking read end of a pipe, and see to it that it has a writer as long as it should."""
        child, self._stdin_hold = open_both_ends(path, owner)
        return child

    def _open_output(self, path: str, owner: tuple[int, int]) -> int:
        """Return the non-blocking write end of a pipe, and let `attend` see to it that it has a reader."""
        child = open_end(path, os.O_WRONLY, owner)
        self._unread.append(child)
        return child

    def _open_terminal(self, spec: StdioSpec, directory: str) -> None:
        # Engines may name a FIFO for stderr all the same: a terminal has one output, and they expect no second.
        root = (0, 0)
        source, sink = -1, -1
        with contextlib.ExitStack() as undo:
            if spec.stdin:
                source = self._open_input(spec.stdin, root)
                undo.callback(os.close, source)
            if spec.stdout:
                sink = self._open_output(spec.stdout, root)
                undo.callback(os.close, sink)
                failpoint(Failpoint.OUTPUT_OPENED)
            with contextlib.ExitStack() as closing:
                given = []
                for fd in (source, sink):
                    if fd >= 0:
                        given.append(open_again(fd))
                        closing.callback(os.close, given[-1])
                self._keep_given(given)
            self.terminal = Terminal(directory, source, sink)
            # At once: a process whose master nobody holds is hung up.
            self.terminal.on_master = self._keep_terminal
            undo.pop_all()
        for _ in range(3):
            self._child_fds.append(_open_null())


class _Kept:
    """What a store returned of one process, told apart: pidfd, FIFO holds, terminal. Owns the descriptors."""

    __slots__ = ("holds", "master", "pidfd", "sink", "source", "stdin_hold")

    def __init__(self) -> None:
        self.pidfd = self.stdin_hold = self.master = self.source = self.sink = -1
        self.holds: list[int] = []

    @classmethod
    def take(cls, store: DescriptorStore, name: str) -> _Kept:
        from common.descriptors.kinds import is_readable  # late: a guest's streams are never taken up

        kept = cls()
        if not name:
            return kept
        for fd in store.take(PROCESS_GROUP + name[1:]):
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                kept.holds.append(fd)
            else:
                kept.pidfd = fd
        for fd in store.take(_STDIN_GROUP + name[1:]):
            kept.stdin_hold = fd
        for fd in store.take(_TERMINAL_GROUP + name[1:]):
            if not stat.S_ISFIFO(os.fstat(fd).st_mode):
                kept.master = fd
            elif is_readable(fd):
                kept.source = fd
            else:
                kept.sink = fd
        return kept

    def close(self) -> None:
        for fd in (self.pidfd, self.stdin_hold, self.master, self.source, self.sink, *self.holds):
            if fd >= 0:
                os.close(fd)


def _close_given(store: DescriptorStore, name: str) -> int:
    """Close our copies of what a process was to be given; return how many there were."""
    given = store.take(_GIVEN_GROUP + name[1:]) if name else []
    for fd in given:
        os.close(fd)
    return len(given)


def _given_fifos(spec: StdioSpec) -> list[tuple[str, int]]:
    """Return the FIFOs whose ends a process, or its terminal, is given: path and mode."""
    outputs = [spec.stdout] if spec.terminal else [spec.stdout, spec.stderr]
    fifos = [(spec.stdin, os.O_RDONLY), *((path, os.O_WRONLY) for path in outputs)]
    return [(path, mode) for path, mode in fifos if path and not path.startswith("file://")]


def _open_log_file(path: str, owner: tuple[int, int]) -> int:
    if not path.startswith("/") or "/../" in path or "\0" in path:
        raise InvalidArgument(
            f"the path of a file:// stream must be absolute and without '..': {path[:200]!r}"
        )
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o640)
    except OSError as error:
        if error.errno in OUR_FAULT:
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
