"""The registry: order per id, and all or nothing."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common import log
from common.errors import AlreadyExists, FailedPrecondition, Internal, InvalidArgument, NotFound, Unavailable
from common.failpoints import VARIABLE, Failpoint, arm
from sandboxers.records import RECORD_FILE
from sandboxers.registry import SandboxRegistry
from sandboxers.states import SandboxState
from tests.contract.fake_sandboxer import PID, REFUSED_HOSTNAME, FakeSandboxer
from tests.descriptor_store import KeptInMemory
from tests.unit.sandboxers.conftest import Daemon, NewDaemon, pod, record, started

# -- create ----------------------------------------------------------------------------------------


async def test_create_writes_the_record_and_nothing_else(daemon: Daemon, state_dir: Path) -> None:
    await daemon.registry.create(pod(hostname="h", sysctls={"a": "b"}))
    assert os.listdir(state_dir / "pod") == [RECORD_FILE]
    assert (state_dir / "pod").stat().st_mode & 0o777 == 0o700
    assert record(state_dir)["state"] == "created"
    assert record(state_dir)["pod"]["sysctls"] == {"a": "b"}
    assert daemon.sandboxer.calls == []


async def test_an_id_is_taken_once(daemon: Daemon, state_dir: Path) -> None:
    results = await asyncio.gather(*(daemon.registry.create(pod()) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), AlreadyExists, AlreadyExists]
    assert len(daemon.registry) == 1


async def test_a_directory_that_is_left_behind_is_not_taken_over(daemon: Daemon, state_dir: Path) -> None:
    (state_dir / "pod").mkdir()
    (state_dir / "pod" / "precious").touch()
    with pytest.raises(AlreadyExists, match="left its directory"):
        await daemon.registry.create(pod())
    assert os.listdir(state_dir / "pod") == ["precious"]


async def test_a_pod_that_the_type_cannot_make_leaves_nothing(daemon: Daemon, state_dir: Path) -> None:
    with pytest.raises(InvalidArgument):
        await daemon.registry.create(pod(hostname=REFUSED_HOSTNAME))
    assert os.listdir(state_dir) == []
    assert len(daemon.registry) == 0


# -- start -----------------------------------------------------------------------------------------


async def test_a_started_pod_is_recorded_with_its_endpoint(daemon: Daemon, state_dir: Path) -> None:
    await started(daemon)
    entry = daemon.registry.entry("pod")
    assert entry.state is SandboxState.READY
    assert record(state_dir)["state"] == "running"
    assert record(state_dir)["address"] == f"ttrpc+unix://{state_dir}/pod/task.sock"
    assert record(state_dir)["pid"] == PID


async def test_nobody_is_told_of_a_pod_before_all_of_it_is_kept(state_dir: Path) -> None:
    store = KeptInMemory()
    registry = SandboxRegistry(FakeSandboxer(), str(state_dir), 5, store)
    await registry.create(pod())
    with store.busy():
        starting = asyncio.ensure_future(registry.start("pod"))
        await asyncio.sleep(0.02)
        assert record(state_dir)["state"] == SandboxState.STARTING.value
    assert (await starting).state is SandboxState.READY
    assert record(state_dir)["state"] == "running"
    await registry.shutdown("pod")


async def test_start_of_an_unknown_pod_is_not_found(daemon: Daemon) -> None:
    with pytest.raises(NotFound, match="no sandbox 'pod'"):
        await daemon.registry.start("pod")


async def test_a_pod_starts_once(daemon: Daemon) -> None:
    await daemon.registry.create(pod())
    results = await asyncio.gather(
        daemon.registry.start("pod"), daemon.registry.start("pod"), return_exceptions=True
    )
    assert isinstance(results[1], FailedPrecondition)
    assert daemon.sandboxer.calls == [("start", "pod")]
    assert daemon.registry.entry("pod").state is SandboxState.READY


@pytest.mark.parametrize("failure", [Internal("no"), OSError(errno.ENOSPC, "full"), KeyError("bug")])
async def test_a_pod_whose_start_failed_is_forgotten(
    daemon: Daemon, state_dir: Path, failure: Exception
) -> None:
    await daemon.registry.create(pod())
    daemon.sandboxer.failures["start"] = failure
    with pytest.raises(type(failure)):
        await daemon.registry.start("pod")
    assert len(daemon.registry) == 0
    assert os.listdir(state_dir) == []
    daemon.sandboxer.failures.clear()
    await started(daemon)


async def test_a_start_that_its_caller_gave_up_is_taken_back(daemon: Daemon, state_dir: Path) -> None:
    await daemon.registry.create(pod())
    daemon.sandboxer.gates["start"] = asyncio.Event()
    start = asyncio.ensure_future(daemon.registry.start("pod"))
    await asyncio.sleep(0.01)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert os.listdir(state_dir) == []
    assert len(daemon.registry) == 0


async def test_a_pod_that_ends_while_it_is_started_has_not_started(daemon: Daemon, state_dir: Path) -> None:
    await daemon.registry.create(pod())
    gate = daemon.sandboxer.gates["start"] = asyncio.Event()
    start = asyncio.ensure_future(daemon.registry.start("pod"))
    await asyncio.sleep(0.01)
    daemon.sandboxer.sandboxes["pod"].end(9, 1)
    gate.set()
    with pytest.raises(Internal, match="ended while"):
        await start
    assert os.listdir(state_dir) == []


async def test_a_record_that_cannot_be_written_takes_the_start_back(daemon: Daemon, state_dir: Path) -> None:
    await daemon.registry.create(pod())
    gate = daemon.sandboxer.gates["start"] = asyncio.Event()
    start = asyncio.ensure_future(daemon.registry.start("pod"))
    await asyncio.sleep(0.01)
    (state_dir / "pod" / f"{RECORD_FILE}.new").mkdir()
    gate.set()
    with pytest.raises(OSError, match="directory"):
        await start
    assert len(daemon.registry) == 0
    assert os.listdir(state_dir) == []


async def test_what_could_not_be_taken_back_is_told_and_can_be_shut_down(
    daemon: Daemon, state_dir: Path
) -> None:
    await daemon.registry.create(pod())
    daemon.sandboxer.failures = {"start": Internal("first"), "destroy": Internal("second")}
    with log.capture() as lines, pytest.raises(Internal, match="first"):
        await daemon.registry.start("pod")
    assert "sandbox.not_removed" in [line["event"] for line in lines]
    assert daemon.registry.entry("pod").state is SandboxState.REMOVAL_FAILED
    assert record(state_dir)["state"] == "being removed"
    daemon.sandboxer.failures.clear()
    await daemon.registry.shutdown("pod")
    assert os.listdir(state_dir) == []


# -- order -----------------------------------------------------------------------------------------


async def test_calls_that_change_a_pod_wait_for_each_other(daemon: Daemon) -> None:
    await asyncio.gather(*(daemon.registry.create(pod(name)) for name in "abc"))
    calls = []
    for name in "abc":
        calls += [
            daemon.registry.start(name),
            daemon.registry.stop(name, 1),
            daemon.registry.stop(name, 1),
            daemon.registry.shutdown(name),
            daemon.registry.shutdown(name),
        ]
    await asyncio.gather(*calls)
    assert daemon.sandboxer.most_at_once == {"a": 1, "b": 1, "c": 1}
    assert len(daemon.registry) == 0


async def test_a_pod_that_hangs_does_not_delay_another(daemon: Daemon) -> None:
    gate = daemon.sandboxer.gates["start"] = asyncio.Event()
    await daemon.registry.create(pod("slow"))
    slow = asyncio.ensure_future(daemon.registry.start("slow"))
    await asyncio.sleep(0.01)
    del daemon.sandboxer.gates["start"]
    await started(daemon, "fast")
    assert daemon.registry.entry("slow").state is SandboxState.STARTING
    gate.set()
    await slow


# -- stop and shutdown -----------------------------------------------------------------------------


async def test_stop_ends_the_waits_and_may_be_repeated(daemon: Daemon, state_dir: Path) -> None:
    await started(daemon)
    entry = daemon.registry.entry("pod")
    wait = asyncio.ensure_future(entry.end.wait())
    await daemon.registry.stop("pod", 1)
    await wait
    assert (entry.exit_code, entry.state) == (0, SandboxState.STOPPED)
    assert record(state_dir)["state"] == "stopped"
    exited_at_ns = entry.exited_at_ns
    await daemon.registry.stop("pod", 1)
    assert entry.exited_at_ns == exited_at_ns


async def test_a_stop_that_failed_can_be_repeated(daemon: Daemon) -> None:
    await started(daemon)
    entry = daemon.registry.entry("pod")
    daemon.sandboxer.failures["stop"] = FailedPrecondition("still alive")
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match="still alive"):
            await daemon.registry.stop("pod", 1)
        assert entry.state is SandboxState.STOP_FAILED
    daemon.sandboxer.failures.clear()
    await daemon.registry.stop("pod", 1)
    assert entry.state is SandboxState.STOPPED


async def test_a_pod_that_ends_between_two_stops_can_still_be_stopped(daemon: Daemon) -> None:
    await started(daemon)
    entry = daemon.registry.entry("pod")
    daemon.sandboxer.failures["stop"] = Unavailable("busy")
    with pytest.raises(Unavailable):
        await daemon.registry.stop("pod", 1)
    daemon.sandboxer.sandboxes["pod"].end(9, 1)
    daemon.sandboxer.failures.clear()
    await daemon.registry.stop("pod", 1)
    await daemon.registry.stop("pod", 1)
    assert (entry.exit_code, entry.state) == (9, SandboxState.STOPPED)


async def test_a_pod_that_ended_by_itself_is_released_by_stop(daemon: Daemon, state_dir: Path) -> None:
    await started(daemon)
    entry = daemon.registry.entry("pod")
    daemon.sandboxer.sandboxes["pod"].end(137, 5)
    await entry.end.wait()
    assert (entry.exit_code, entry.exited_at_ns, entry.state) == (137, 5, SandboxState.STOPPED)
    assert record(state_dir)["exit_code"] == 137
    await daemon.registry.stop("pod", 1)
    assert daemon.sandboxer.calls[-1] == ("stop", "pod")
    assert entry.exit_code == 137


async def test_an_end_that_cannot_be_recorded_is_told_all_the_same(daemon: Daemon, state_dir: Path) -> None:
    await started(daemon)
    (state_dir / "pod" / f"{RECORD_FILE}.new").mkdir()
    with log.capture() as lines:
        daemon.sandboxer.sandboxes["pod"].end(1, 5)
    await asyncio.wait_for(daemon.registry.entry("pod").end.wait(), 20)
    assert [line["event"] for line in lines] == ["sandbox.record_not_written"]


async def test_stop_of_an_unknown_pod_is_not_found_and_shutdown_no_error(daemon: Daemon) -> None:
    with pytest.raises(NotFound):
        await daemon.registry.stop("pod", 1)
    await daemon.registry.shutdown("pod")


@pytest.mark.parametrize("stopped", [False, True])
async def test_shutdown_implies_stop_and_leaves_nothing(
    daemon: Daemon, state_dir: Path, stopped: bool
) -> None:
    await started(daemon)
    wait = asyncio.ensure_future(daemon.registry.entry("pod").end.wait())
    if stopped:
        await daemon.registry.stop("pod", 1)
    await daemon.registry.shutdown("pod")
    await wait
    assert os.listdir(state_dir) == []
    assert len(daemon.registry) == 0
    await daemon.registry.shutdown("pod")


async def test_a_pod_that_never_started_can_be_shut_down(daemon: Daemon, state_dir: Path) -> None:
    await daemon.registry.create(pod())
    await daemon.registry.shutdown("pod")
    assert os.listdir(state_dir) == []


async def test_a_shutdown_that_failed_keeps_the_pod_for_another(daemon: Daemon, state_dir: Path) -> None:
    await started(daemon)
    daemon.sandboxer.failures["destroy"] = Internal("stuck")
    with pytest.raises(Internal):
        await daemon.registry.shutdown("pod")
    assert record(state_dir)["state"] == "being removed"
    daemon.sandboxer.failures.clear()
    await daemon.registry.stop("pod", 1)
    await daemon.registry.shutdown("pod")
    assert os.listdir(state_dir) == []


async def test_start_after_shutdown_finds_no_pod(daemon: Daemon) -> None:
    await daemon.registry.create(pod())
    shutdown, start = await asyncio.gather(
        daemon.registry.shutdown("pod"), daemon.registry.start("pod"), return_exceptions=True
    )
    assert shutdown is None
    assert isinstance(start, FailedPrecondition | NotFound)
    assert ("start", "pod") not in daemon.sandboxer.calls


# -- pods that nobody wants ------------------------------------------------------------------------


async def test_pods_that_never_started_are_removed_after_a_while(daemon: Daemon) -> None:
    await daemon.registry.create(pod("old"))
    await daemon.registry.create(pod("new"))
    await started(daemon, "ready")
    daemon.registry.entry("old").created_at_ns -= int(601e9)
    daemon.registry.entry("ready").created_at_ns -= int(601e9)
    await daemon.registry.create(pod("x"))
    with pytest.raises(NotFound):
        daemon.registry.entry("old")
    assert [daemon.registry.entry(name).id for name in ("new", "ready", "x")] == ["new", "ready", "x"]


async def test_one_that_cannot_be_removed_does_not_stop_others_from_being_created(daemon: Daemon) -> None:
    await daemon.registry.create(pod("old"))
    daemon.registry.entry("old").created_at_ns -= int(601e9)
    daemon.sandboxer.failures["destroy"] = Internal("stuck")
    with log.capture() as lines:
        await daemon.registry.create(pod("x"))
    assert "sandbox.not_removed" in [line["event"] for line in lines]
    assert daemon.registry.entry("x").state is SandboxState.CREATED


# -- broken at a step ------------------------------------------------------------------------------


@pytest.fixture
def broken_at() -> Iterator[Callable[[Failpoint], None]]:
    def break_at(point: Failpoint) -> None:
        arm({VARIABLE: f"{point}=raise"})

    yield break_at
    arm({})


@pytest.mark.parametrize(
    "point", [Failpoint.SANDBOX_RECORDED, Failpoint.SANDBOX_STARTING, Failpoint.SANDBOX_STARTED]
)
async def test_a_start_that_breaks_at_any_step_leaves_nothing(
    daemon: Daemon, state_dir: Path, broken_at: Callable[[Failpoint], None], point: Failpoint
) -> None:
    broken_at(point)
    with pytest.raises(Internal, match=point):
        await started(daemon)
    assert os.listdir(state_dir) == []
    assert len(daemon.registry) == 0


@pytest.mark.parametrize(
    "point",
    [
        Failpoint.SANDBOX_STOPPING,
        Failpoint.SANDBOX_STOPPED,
        Failpoint.SANDBOX_REMOVING,
        Failpoint.SANDBOX_DESTROYED,
        Failpoint.SANDBOX_REMOVED,
    ],
)
@pytest.mark.parametrize("by_another_daemon", [False, True])
async def test_a_removal_that_breaks_at_any_step_can_be_finished(
    new_daemon: NewDaemon,
    state_dir: Path,
    broken_at: Callable[[Failpoint], None],
    point: Failpoint,
    by_another_daemon: bool,
) -> None:
    daemon = new_daemon()
    await started(daemon)
    broken_at(point)
    with pytest.raises(Internal, match=point):
        await daemon.registry.shutdown("pod")
    arm({})
    if by_another_daemon:
        daemon = new_daemon()
        await daemon.registry.recover()
    await daemon.registry.shutdown("pod")
    assert os.listdir(state_dir) == []
    assert len(daemon.registry) == 0


async def test_a_recovery_passes_a_failpoint_per_pod(
    new_daemon: NewDaemon, broken_at: Callable[[Failpoint], None]
) -> None:
    await started(new_daemon())
    for point in (Failpoint.RECOVERY_BEGUN, Failpoint.RECOVERY_POD_DONE, Failpoint.RECOVERY_DONE):
        broken_at(point)
        with pytest.raises(Internal, match=point):
            await new_daemon().registry.recover()
    arm({})
    after = new_daemon()
    await after.registry.recover()
    assert after.registry.entry("pod").state is SandboxState.READY


async def test_stop_and_shutdown_work_when_no_record_can_be_written(daemon: Daemon, state_dir: Path) -> None:
    await started(daemon)
    (state_dir / "pod" / f"{RECORD_FILE}.new").mkdir()
    with log.capture() as lines:
        await daemon.registry.stop("pod", 1)
        await daemon.registry.shutdown("pod")
    assert "sandbox.record_not_written" in [line["event"] for line in lines]
    assert os.listdir(state_dir) == []
