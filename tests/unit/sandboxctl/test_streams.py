"""Output arrives whole, however slow its reader is; input waits for no reader."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.readiness import wait_readable
from sandboxctl import streams
from sandboxctl.streams import InputFifo, Output

PAGE_BYTES = 4096


class Ends:
    """What a process writes to, what we read of it, and the pipe that is our output, which holds one page."""

    def __init__(self, directory: Path) -> None:
        self.source, self.process = os.pipe2(os.O_NONBLOCK)
        self.looker, self.sink = os.pipe()
        fcntl.fcntl(self.sink, fcntl.F_SETPIPE_SZ, PAGE_BYTES)
        self.log = directory / "log"

    def carry(self, prefix: bytes = b"") -> Output:
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        return Output(self.source, self.sink, log=log, prefix=prefix)

    def end(self) -> None:
        """Let the process end."""
        os.close(self.process)

    async def look(self, output: Output) -> bytes:
        """Read what is delivered until there is no more."""
        finishing = asyncio.create_task(output.finish())
        finishing.add_done_callback(lambda _: os.close(self.sink))
        seen = bytearray()
        await wait_readable(self.looker)
        while data := os.read(self.looker, PAGE_BYTES):
            seen += data
            await wait_readable(self.looker)
        await finishing
        return bytes(seen)


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    ends = Ends(tmp_path)
    yield ends
    os.close(ends.looker)


async def settled() -> None:
    """Let what can happen now happen."""
    for _ in range(100):
        await asyncio.sleep(0)


async def test_a_slow_reader_gets_all_and_stops_nothing_else(ends: Ends) -> None:
    written = bytes(range(256)) * 200
    os.write(ends.process, written)
    output = ends.carry()
    await settled()  # the loop runs, though the pipe that we were given blocks
    ends.end()
    assert await ends.look(output) == written
    assert ends.log.read_bytes() == written


async def test_the_log_is_finished_before_the_reader_has_taken_anything(ends: Ends) -> None:
    output = ends.carry()
    for _ in range(3):
        os.write(ends.process, b"x" * 2 * PAGE_BYTES)
        await settled()
    ends.end()
    finishing = asyncio.create_task(output.finish())
    await settled()
    assert not finishing.done()
    assert ends.log.stat().st_size == 6 * PAGE_BYTES
    output.close()
    await finishing
    os.close(ends.sink)


async def test_a_reader_that_looks_away_ends_nothing_but_its_own_output(ends: Ends, tmp_path: Path) -> None:
    os.close(ends.looker)
    ends.looker = os.open("/dev/null", os.O_RDONLY)
    output = ends.carry()
    for _ in range(3):
        os.write(ends.process, b"x" * 2 * PAGE_BYTES)
        await settled()
    ends.end()
    await output.finish()
    assert ends.log.stat().st_size == 6 * PAGE_BYTES
    os.close(ends.sink)


async def test_an_output_that_does_not_block_has_not_looked_away(ends: Ends) -> None:
    os.set_blocking(ends.sink, False)
    written = b"y" * 5 * PAGE_BYTES
    os.write(ends.process, written)
    output = ends.carry()
    await settled()
    ends.end()
    assert await ends.look(output) == written


async def test_what_is_left_running_delays_the_end_but_loses_nothing(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_REST_LIMIT_S", 0.05)
    written = b"z" * 3 * PAGE_BYTES
    os.write(ends.process, written)
    output = ends.carry()
    await settled()
    assert await ends.look(output) == written
    ends.end()


async def test_lines_are_labelled_wherever_they_are_torn(ends: Ends) -> None:
    output = ends.carry(b"a | ")
    for part in (b"one\ntw", b"o\n", b"\nlast"):
        os.write(ends.process, part)
        await settled()
    ends.end()
    assert await ends.look(output) == b"a | one\na | two\na | \na | last"
    assert ends.log.read_bytes() == b"one\ntwo\n\nlast"


def test_input_is_opened_though_its_process_has_ended(tmp_path: Path) -> None:
    fifo = InputFifo(str(tmp_path / "stdin"))
    writer = fifo.take()
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"too late")
    os.close(writer)
    fifo.close()


def test_input_reaches_a_process_that_reads_later(tmp_path: Path) -> None:
    path = str(tmp_path / "stdin")
    fifo = InputFifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = fifo.take()
    os.write(writer, b"typed")
    os.close(writer)
    assert (os.read(reader, 9), os.read(reader, 9)) == (b"typed", b"")
    os.close(reader)
