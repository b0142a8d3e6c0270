"""What every `TaskBackend` must do, whatever it runs containers with."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from common.cgroup import Hierarchies
from common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, SandboxdError
from common.linux.terminal import get_window_size
from common.process.exits import ExitStatus, ExitWatcher, Watch
from common.task.backend import PreparedContainer, TaskBackend
from common.task.stdio import Stdio, StdioSpec
from tests.children import children, reaped

MISSING = "/nonesuch/program"


class Process:
    """A process that a backend has made: its pid, its streams, its end."""

    def __init__(self, pid: int, stdio: Stdio, output: int, source: str) -> None:
        self.pid = pid
        self.stdio = stdio
        self.source = source
        self._output = output
        self.end: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self.watch: Watch | None = None

    async def code(self) -> int:
        """The exit code, once there is one."""
        return (await asyncio.wait_for(asyncio.shield(self.end), 20)).code

    def output(self) -> bytes:
        """What can be read now."""
        try:
            return os.read(self._output, 65536)
        except BlockingIOError:
            return b""

    async def expect(self, text: bytes) -> None:
        """Wait until the output has begun with `text`."""
        seen = b""
        async with asyncio.timeout(20):
            while not seen.startswith(text):
                seen += self.output()
                await asyncio.sleep(0.002)

    def close(self) -> None:
        self.stdio.close()
        os.close(self._output)


class Bench:
    """A backend, and containers of it that are gone when the test ends."""

    def __init__(self, backend: TaskBackend, exits: ExitWatcher, directory: Path, rootfs: Path) -> None:
        self.backend = backend
        self.exits = exits
        self._directory = directory
        self._rootfs = rootfs
        self._made: dict[str, PreparedContainer] = {}
        self._processes: list[Process] = []
        self._serial = 0

    def prepare(self, container_id: str, args: list[str], terminal: bool = False) -> PreparedContainer:
        """Write a bundle as a preparer leaves it."""
        directory = self._directory / container_id
        directory.mkdir()
        cgroup = f"/sandboxd-contract-{os.getpid()}-{container_id}.scope"
        spec = {
            "ociVersion": "1.0.2",
            "root": {"path": str(self._rootfs)},
            "process": self.process(args, terminal),
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["newinstance", "ptmxmode=0666", "mode=0620"]},
            ],
            "linux": {
                "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")],
                "cgroupsPath": cgroup,
            },
        }  # fmt: skip
        (directory / "config.json").write_text(json.dumps(spec))
        prepared = PreparedContainer(str(directory), str(self._rootfs), (0, 0), cgroup, True)
        self._made[container_id] = prepared
        return prepared

    @staticmethod
    def process(args: list[str], terminal: bool = False) -> dict[str, Any]:
        return {
            "args": args,
            "cwd": "/",
            "terminal": terminal,
            "user": {"uid": 0, "gid": 0},
            "env": ["PATH=/bin:/usr/bin"],
        }

    async def create(
        self, container_id: str, *args: str, terminal: bool = False
    ) -> tuple[Process, PreparedContainer]:
        prepared = self.prepare(container_id, list(args), terminal)
        stdio, output, source = await self._streams(terminal)
        try:
            with self.exits.adoption():
                pid = await self.backend.create(container_id, prepared, stdio)
                process = self._watched(pid, stdio, output, source)
        except BaseException:
            stdio.close()
            os.close(output)
            raise
        return process, prepared

    async def run(self, container_id: str, *args: str) -> tuple[Process, PreparedContainer]:
        process, prepared = await self.create(container_id, *args)
        await self.backend.start(container_id, prepared)
        return process, prepared

    async def exec(self, container_id: str, *args: str, terminal: bool = False) -> Process:
        prepared = self._made[container_id]
        self._serial += 1
        stdio, output, source = await self._streams(terminal)
        try:
            with self.exits.adoption():
                command = json.dumps(self.process(list(args), terminal)).encode()
                pid = await self.backend.exec(container_id, f"e{self._serial}", prepared, command, stdio)
                return self._watched(pid, stdio, output, source)
        except BaseException:
            stdio.close()
            os.close(output)
            raise

    async def close(self) -> None:
        for container_id, prepared in self._made.items():
            await self.backend.delete(container_id, prepared)
        for process in self._processes:
            await process.code()
            process.close()
        hierarchies = Hierarchies.read()
        left = [hierarchies.at(prepared.cgroups_path).directories() for prepared in self._made.values()]
        assert not any(left), f"cgroups are left: {left}"

    async def _streams(self, terminal: bool) -> tuple[Stdio, int, str]:
        self._serial += 1
        source, sink = (str(self._directory / f"{name}{self._serial}") for name in ("in", "out"))
        os.mkfifo(source)
        os.mkfifo(sink)
        output = os.open(sink, os.O_RDONLY | os.O_NONBLOCK)
        stdio = Stdio(StdioSpec(terminal, source, sink, ""), (0, 0), str(self._directory))
        await stdio.attend()
        return stdio, output, source

    def _watched(self, pid: int, stdio: Stdio, output: int, source: str) -> Process:
        process = Process(pid, stdio, output, source)
        process.watch = self.exits.watch(pid, process.end.set_result)
        stdio.release_child()
        self._processes.append(process)
        return process


class TaskBackendContract:
    """The suite. A subclass brings the fixture `backend` and, where it needs one, `rootfs`."""

    @pytest.fixture
    def rootfs(self, tmp_path: Path) -> Path:
        return tmp_path

    @pytest.fixture
    async def exits(self) -> AsyncIterator[ExitWatcher]:
        before = children()
        exits = ExitWatcher()
        yield exits
        await reaped(before)
        exits.close()

    @pytest.fixture
    async def bench(
        self, backend: TaskBackend, exits: ExitWatcher, tmp_path: Path, rootfs: Path
    ) -> AsyncIterator[Bench]:
        directory = tmp_path / "bundles"
        directory.mkdir()
        bench = Bench(backend, exits, directory, rootfs)
        yield bench
        await bench.close()

    async def test_a_created_container_waits_for_its_start(self, bench: Bench) -> None:
        process, prepared = await bench.create("c", "sh", "-c", "echo running; exit 7")
        await asyncio.sleep(0.05)
        assert process.output() == b""
        assert not process.end.done()
        os.kill(process.pid, 0)
        await bench.backend.start("c", prepared)
        assert await process.code() == 7
        assert process.output() == b"running\n"

    async def test_a_signal_ends_it_and_shows_in_its_code(self, bench: Bench) -> None:
        process, _ = await bench.run("c", "sleep", "60")
        assert process.watch is not None
        process.watch.signal(signal.SIGKILL)
        assert await process.code() == 137

    async def test_input_and_output_are_the_engines_fifos(self, bench: Bench) -> None:
        process, _ = await bench.run("c", "cat")
        with open(process.source, "wb", buffering=0) as source:
            source.write(b"through\n")
        await process.expect(b"through\n")
        process.stdio.close_stdin()
        assert await process.code() == 0

    async def test_an_id_is_taken_once_and_its_owner_left_alone(self, bench: Bench) -> None:
        process, prepared = await bench.run("c", "sh", "-c", "echo up; cat")
        await process.expect(b"up")
        stdio, output, _ = await bench._streams(False)
        with pytest.raises(AlreadyExists):
            await bench.backend.create("c", prepared, stdio)
        stdio.close()
        os.close(output)
        with open(process.source, "wb", buffering=0) as source:
            source.write(b"still here\n")
        await process.expect(b"\nstill here\n"[1:])

    async def test_a_missing_program_is_the_callers_fault(self, bench: Bench) -> None:
        prepared = bench.prepare("c", [MISSING])
        stdio, output, _ = await bench._streams(False)
        with pytest.raises(InvalidArgument):
            await bench.backend.create("c", prepared, stdio)
            await bench.backend.start("c", prepared)
        stdio.close()
        os.close(output)
        await bench.backend.delete("c", prepared)

    async def test_another_process_runs_beside_the_first(self, bench: Bench) -> None:
        await bench.run("c", "sleep", "60")
        first, second = [await bench.exec("c", "sh", "-c", f"echo {n}; exit {n}") for n in (3, 4)]
        assert [await first.code(), await second.code()] == [3, 4]
        assert [first.output(), second.output()] == [b"3\n", b"4\n"]

    async def test_an_exec_of_a_missing_program_is_an_error_at_once_and_leaves_nothing(
        self, bench: Bench
    ) -> None:
        _, prepared = await bench.run("c", "sleep", "60")
        before = sorted(os.listdir(prepared.directory))
        with pytest.raises(InvalidArgument):
            await bench.exec("c", MISSING)
        assert sorted(os.listdir(prepared.directory)) == before

    async def test_nothing_is_executed_in_a_container_that_has_ended(self, bench: Bench) -> None:
        process, _ = await bench.run("c", "true")
        await process.code()
        with pytest.raises((FailedPrecondition, NotFound)):
            await bench.exec("c", "true")

    async def test_what_is_frozen_goes_on_when_it_is_thawed(self, bench: Bench) -> None:
        process, prepared = await bench.run("c", "sh", "-c", "echo up; while read x; do echo got $x; done")
        await process.expect(b"up\n")
        await bench.backend.pause("c", prepared)
        with open(process.source, "wb", buffering=0) as source:
            source.write(b"word\n")
            await asyncio.sleep(0.1)
            assert process.output() == b""
            await bench.backend.resume("c", prepared)
            await process.expect(b"got word\n")

    async def test_limits_can_be_changed_and_malformed_ones_are_refused(self, bench: Bench) -> None:
        _, prepared = await bench.run("c", "sleep", "60")
        await bench.backend.update("c", prepared, b'{"cpu": {"shares": 512}}')
        with pytest.raises(SandboxdError):
            await bench.backend.update("c", prepared, b"{not json")

    @pytest.mark.parametrize("started", [False, True])
    async def test_delete_kills_what_is_left_and_may_be_repeated(self, bench: Bench, started: bool) -> None:
        process, prepared = await bench.create("c", "sleep", "60")
        if started:
            await bench.backend.start("c", prepared)
        await bench.backend.delete("c", prepared)
        assert await process.code() == 137
        await bench.backend.delete("c", prepared)

    async def test_delete_of_what_never_was_is_no_error(self, bench: Bench) -> None:
        await bench.backend.delete("c", bench.prepare("c", ["true"]))

    async def test_a_container_can_have_a_terminal(self, bench: Bench) -> None:
        process, prepared = await bench.create("c", "sh", "-c", "test -t 0 && echo tty", terminal=True)
        assert process.stdio.terminal is not None
        process.stdio.terminal.resize(91, 31)
        assert get_window_size(process.stdio.terminal._master) == (91, 31)
        await bench.backend.start("c", prepared)
        await process.expect(b"tty\r\n")
        assert await process.code() == 0

    async def test_an_exec_can_have_a_terminal(self, bench: Bench) -> None:
        await bench.run("c", "sleep", "60")
        process = await bench.exec("c", "sh", "-c", "test -t 1 && echo tty; exit 5", terminal=True)
        await process.expect(b"tty\r\n")
        assert await process.code() == 5

    async def test_containers_do_not_disturb_each_other(self, bench: Bench) -> None:
        processes = await asyncio.gather(*(bench.run(f"c{n}", "sh", "-c", f"exit {n}") for n in range(5)))
        assert [await process.code() for process, _ in processes] == list(range(5))
