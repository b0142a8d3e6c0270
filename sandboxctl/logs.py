"""Where the output of a container is, and what a line of it says.

An engine of Kubernetes' CRI writes a file per container. A line is "<RFC 3339 time> <stdout or stderr> <P or F>
<text>"; P says that the container's line goes on in the next one (Kubernetes: design/kubelet-cri-logging).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from common.errors import NotFound, Unavailable
from sandboxctl.pods import Container
from sandboxers.embedded import is_embedded

_FILE_SCHEME = "file://"
_ENGINE_TIMEOUT_S = 5.0
_LOOK_INTERVAL_S = 0.2


class LogLine(NamedTuple):
    """`partial` tells that the container's line goes on; `time` is "" where nobody has noted it."""

    time: str
    stream: str
    partial: bool
    text: str


@dataclass(frozen=True, slots=True)
class Log:
    """A file that a container's output goes to, `annotated` as CRI engines do it or as it came."""

    path: str
    annotated: bool

    def lines(self, tail: int | None, goes_on: Callable[[], bool]) -> Iterator[LogLine]:
        """Yield the lines that are there, or the last `tail` of them, and further ones while `goes_on` says so.

        A file that is rotated away is read to its end, then the new one.
        """
        parse = parse_line if self.annotated else _raw_line
        file = self._open()
        try:
            if tail is not None:
                yield from map(parse, deque(_complete_lines(file), maxlen=tail))
            while True:
                more = goes_on()
                yield from map(parse, _complete_lines(file))
                if not more:
                    break
                if self._is_rotated(file):
                    file.close()
                    file = self._open()
                    continue
                time.sleep(_LOOK_INTERVAL_S)
            if rest := file.read():
                yield parse(rest)
        finally:
            file.close()

    def _open(self) -> BinaryIO:
        try:
            return open(self.path, "rb")
        except FileNotFoundError:
            raise NotFound(f"the log {self.path} does not exist (any more)") from None

    def _is_rotated(self, file: BinaryIO) -> bool:
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(file.fileno()))
        except FileNotFoundError:
            return False  # the new one is about to be made


def find_log(container: Container) -> Log:
    """Return where a container's output goes.

    :raise NotFound: not to a file that anybody knows of; the text says who has it.
    """
    record = container.record
    if record.stdout.startswith(_FILE_SCHEME):
        return Log(record.stdout.removeprefix(_FILE_SCHEME), annotated=False)
    if is_embedded(container.pod.id):
        from sandboxctl.embedded.records import load_record

        return Log(load_record(container.pod.id).log_file(container.name), annotated=False)
    from sandboxers.engine import find_log_path  # late: it loads gRPC

    address = container.pod.daemon.config.engine.asked_at
    try:
        path = asyncio.run(find_log_path(address, container.id, _ENGINE_TIMEOUT_S))
    except Unavailable as error:
        raise NotFound(
            f"the output of container {container.id} goes to its engine, which does not say where it is: {error}"
        ) from None
    if not path:
        raise NotFound(f"the engine at {address} keeps no log of container {container.id}")
    return Log(path, annotated=True)


def parse_line(line: bytes) -> LogLine:
    """Return what a line of a CRI log says; one that is none is text."""
    fields = line.decode(errors="replace").removesuffix("\n").split(" ", 3)
    if len(fields) == 4 and fields[1] in ("stdout", "stderr"):
        when, stream, tags, text = fields
        return LogLine(when, stream, tags.partition(":")[0] == "P", text)
    return _raw_line(line)


def _raw_line(line: bytes) -> LogLine:
    return LogLine("", "stdout", not line.endswith(b"\n"), line.decode(errors="replace").removesuffix("\n"))


def _complete_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines from here on, but not the last one while it is being written."""
    while True:
        start = file.tell()
        line = file.readline()
        if not line.endswith(b"\n"):
            file.seek(start)
            return
        yield line
