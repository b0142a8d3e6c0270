"""The guest's runtime, with a program in crun's place that says by a file that it was run."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.errors import FailedPrecondition
from common.process.exits import ExitWatcher
from vmm.agent.runtime import GuestRuntime, MountNamespaces

CRUN = """\
#!/bin/sh
echo "$@" >"$0.run"
"""


class Lab:
    """A runtime whose state has one container."""

    def __init__(self, directory: Path, watcher: ExitWatcher) -> None:
        self.crun = directory / "crun"
        self.crun.write_text(CRUN)
        self.crun.chmod(0o755)
        self.fifo = directory / "state/one/exec.fifo"
        self.fifo.parent.mkdir(parents=True)
        self.namespaces = MountNamespaces()
        self.runtime = GuestRuntime(
            str(self.crun), str(directory / "state"), watcher, timeout_s=10, namespaces=self.namespaces
        )
        self._bundle = str(directory)

    async def start(self) -> str:
        """Start the container, and return with what crun was run for that."""
        await self.runtime.start("one", self._bundle)
        run = Path(f"{self.crun}.run")
        return run.read_text() if run.exists() else ""


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    watcher = ExitWatcher()
    yield Lab(tmp_path, watcher)
    watcher.close()


async def test_a_container_that_waits_for_its_start_gets_it_without_crun(lab: Lab) -> None:
    os.mkfifo(lab.fifo)
    waiting = os.open(lab.fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert await lab.start() == ""
        assert os.read(waiting, 2) == b"\0"
        assert os.read(waiting, 2) == b""  # and no more will come
    finally:
        os.close(waiting)
    assert not lab.fifo.exists()


@pytest.mark.parametrize("fifo", [False, True], ids=["started already", "nobody waits"])
async def test_crun_tells_of_a_container_that_cannot_be_started(lab: Lab, fifo: bool) -> None:
    if fifo:
        os.mkfifo(lab.fifo)
    assert "start one" in await lab.start()
    assert lab.runtime.invocations == 1
    assert lab.fifo.exists() is fifo


async def test_two_starts_at_once_are_one_byte(lab: Lab) -> None:
    os.mkfifo(lab.fifo)
    waiting = os.open(lab.fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        await asyncio.gather(lab.start(), lab.start())
        assert os.read(waiting, 3) == b"\0"
    finally:
        os.close(waiting)


async def test_a_container_that_ends_while_it_is_started_is_named(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(lab.fifo)
    waiting = os.open(lab.fifo, os.O_RDONLY | os.O_NONBLOCK)
    unlink = os.unlink

    def unlink_and_die(path: str) -> None:
        unlink(path)
        os.close(waiting)

    monkeypatch.setattr(os, "unlink", unlink_and_die)
    with pytest.raises(FailedPrecondition, match="container one has ended"):
        await lab.start()


def test_a_mount_namespace_outlives_its_processes() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        namespaces = MountNamespaces()
        namespaces.hold("one", process.pid)
        process.kill()
    held = [fd for fd in os.listdir("/proc/self/fd") if _link_of(fd).startswith("mnt:")]
    namespace = namespaces.take("one")
    assert held == [str(namespace)]
    assert namespaces.take("one") is None
    assert namespace is not None
    os.close(namespace)
    namespaces.hold("two", process.pid)
    assert namespaces.take("two") is None


def _link_of(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""
