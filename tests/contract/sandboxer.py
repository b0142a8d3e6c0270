"""What every `Sandboxer` must do, whatever its pods are made of."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from sandboxers.pod_config import NamespaceMode, PodConfig
from sandboxers.sandbox import Daemonised, Endpoint, Sandbox
from tests.children import children, reaped

NewSandboxer = Callable[[], Daemonised]


class Ends:
    """Keeps what a sandbox tells of its end."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def __call__(self, exit_code: int, exited_at_ns: int) -> None:
        self.seen.append((exit_code, exited_at_ns))


class PodUnderTest:
    """A sandbox and its directory, as the registry keeps them."""

    def __init__(self, sandboxer: Daemonised, pod: PodConfig, directory: Path) -> None:
        self.sandboxer = sandboxer
        self.pod = pod
        self.directory = directory
        self.ends = Ends()
        self.sandbox: Sandbox = sandboxer.sandbox(pod, str(directory), "p1")

    async def start(self) -> Endpoint:
        return await self.sandbox.start(self.ends)

    def mounts(self) -> list[str]:
        """What is mounted in the directory."""
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return [point for point in points if point.startswith(f"{self.directory}/")]

    def left(self) -> list[str]:
        """What is in the directory or mounted there."""
        return [*(str(path) for path in self.directory.rglob("*") if not path.is_dir()), *self.mounts()]


def listens(address: str) -> bool:
    """Whether somebody accepts connections at an endpoint's address."""
    assert address.startswith("ttrpc+unix:///")
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(address.removeprefix("ttrpc+unix://"))
        except OSError:
            return False
    return True


class SandboxerContract:
    """The suite. A subclass brings the fixture `new_sandboxer`; each call of it is a new daemon's."""

    @pytest.fixture(params=["plain", "shared-pid"])
    def pod(self, request: pytest.FixtureRequest) -> PodConfig:
        pid = NamespaceMode.POD if request.param == "shared-pid" else NamespaceMode.CONTAINER
        return PodConfig("pod", name="web", network=NamespaceMode.NODE, pid=pid)

    @pytest.fixture
    async def under_test(
        self, new_sandboxer: NewSandboxer, pod: PodConfig, tmp_path: Path
    ) -> AsyncIterator[PodUnderTest]:
        directory = tmp_path / "pod"
        directory.mkdir(0o700)
        before = children()
        under_test = PodUnderTest(new_sandboxer(), pod, directory)
        yield under_test
        await under_test.sandbox.destroy()
        await reaped(before)
        under_test.sandboxer.close()

    async def test_making_the_object_makes_nothing(self, under_test: PodUnderTest) -> None:
        assert under_test.left() == []

    async def test_its_task_service_listens_when_start_returns(self, under_test: PodUnderTest) -> None:
        endpoint = await under_test.start()
        assert listens(endpoint.address)
        assert endpoint.pid != os.getpid()
        assert len(endpoint.address.removeprefix("ttrpc+unix://").encode()) <= 106

    async def test_details_are_json_in_every_state(self, under_test: PodUnderTest) -> None:
        json.dumps(under_test.sandbox.details())
        await under_test.start()
        json.dumps(under_test.sandbox.details())
        await under_test.sandbox.stop(5)
        json.dumps(under_test.sandbox.details())

    async def test_without_a_cgroup_there_are_no_metrics(self, under_test: PodUnderTest) -> None:
        await under_test.start()
        assert under_test.sandbox.metrics() is None

    async def test_stop_may_be_repeated_and_tells_no_end_of_its_own(self, under_test: PodUnderTest) -> None:
        endpoint = await under_test.start()
        for _ in range(3):
            await under_test.sandbox.stop(5)
        assert under_test.ends.seen == [], "the registry knows that it has asked for it"
        assert listens(endpoint.address), "the engine still asks about ended containers"

    async def test_stop_of_what_never_started_is_no_error(self, under_test: PodUnderTest) -> None:
        await under_test.sandbox.stop(5)
        assert under_test.left() == []

    @pytest.mark.parametrize("stopped", [False, True])
    async def test_destroy_leaves_no_mount_and_nobody_listening(
        self, under_test: PodUnderTest, stopped: bool
    ) -> None:
        endpoint = await under_test.start()
        if stopped:
            await under_test.sandbox.stop(5)
        await under_test.sandbox.destroy()
        await under_test.sandbox.destroy()
        assert not listens(endpoint.address)
        assert under_test.mounts() == []

    async def test_a_start_that_fails_leaves_nothing_behind(self, under_test: PodUnderTest) -> None:
        # The socket is a member of every pod, and the last thing to be made: a directory stands in its way.
        obstacle = under_test.directory / "task.sock"
        (obstacle / "x").mkdir(parents=True)
        with pytest.raises(OSError, match=r"in use|Is a directory"):
            await under_test.start()
        assert under_test.mounts() == []
        (obstacle / "x").rmdir()
        obstacle.rmdir()

    @pytest.mark.parametrize("running", [True, False])
    async def test_a_new_daemon_takes_it_up_at_the_same_address(
        self, under_test: PodUnderTest, new_sandboxer: NewSandboxer, running: bool
    ) -> None:
        endpoint = await under_test.start()
        if not running:
            await under_test.sandbox.stop(5)
        under_test.sandboxer.close()
        under_test.sandboxer = new_sandboxer()
        old, ends = under_test.sandbox, Ends()
        under_test.sandbox = under_test.sandboxer.sandbox(under_test.pod, str(under_test.directory), "p1")
        try:
            again = await under_test.sandbox.recover(ends, running=running)
        finally:
            await self.abandon(old)
        assert again.address == endpoint.address
        if running:
            assert again == endpoint
        assert listens(again.address)
        assert ends.seen == []
        await under_test.sandbox.stop(5)

    async def test_many_come_and_go_without_a_trace(self, under_test: PodUnderTest, tmp_path: Path) -> None:
        for number in range(10):
            directory = tmp_path / f"d{number}"
            directory.mkdir()
            pod = PodUnderTest(under_test.sandboxer, under_test.pod, directory)
            await pod.start()
            await pod.sandbox.destroy()
            assert pod.mounts() == []

    async def abandon(self, sandbox: Any) -> None:
        """Let go of what an object of an earlier daemon holds, as that daemon's end would have done."""
