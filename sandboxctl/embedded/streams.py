"""Where the output of containers goes, and where their input comes from.

A detached container writes to its log file itself, so that nobody has to be there. One in the foreground has FIFOs,
as under any engine, and threads of this process carry what goes through them, to the log as well.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import NamedTuple

from common.process.exits import ExitWatcher
from common.process.spawn import spawn

_CHUNK_BYTES = 65536
_DRAIN_LIMIT_S = 5.0


class StreamNames(NamedTuple):
    """The standard streams of a process as the Task service is told of them."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""


class FileStreams:
    """The streams of a container that writes to its log itself."""

    def __init__(self, log_file: str) -> None:
        self.names = StreamNames(stdout=f"file://{log_file}", stderr=f"file://{log_file}")

    def begin(self) -> None:
        """Nothing is to be done once the container is made."""

    def close(self) -> None:
        """Nothing was opened."""


class CopiedStreams:
    """The streams of a container that cannot write to its log itself, as in a virtual machine: a `cat` does it, which
    ends with the output."""

    def __init__(self, directory: str, log_file: str, watcher: ExitWatcher) -> None:
        self._log_file, self._watcher = log_file, watcher
        self.names = StreamNames(
            stdout=_make_fifo(directory, "stdout"), stderr=_make_fifo(directory, "stderr")
        )
        # Before anybody writes, so that no output is lost.
        self._readers = [_open_reader(path) for path in (self.names.stdout, self.names.stderr)]

    def begin(self) -> None:
        """Copy from now on: the container is made, so the FIFOs have writers."""
        log = _open_log(self._log_file)
        try:
            for reader in self._readers:
                os.set_blocking(reader, True)
                spawn(["cat"], watcher=self._watcher, stdin=reader, stdout=log).forget()
        finally:
            os.close(log)

    def close(self) -> None:
        """Let go of the FIFOs here. Idempotent."""
        while self._readers:
            os.close(self._readers.pop())


class ForegroundStreams:
    """The streams of a container that somebody is watching. `close` when the container has ended."""

    def __init__(
        self, directory: str, log_file: str, *, stdin: bool, terminal: bool, prefix: str = ""
    ) -> None:
        """:param prefix: what each line of output begins with, to tell containers apart."""
        self._log_file, self._prefix = log_file, prefix.encode()
        self.names = StreamNames(
            _make_fifo(directory, "stdin") if stdin else "",
            _make_fifo(directory, "stdout"),
            "" if terminal else _make_fifo(directory, "stderr"),
        )
        self._outputs = [(_open_reader(self.names.stdout), sys.stdout.fileno())]
        if self.names.stderr:
            self._outputs.append((_open_reader(self.names.stderr), sys.stderr.fileno()))
        self._threads: list[threading.Thread] = []
        self._is_carrying = False

    def begin(self) -> None:
        """Carry output from now on: the container is made, so the FIFOs have writers."""
        self._is_carrying = True
        for reader, target in self._outputs:
            os.set_blocking(reader, True)
            log = _open_log(self._log_file)
            thread = threading.Thread(target=_carry, args=(reader, target, log, self._prefix), daemon=True)
            self._threads.append(thread)
            thread.start()

    def begin_input(self, at_end: Callable[[], None]) -> None:
        """Carry input from now on; `at_end` is called, by another thread, when there is no more."""
        if self.names.stdin:
            writer = os.open(self.names.stdin, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.set_blocking(writer, True)
            # Not waited for: whoever types may go on typing when nobody listens any more.
            threading.Thread(target=_feed, args=(writer, at_end), daemon=True).start()

    def close(self) -> None:
        """Wait until all output is carried, which ends with the processes that write it. Idempotent."""
        if not self._is_carrying:
            while self._outputs:
                os.close(self._outputs.pop()[0])
        for thread in self._threads:
            thread.join(_DRAIN_LIMIT_S)
        self._threads.clear()


Streams = FileStreams | CopiedStreams | ForegroundStreams


def _carry(reader: int, target: int, log: int, prefix: bytes) -> None:
    """Copy to the log and to where somebody looks, who may look away: then the log gets the rest."""
    is_wanted, at_line_start = True, True
    with contextlib.ExitStack() as closing:
        closing.callback(os.close, reader)
        closing.callback(os.close, log)
        while data := os.read(reader, _CHUNK_BYTES):
            # A log that cannot be written, for want of space, stops neither the container nor the output.
            with contextlib.suppress(OSError):
                _write_all(log, data)
            if is_wanted:
                shown = data
                if prefix:
                    shown, at_line_start = _prefixed(data, prefix, at_line_start)
                try:
                    _write_all(target, shown)
                except OSError:
                    is_wanted = False


def _prefixed(data: bytes, prefix: bytes, at_line_start: bool) -> tuple[bytes, bool]:
    lines = data.splitlines(keepends=True)
    shown = [
        line if number == 0 and not at_line_start else prefix + line for number, line in enumerate(lines)
    ]
    return b"".join(shown), data.endswith(b"\n")


def _feed(writer: int, at_end: Callable[[], None]) -> None:
    with contextlib.suppress(OSError):  # the process has ended, or has closed its input
        while data := os.read(sys.stdin.fileno(), _CHUNK_BYTES):
            _write_all(writer, data)
    os.close(writer)
    # The loop may be over by now, as the container then is.
    with contextlib.suppress(RuntimeError):
        at_end()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _make_fifo(directory: str, name: str) -> str:
    path = f"{directory}/{name}"
    os.mkfifo(path, 0o600)
    return path


def _open_reader(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _open_log(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
