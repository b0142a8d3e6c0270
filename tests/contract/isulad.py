"""What iSulad must find at every type of pods: its exact calls, in its order (iSulad contract, 4.1)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from collections import Counter
from typing import Any, ClassVar

import grpc.aio
import pytest

from common.errors import Code
from common.ttrpc import StatusError
from proto.gen.cgroups.v1.metrics_pb2 import Metrics
from proto.gen.containerd.types import task_pb2 as types
from tests.engine.handlers import Programs
from tests.integration.daemon.client import refused
from tests.integration.daemon.isulad import Container, Sandbox
from tests.integration.daemon.lab import until

_ADDRESS = re.compile(r"ttrpc\+unix:///.+")


class IsuladContract:
    """The suite. A subclass brings the fixture `sandbox`, a pod that was started, and what its containers run."""

    programs: ClassVar[Programs]
    execs: ClassVar[int]
    """How many execs without a Delete are enough to show a leak."""

    async def test_start_tells_what_is_used_of_it(self, sandbox: Sandbox) -> None:
        status = await sandbox.engine("Status", sandbox.id)
        assert (status.state, status.address, status.pid) == ("SANDBOX_READY", sandbox.address, sandbox.pid)
        assert _ADDRESS.fullmatch(sandbox.address)
        assert abs(status.created_at.seconds - time.time()) < 120
        assert sandbox.pid in sandbox.lab.processes()

    async def test_a_container_lives_and_is_stopped(self, sandbox: Sandbox) -> None:
        pod_end = sandbox.engine.wait(sandbox.id)
        other = await sandbox.running(*self.programs.sleep)
        container = Container(sandbox, *self.programs.sleep)
        await container.create()
        assert container.pid > 0
        await container.start()
        end = container.wait()
        await container.kill(0)
        state = await container.task("State", id=container.id)
        assert (state.status, state.pid > 0) == (types.RUNNING, True)
        assert (await container.task("Pids", id=container.id)).processes
        stats = (await container.task("Stats", id=container.id)).stats
        figures = Metrics.FromString(stats.value)
        assert stats.type_url == "io.containerd.cgroups.v1.Metrics"
        assert figures.cpu.usage.total > 0
        assert figures.memory.usage.usage > 0
        assert figures.memory.usage.limit == 128 << 20
        await container.kill(signal.SIGKILL)
        assert (await end).exit_status == 137
        with refused(Code.NOT_FOUND, container.id):
            await container.kill(0)
        await container.end()
        await container.purge()
        await other.kill(0)
        assert not pod_end.done()
        await sandbox.engine("Stop", sandbox.id, timeout_secs=10)
        assert (await pod_end).exit_status == 0

    async def test_a_container_that_ends_by_itself_stays_in_the_list(self, sandbox: Sandbox) -> None:
        container = Container(sandbox, *self.programs.say("out", "err", 7))
        await container.create()
        end = container.wait()
        await container.start()
        assert (await end).exit_status == 7
        with refused(Code.NOT_FOUND, container.id):
            await container.kill(0)
        await container.end()
        await sandbox.update()
        another = await sandbox.running(*self.programs.sleep)
        await another.kill(0)
        with refused(Code.NOT_FOUND, container.id):
            await another.task("State", id=container.id)

    async def test_outputs_of_execs_end_and_nothing_is_kept_of_them(self, sandbox: Sandbox) -> None:
        container = await sandbox.running(*self.programs.sleep)
        result = (7, b"out\n", b"err\n")
        assert await container.exec_sync(*self.programs.say("out", "err", 7)) == result
        before = kept(sandbox)
        for _ in range(self.execs):
            assert await container.exec_sync(*self.programs.say("out", "err", 7)) == result
        await until(lambda: not kept(sandbox) - before, 20, f"{kept(sandbox) - before} to be closed")

    async def test_an_exec_that_nobody_waits_for_goes_on_and_is_forgotten_when_it_has_ended(
        self, sandbox: Sandbox
    ) -> None:
        container = await sandbox.running(*self.programs.sleep)
        execution = await container.begin_exec(*self.programs.sleep)
        await execution.purge()
        ids: dict[str, Any] = {"id": container.id, "exec_id": execution.id}
        assert (await container.task("State", **ids)).status == types.RUNNING
        await container.task("Kill", **ids, signal=9)
        assert await execution.wait() == 137
        await sandbox.update()
        execution.close()
        with refused(Code.NOT_FOUND, execution.id):
            await container.task("State", **ids)

    async def test_a_list_that_was_lost_ends_no_container(self, sandbox: Sandbox) -> None:
        container = await sandbox.running(*self.programs.sleep)
        await container.purge()
        await container.kill(0)

    async def test_a_container_that_cannot_be_made_is_cleaned_up_after(self, sandbox: Sandbox) -> None:
        container = Container(sandbox, *self.programs.sleep)
        container.spec["process"]["cwd"] = "/proc/self/fd/7"
        daemon = sandbox.engine.daemon
        logged = daemon.log.stat().st_size
        with refused(Code.INVALID_ARGUMENT, "working directory"):
            await container.create()
        # iSulad does not pass it on.
        assert "working directory" in daemon.log_since(logged)
        await self.clean_up(container)

    async def test_a_container_that_does_not_start_is_cleaned_up_after(self, sandbox: Sandbox) -> None:
        container = Container(sandbox, "/no/such/program")
        with pytest.raises(StatusError, match="/no/such/program"):
            await container.create()
            await container.start()
        await self.clean_up(container)

    async def clean_up(self, container: Container) -> None:
        """Do what iSulad does when Create or Start has failed; what can be done then must not harm the pod."""
        with contextlib.suppress(StatusError):
            await container.kill(9)
        await container.purge()
        with contextlib.suppress(StatusError):
            await container.task("Delete", id=container.id)
        await container.task("Shutdown", id=container.id)
        container.unmount()
        sandbox = container.sandbox
        assert (await sandbox.engine("Status", sandbox.id)).state == "SANDBOX_READY"
        await (await sandbox.running(*self.programs.sleep)).kill(0)

    async def test_the_platform_is_told_for_whatever_id(self, sandbox: Sandbox) -> None:
        for sandbox_id in (sandbox.id, "unknown"):
            assert (await sandbox.engine("Platform", sandbox_id)).platform.os == "linux"

    async def test_shutdown_comes_without_stop_twice_and_for_what_is_unknown(self, sandbox: Sandbox) -> None:
        end = sandbox.engine.wait(sandbox.id)
        await sandbox.engine("Shutdown", sandbox.id)
        await sandbox.engine("Shutdown", sandbox.id)
        await sandbox.engine("Shutdown", "unknown")
        await end

    async def test_the_network_is_gone_before_the_pod_is_stopped(self, sandbox: Sandbox) -> None:
        container = await sandbox.running(*self.programs.sleep)
        end = container.wait()
        # What `ip netns delete` does, but that the file stays.
        sandbox.lab.run("umount", sandbox.netns_path)
        await sandbox.engine("Stop", sandbox.id, timeout_secs=10)
        assert (await end).exit_status == 137
        await sandbox.engine("Stop", sandbox.id, timeout_secs=10)
        await sandbox.engine("Shutdown", sandbox.id)

    async def test_many_wait_while_another_is_called(self, sandbox: Sandbox) -> None:
        waits = [sandbox.engine.wait(sandbox.id) for _ in range(20)]
        await asyncio.gather(*(sandbox.engine("Platform", sandbox.id) for _ in range(20)))
        await sandbox.engine("Stop", sandbox.id, timeout_secs=10)
        for wait in waits:
            assert (await wait).exit_status == 0

    async def test_a_pod_that_ended_tells_so_at_once(self, sandbox: Sandbox) -> None:
        await sandbox.engine("Stop", sandbox.id, timeout_secs=10)
        assert (await sandbox.engine.wait(sandbox.id)).exit_status == 0
        assert (await sandbox.engine("Status", sandbox.id)).state == "SANDBOX_NOTREADY"

    async def test_a_pod_that_exists_is_not_created_again(self, sandbox: Sandbox) -> None:
        with pytest.raises(grpc.aio.AioRpcError, match="exists already"):
            await sandbox.engine("Create", sandbox.id, netns_path=sandbox.netns_path)


def kept(sandbox: Sandbox) -> Counter[str]:
    """What the daemon has open, by kind, and which files it has."""
    daemon = sandbox.engine.daemon
    found = Counter(
        re.sub(r":\[\d+\]|\d+$", "", os.readlink(entry.path))
        for entry in os.scandir(f"/proc/{daemon.pid}/fd")
        if os.path.lexists(entry.path)
    )
    state = daemon.lab.path(daemon.state_dir)
    return found + Counter(str(path) for path in state.rglob("*") if path.is_file())
