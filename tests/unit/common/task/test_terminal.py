"""Terminals: a runtime sends a real pty master, and bytes flow between it and the engine's FIFOs."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import stat
import time
import tty
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from common.descriptors.store import DescriptorStore, NoStore
from common.errors import DeadlineExceeded, Internal
from common.linux.terminal import get_window_size
from common.task.stdio import Stdio, StdioSpec
from common.task.terminal import Terminal
from tests.descriptor_store import KeptInMemory
from tests.unit.common.task.conftest import open_descriptors, until

MkFifo = Callable[[str], str]


class Console:
    """Both sides of a terminal: the runtime and process on one, the engine's ends of the FIFOs on the other."""

    def __init__(
        self, directory: Path, stdin: str, stdout: str, store: DescriptorStore | None = None
    ) -> None:
        self.spec = StdioSpec(True, stdin, stdout, "")
        self.stdio = Stdio(self.spec, (0, 0), str(directory), store or NoStore(), "t1")
        assert self.stdio.terminal is not None
        self.terminal: Terminal = self.stdio.terminal
        self.to_process = os.open(stdin, os.O_WRONLY | os.O_NONBLOCK) if stdin else -1
        self.from_process = os.open(stdout, os.O_RDONLY | os.O_NONBLOCK) if stdout else -1
        self.slave = -1

    async def connect(self) -> None:
        """Be the runtime: make a pty, send its master, keep the slave as the process would."""
        master, self.slave = os.openpty()
        tty.setraw(self.slave)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.terminal.socket_path)
            socket.send_fds(sock, [b"/dev/ptmx"], [master])
        os.close(master)
        await self.terminal.receive_master(5)

    def read(self) -> bytes | None:
        """What the engine reads now: bytes, b"" at the end, None for nothing yet."""
        try:
            return os.read(self.from_process, 1 << 20)
        except BlockingIOError:
            return None

    async def read_all(self, count: int) -> bytes:
        data = b""
        async with asyncio.timeout(20):
            while len(data) < count:
                data += self.read() or b""
                await asyncio.sleep(0)
        return data

    async def input(self) -> bytes:
        """Be a process that reads: what came first."""
        await asyncio.get_running_loop().run_in_executor(None, select.select, [self.slave], [], [], 10)
        return os.read(self.slave, 100)

    async def write_until_full(self) -> int:
        """Be a process that writes until it would block for long; return how much that was."""
        os.set_blocking(self.slave, False)
        written, idle = 0, 0
        while idle < 250 and written < 1 << 20:
            try:
                written += os.write(self.slave, b"y" * 4096)
                idle = 0
            except BlockingIOError:
                idle += 1
                await asyncio.sleep(0.001)
        return written

    def hang_up(self) -> None:
        """End the process: its side of the terminal is closed."""
        os.close(self.slave)
        self.slave = -1

    def close(self) -> None:
        self.stdio.close()
        for fd in (self.to_process, self.from_process, self.slave):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
async def console(tmp_path: Path, fifo: MkFifo) -> AsyncIterator[Console]:
    console = Console(tmp_path, fifo("in"), fifo("out"))
    yield console
    console.close()


async def test_bytes_pass_both_ways(console: Console) -> None:
    await console.connect()
    os.write(console.slave, b"prompt> ")
    assert await console.read_all(8) == b"prompt> "
    os.write(console.to_process, b"ls\n")
    assert await console.input() == b"ls\n"


async def test_the_socket_is_ours_alone_and_gone_once_used(console: Console) -> None:
    path = console.terminal.socket_path
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    await console.connect()
    assert not os.path.exists(path)
    assert [os.get_inheritable(int(line.split()[0])) for line in open_descriptors() if "ptmx" in line] == [
        False
    ]


async def test_the_size_is_set_before_and_after_the_terminal_exists(console: Console) -> None:
    console.terminal.resize(80, 24)
    console.terminal.resize(132, 43)
    await console.connect()
    assert get_window_size(console.slave) == (132, 43)
    console.terminal.resize(20, 10)
    assert get_window_size(console.slave) == (20, 10)


async def test_an_end_of_the_process_ends_the_output_after_the_last_byte(console: Console) -> None:
    await console.connect()
    os.write(console.slave, b"x" * 3000)
    console.hang_up()
    assert await console.read_all(3000) == b"x" * 3000
    await until(lambda: console.read() == b"")
    console.terminal.resize(1, 1)  # an engine may ask at any time


async def test_a_reader_that_does_not_read_stops_the_process_and_nobody_else(console: Console) -> None:
    await console.connect()
    written = await console.write_until_full()
    assert 65_536 <= written < 400_000, "a FIFO, a buffer of ours and the terminal's, not more"
    begun_s = time.thread_time()
    await asyncio.sleep(0.1)
    assert time.thread_time() - begun_s < 0.05, "the loop does not spin"
    assert await console.read_all(written) == b"y" * written
    os.write(console.slave, b"more")
    assert await console.read_all(4) == b"more"


async def test_output_that_waits_at_the_end_is_not_lost(console: Console) -> None:
    await console.connect()
    written = await console.write_until_full()
    console.hang_up()
    await asyncio.sleep(0.02)
    assert await console.read_all(written) == b"y" * written
    await until(lambda: console.read() == b"")


async def test_a_process_that_does_not_read_stops_the_engines_input_only(console: Console) -> None:
    await console.connect()
    sent = 0
    for _ in range(200):
        try:
            sent += os.write(console.to_process, b"i" * 4096)
        except BlockingIOError:
            await asyncio.sleep(0.001)
    assert sent < 400_000
    os.write(console.slave, b"out")
    assert await console.read_all(3) == b"out", "output goes on"
    os.set_blocking(console.slave, False)
    received = 0
    async with asyncio.timeout(20):
        while received < sent:
            try:
                received += len(os.read(console.slave, 65536))
            except BlockingIOError:
                await asyncio.sleep(0)
    assert received == sent


async def test_input_survives_a_writer_that_leaves_until_it_is_closed(
    console: Console, tmp_path: Path
) -> None:
    await console.connect()
    os.close(console.to_process)
    console.to_process = -1
    await asyncio.sleep(0.02)
    with open(tmp_path / "in", "wb", buffering=0) as writer:
        writer.write(b"again\n")
    assert await console.input() == b"again\n"
    console.stdio.close_stdin()
    await asyncio.sleep(0.01)
    with pytest.raises(OSError, match="No such device"):
        os.open(tmp_path / "in", os.O_WRONLY | os.O_NONBLOCK)
    os.write(console.slave, b"still")
    assert await console.read_all(5) == b"still"


@pytest.mark.parametrize("confirmed", [True, False])
async def test_a_terminal_goes_on_in_another_daemon(tmp_path: Path, fifo: MkFifo, confirmed: bool) -> None:
    store = KeptInMemory()
    console = Console(tmp_path, fifo("in"), fifo("out"), store)
    await console.connect()
    if confirmed:
        console.stdio.confirm()
    before = console.stdio
    store.restart()
    console.stdio, _ = Stdio.recover(console.spec, False, store, "t1")
    before._store = NoStore()
    before.close()
    os.write(console.slave, b"still")
    assert await console.read_all(5) == b"still"
    os.write(console.to_process, b"here\n")
    assert await console.input() == b"here\n"
    console.close()
    assert store.kept == {}


@pytest.mark.parametrize("missing", ["stdin", "stdout"])
async def test_a_terminal_may_lack_a_direction(tmp_path: Path, fifo: MkFifo, missing: str) -> None:
    console = Console(
        tmp_path, "" if missing == "stdin" else fifo("in"), "" if missing == "stdout" else fifo("out")
    )
    await console.connect()
    os.set_blocking(console.slave, False)
    written = 0
    async with asyncio.timeout(20):
        while written < 50_000:  # more than the terminal's buffer: it is read, and thrown away or delivered
            try:
                written += os.write(console.slave, b"o" * 1000)
            except BlockingIOError:
                await asyncio.sleep(0.001)
    if missing == "stdin":
        assert len(await console.read_all(written)) == written
    else:
        os.write(console.to_process, b"in")
        assert await console.input() == b"in"
    console.hang_up()
    await asyncio.sleep(0.01)
    console.close()


async def test_closing_at_any_moment_leaves_nothing(tmp_path: Path, fifo: MkFifo) -> None:
    source, sink = fifo("in"), fifo("out")
    before = open_descriptors()
    for moment in range(4):
        console = Console(tmp_path, source, sink)
        if moment > 0:
            await console.connect()
        if moment > 1:
            os.set_blocking(console.slave, False)
            for _ in range(100):
                try:
                    os.write(console.slave, b"x" * 4096)
                    os.write(console.to_process, b"x" * 4096)
                except BlockingIOError:
                    await asyncio.sleep(0)
        if moment > 2:
            console.hang_up()
            await asyncio.sleep(0.01)
        console.close()
        console.terminal.close()
        assert open_descriptors() == before
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


async def test_a_runtime_that_never_connects_is_a_deadline(console: Console) -> None:
    with pytest.raises(DeadlineExceeded, match=r"no terminal within 0\.05 s"):
        await console.terminal.receive_master(0.05)


async def test_a_runtime_that_connects_and_sends_nothing_delays_nobody(console: Console) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(console.terminal.socket_path)
        receive = asyncio.ensure_future(console.terminal.receive_master(1))
        await asyncio.sleep(0.05)
        assert not receive.done(), "the loop goes on meanwhile"
        with pytest.raises(DeadlineExceeded):
            await receive


async def test_a_runtime_that_sends_no_descriptor_is_its_own_fault(console: Console) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(console.terminal.socket_path)
        sock.send(b"/dev/ptmx")
        with pytest.raises(Internal, match="no descriptor"):
            await console.terminal.receive_master(1)
