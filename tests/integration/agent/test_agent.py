"""The agent as a plain process, in namespaces and cgroups of its own: by this interpreter, and as a guest loads it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from common.errors import DeadlineExceeded, FailedPrecondition
from common.transport import transport_of
from common.ttrpc import StatusCode
from proto.gen.containerd.events import task_pb2 as events
from proto.gen.containerd.task.v3 import shim_pb2 as task
from tests import guest_library
from tests.contract.agent import AgentContract
from tests.contract.guest import TAG, TIMEOUT_S, Guest, configuration, refused
from tests.engine.namespaces import Daemon, Namespaces, wait_until
from vmm.guest.reception import Announcement

INSIDE = "/run/agent"
RUNTIME = guest_library.CHECKOUT / ".cache/runtimes/crun"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Machine:
    """Where an agent runs as a process, seen from outside."""

    def __init__(self, namespaces: Namespaces, directory: Path) -> None:
        self.namespaces = namespaces
        self.directory = directory
        self.root = namespaces.root / INSIDE.lstrip("/")
        self.root.mkdir()
        self._agent: Daemon | None = None

    def start(self, command: Sequence[str], runtime: str = str(RUNTIME)) -> Daemon:
        """Start the agent; it dies with the machine."""
        arguments = [
            *("--transport", f"unix://{INSIDE}", "--directory", f"{INSIDE}/state"),
            *("--runtime", runtime, "--cgroup", "/pod"),
        ]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(guest_library.CHECKOUT)}
        with (self.directory / "agent.log").open("wb") as log:
            self._agent = self.namespaces.spawn([*command, *arguments], log, env=environment)
        return self._agent

    def stop(self) -> None:
        """Kill the agent, which ends nothing that it has started."""
        if self._agent is not None:
            self._agent.stop(signal.SIGKILL)

    def guest(self) -> Guest:
        """The host's part."""
        transport = transport_of(f"unix://{self.root}")
        return Guest(transport, self.root / f"state/shares/{TAG}", f"{INSIDE}/state/shares/{TAG}")


@contextmanager
def machine() -> Iterator[Machine]:
    directory = Path(tempfile.mkdtemp(prefix="sandboxd-agent-"))
    try:
        with Namespaces(directory, directory.name) as namespaces:
            where = Machine(namespaces, directory)
            try:
                yield where
            finally:
                where.stop()
                if (log := directory / "agent.log").exists():
                    print(log.read_text())
    finally:
        shutil.rmtree(directory)


@asynccontextmanager
async def configured(command: Sequence[str], **changes: Any) -> AsyncIterator[Guest]:
    """An agent that was told what it is."""
    with machine() as where:
        guest = where.guest()
        try:
            where.start(command)
            await guest.reception.announcement(TIMEOUT_S)
            guest.share.mkdir()
            await guest.client.configure(configuration(**changes), TIMEOUT_S)
            await guest.tasks()
            yield guest
        finally:
            guest.close()


PYTHON = [sys.executable, "-m", "vmm.agent"]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["python", "guest"])
async def guest(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Guest]:
    """An agent that runs as any program does, and one that has loaded the modules of a guest's image."""
    command = PYTHON
    if request.param == "guest":
        if not guest_library.is_there():
            pytest.skip(f"needs {guest_library.INTERPRETER}")
        path = guest_library.lay_out(tmp_path_factory.mktemp("library"))
        command = guest_library.command(path, "from vmm.agent.__main__ import main; sys.exit(main())")
    async with configured(command) as guest:
        yield guest


class TestAgent(AgentContract):
    """The suite."""


async def test_an_agent_announces_itself_and_waits_to_be_told_what_it_is() -> None:
    with machine() as where:
        guest = where.guest()
        where.start(PYTHON)
        announcement = await guest.reception.announcement(TIMEOUT_S)
        assert isinstance(announcement, Announcement)
        assert announcement.kernel_release == os.uname().release
        assert 0 < announcement.exec_ns < announcement.ready_ns
        guest.share.mkdir()
        bundle = guest.bundle("early", ["echo"])
        async with refused(StatusCode.FAILED_PRECONDITION, "Configure comes first"):
            await guest.call(
                "Create", task.CreateTaskRequest(id="early", bundle=bundle), task.CreateTaskResponse
            )
        guest.close()


async def test_one_run_of_the_runtime_starts_a_container() -> None:
    with machine() as where:
        counting = where.root / "runtime"
        counting.write_text(f'#!/bin/sh\necho "$*" >>{INSIDE}/runs\nexec {RUNTIME} "$@"\n')
        counting.chmod(0o755)
        guest = where.guest()
        where.start(PYTHON, f"{INSIDE}/{counting.name}")
        await guest.reception.announcement(TIMEOUT_S)
        guest.share.mkdir()
        await guest.client.configure(configuration(), TIMEOUT_S)
        assert await guest.output("echo", "out") == (0, b"out\n")
        guest.close()
        runs = (where.root / "runs").read_text().splitlines()
        commands = [
            word for run in runs for word in run.split() if word in ("create", "start", "state", "delete")
        ]
        assert commands == ["create", "delete"]


async def test_a_host_that_comes_late_is_found() -> None:
    with machine() as where:
        where.start(PYTHON)
        await asyncio.sleep(1)
        guest = where.guest()
        await guest.reception.announcement(TIMEOUT_S)
        guest.close()


async def test_a_host_that_restarts_gets_the_events_that_it_has_missed() -> None:
    with machine() as where:
        guest = where.guest()
        where.start(PYTHON)
        await guest.reception.announcement(TIMEOUT_S)
        guest.share.mkdir()
        await guest.client.configure(configuration(), TIMEOUT_S)
        container = await guest.container("sleep", "1", streams=())
        await container.start()
        guest.close()
        await asyncio.sleep(1.5)
        successor = where.guest()
        await successor.reception.announcement(TIMEOUT_S)
        await successor.event(events.TaskExit, id=container.id)
        successor.close()


async def test_shutdown_ends_the_agent_and_its_containers() -> None:
    with machine() as where:
        guest = where.guest()
        agent = where.start(PYTHON)
        await guest.reception.announcement(TIMEOUT_S)
        guest.share.mkdir()
        await guest.client.configure(configuration(), TIMEOUT_S)
        container = await guest.container("sleep", "1000", streams=())
        await container.start()
        await guest.client.shutdown(TIMEOUT_S)
        wait_until(lambda: agent.returncode is not None, TIMEOUT_S, "the end of the agent")
        assert agent.returncode == 0
        assert "sleep" not in where.namespaces.run(["ps", "-e", "-o", "comm="]).stdout.split()
        guest.close()


async def test_a_shared_pid_namespace_has_all_containers_in_it() -> None:
    shared = (("pid", "pid"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts"))
    namespaces = [{"type": "mount"}, *({"type": kind, "path": f"/proc/1/ns/{n}"} for kind, n in shared)]
    async with (
        configured(PYTHON, shared_pid_namespace=True) as guest,
        await guest.container("sleep", "1000", namespaces=namespaces) as first,
    ):
        await first.start()
        status, output = await guest.output("sh", "-c", "ps -o comm", namespaces=namespaces)
        assert status == 0
        assert b"sleep" in output.split()


async def test_a_silent_guest_is_given_up() -> None:
    with machine() as where:
        guest = where.guest()
        with pytest.raises(DeadlineExceeded, match="has not announced itself"):
            await guest.reception.announcement(0.05)
        guest.reception.lose(FailedPrecondition("the machine has ended"))
        guest.close()
