"""Where the output of containers goes, and where their input comes from.

A detached container writes to its log file itself, so that nobody has to be there. One in the foreground has FIFOs,
as under any engine, and this process carries what goes through them, to the log as well.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import NamedTuple

from common.process.exits import ExitWatcher
from common.process.spawn import spawn
from sandboxctl.streams import InputFifo, Output


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
    """The streams of a container that somebody is watching; needs a running loop."""

    def __init__(
        self, directory: str, log_file: str, *, stdin: bool, terminal: bool, prefix: str = ""
    ) -> None:
        """:param prefix: what each line of output begins with, to tell containers apart."""
        self._log_file, self._prefix = log_file, prefix.encode()
        self.names = StreamNames(
            f"{directory}/stdin" if stdin else "",
            _make_fifo(directory, "stdout"),
            "" if terminal else _make_fifo(directory, "stderr"),
        )
        self.input = InputFifo(self.names.stdin) if stdin else None
        self._readers = [(_open_reader(self.names.stdout), sys.stdout.fileno())]
        if self.names.stderr:
            self._readers.append((_open_reader(self.names.stderr), sys.stderr.fileno()))
        self._outputs: list[Output] = []

    def begin(self) -> None:
        """Carry output from now on: the container is made, so the FIFOs have writers."""
        while self._readers:
            reader, sink = self._readers.pop()
            self._outputs.append(Output(reader, sink, log=_open_log(self._log_file), prefix=self._prefix))

    async def finish(self) -> None:
        """Wait until all output is delivered: the container has ended."""
        await asyncio.gather(*(output.finish() for output in self._outputs))

    def close(self) -> None:
        """Let go of all. Idempotent."""
        if self.input:
            self.input.close()
        while self._readers:
            os.close(self._readers.pop()[0])
        for output in self._outputs:
            output.close()


Streams = FileStreams | CopiedStreams | ForegroundStreams


def _make_fifo(directory: str, name: str) -> str:
    path = f"{directory}/{name}"
    os.mkfifo(path, 0o600)
    return path


def _open_reader(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _open_log(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
