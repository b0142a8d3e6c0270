"""The Task service over real ttrpc, with the backend of plain processes behind it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from common.errors import Code, FailedPrecondition, Internal
from common.task.service import TASK_SERVICE_NAMES
from proto.gen.containerd.events import task_pb2 as events
from proto.gen.containerd.types import mount_pb2
from proto.gen.containerd.types import task_pb2 as types
from tests.unit.common.task.conftest import open_descriptors, until
from tests.unit.common.task.pod_lives import Pod, process

# -- a container's life ----------------------------------------------------------------------------


async def test_a_container_lives_and_dies(pod: Pod) -> None:
    created = await pod.create("c", "sh", "-c", "echo hello; exit 3", stdout=pod.fifo("out"))
    wait = asyncio.ensure_future(pod.call("Wait", id="c"))
    state = await pod.call("State", id="c")
    assert (state.status, state.pid, state.id) == (types.CREATED, created.pid, "c")
    assert state.stdout == str(pod.directory / "out")
    assert (await pod.call("Start", id="c")).pid == created.pid
    ended = await wait
    assert (ended.exit_status, ended.exited_at.seconds > 0) == (3, True)
    state = await pod.call("State", id="c")
    assert (state.status, state.exit_status, state.exited_at) == (types.STOPPED, 3, ended.exited_at)
    assert os.read(pod.outputs[0], 100) == b"hello\n"
    assert os.read(pod.outputs[0], 100) == b"", "the engine sees the end of the output"
    assert (await pod.call("Wait", id="c")) == ended
    deleted = await pod.call("Delete", id="c")
    assert (deleted.pid, deleted.exit_status, deleted.exited_at) == (created.pid, 3, ended.exited_at)
    await pod.refused(Code.NOT_FOUND, "State", id="c")
    assert pod.life.sink.topics() == ["create", "start", "exit", "delete"]
    assert os.listdir(pod.life.directory / "tasks") == []


async def test_both_names_of_the_service_answer(pod: Pod) -> None:
    for name in TASK_SERVICE_NAMES:
        assert (await pod.call("Connect", name, id="nobody")).task_pid == 0


async def test_connect_tells_pids_and_knows_strangers(pod: Pod) -> None:
    pid = await pod.run("c", "sleep", "60")
    answer = await pod.call("Connect", id="c")
    assert (answer.task_pid, answer.shim_pid, answer.version) == (pid, os.getpid(), "3")


async def test_a_kill_ends_every_wait(pod: Pod) -> None:
    await pod.run("c", "sleep", "60")
    waits = [asyncio.ensure_future(pod.call("Wait", id="c")) for _ in range(20)]
    await pod.call("Kill", id="c", signal=9, all=True)
    assert {(await wait).exit_status for wait in waits} == {137}
    await pod.refused(Code.NOT_FOUND, "Kill", "finished", id="c", signal=9)


async def test_a_created_container_can_be_killed_or_deleted(pod: Pod) -> None:
    await pod.create("a", "sleep", "60")
    await pod.call("Kill", id="a", signal=9)
    assert (await pod.call("Wait", id="a")).exit_status == 137
    await pod.call("Delete", id="a")
    await pod.create("b", "sleep", "60")
    await pod.call("Delete", id="b")
    assert pod.life.service.containers == {}


async def test_a_running_container_is_not_deleted(pod: Pod) -> None:
    await pod.run("c", "sleep", "60")
    await pod.refused(Code.FAILED_PRECONDITION, "Delete", "kill it first", id="c")
    assert (await pod.call("State", id="c")).status == types.RUNNING


async def test_a_container_starts_once(pod: Pod) -> None:
    await pod.run("c", "sleep", "60")
    await pod.refused(Code.FAILED_PRECONDITION, "Start", "it is running", id="c")


async def test_a_container_pauses_and_resumes(pod: Pod) -> None:
    await pod.run("c", "sleep", "60")
    await pod.refused(Code.FAILED_PRECONDITION, "Resume", id="c")
    await pod.call("Pause", id="c")
    assert (await pod.call("State", id="c")).status == types.PAUSED
    await pod.refused(Code.FAILED_PRECONDITION, "Pause", id="c")
    await pod.call("Resume", id="c")
    assert (await pod.call("State", id="c")).status == types.RUNNING
    await pod.call("Pause", id="c")
    await pod.call("Kill", id="c", signal=9)
    assert (await pod.call("Wait", id="c")).exit_status == 137
    assert pod.life.sink.topics()[2:5] == ["paused", "resumed", "paused"]


async def test_nothing_is_executed_in_a_paused_container(pod: Pod) -> None:
    await pod.run("c", "sleep", "60")
    await pod.call("Exec", id="c", exec_id="before", spec=process("true"))
    await pod.call("Pause", id="c")
    await pod.refused(Code.FAILED_PRECONDITION, "Exec", "paused", id="c", exec_id="e", spec=process("true"))
    await pod.refused(Code.FAILED_PRECONDITION, "Start", "paused", id="c", exec_id="before")
    await pod.call("Resume", id="c")
    await pod.call("Start", id="c", exec_id="before")
    assert (await pod.call("Wait", id="c", exec_id="before")).exit_status == 0


async def test_a_failed_start_can_be_repeated(pod: Pod) -> None:
    await pod.create("c", "sleep", "60")
    pod.life.backend.failures["start"] = Internal("no")
    await pod.refused(Code.INTERNAL, "Start", "no", id="c")
    assert (await pod.call("State", id="c")).status == types.CREATED
    pod.life.backend.failures.clear()
    await pod.call("Start", id="c")


async def test_a_failed_delete_can_be_repeated(pod: Pod) -> None:
    await pod.run("c", "true")
    await pod.call("Wait", id="c")
    pod.life.backend.failures["delete"] = Internal("no")
    await pod.refused(Code.INTERNAL, "Delete", "no", id="c")
    assert (await pod.call("State", id="c")).status == types.STOPPED
    pod.life.backend.failures.clear()
    await pod.call("Delete", id="c")


async def test_pids_are_never_none(pod: Pod) -> None:
    pid = await pod.run("c", "true")
    await pod.call("Wait", id="c")
    assert [p.pid for p in (await pod.call("Pids", id="c")).processes] == [pid]


async def test_shutdown_touches_nothing(pod: Pod) -> None:
    await pod.run("c", "sleep", "60")
    await pod.call("Shutdown", id="c", now=True)
    assert (await pod.call("State", id="c")).status == types.RUNNING


async def test_limits_go_to_the_backend(pod: Pod) -> None:
    await pod.run("c", "sleep", "60")
    resources = process("x")
    resources.value = b'{"cpu": {}}'
    await pod.call("Update", id="c", resources=resources)
    assert pod.life.backend.updates == [b'{"cpu": {}}']
    await pod.refused(Code.INVALID_ARGUMENT, "Update", "no resources", id="c")


async def test_a_container_that_exits_before_start_returns_is_told(pod: Pod) -> None:
    for number in range(10):
        await pod.run(f"c{number}", "true")
        assert (await pod.call("Wait", id=f"c{number}")).exit_status == 0
        assert (await pod.call("State", id=f"c{number}")).status == types.STOPPED


async def test_an_end_that_comes_before_start_returns_is_told_after_the_start(pod: Pod) -> None:
    gate = pod.life.backend.gates["started"] = asyncio.Event()
    await pod.create("c", "true")
    start = asyncio.ensure_future(pod.call("Start", id="c"))
    await pod.call("Wait", id="c")
    gate.set()
    await start
    assert pod.life.sink.topics() == ["create", "start", "exit"]


async def test_a_container_that_has_just_ended_is_deleted_when_its_end_is_told(pod: Pod) -> None:
    gate = pod.life.sink.gate = asyncio.Event()
    await pod.create("c", "true")
    container = pod.life.service.containers["c"]
    container.oom_kills = 1
    await pod.call("Kill", id="c", signal=9)
    await until(lambda: pod.life.sink.flushes == 1)
    delete = asyncio.ensure_future(pod.call("Delete", id="c"))
    await asyncio.sleep(0.05)
    gate.set()
    assert (await delete).exit_status == 137


async def test_a_pod_stops_when_the_container_that_is_being_created_is_done(pod: Pod) -> None:
    gate = pod.life.backend.gates["create"] = asyncio.Event()
    create = asyncio.ensure_future(pod.create("c", "sleep", "60"))
    await until(lambda: "c" in pod.life.service.containers)
    with pytest.raises(FailedPrecondition, match=r"still there after 0\.05 s: container c"):
        await pod.life.service.stop(0.05)
    stop = asyncio.ensure_future(pod.life.service.stop(10))
    await asyncio.sleep(0.05)
    assert not stop.done()
    gate.set()
    await stop
    assert (await create).pid
    assert (await pod.call("Wait", id="c")).exit_status == 137
    await pod.life.service.delete_all()
    await pod.refused(Code.FAILED_PRECONDITION, "Create", "has been stopped", id="d", bundle="/x")


# -- refusals --------------------------------------------------------------------------------------


async def test_what_is_unknown_is_not_found(pod: Pod) -> None:
    await pod.run("c", "sleep", "60")
    for method in (
        "Start",
        "State",
        "Wait",
        "Delete",
        "Pids",
        "Pause",
        "Resume",
        "Stats",
        "Update",
        "CloseIO",
    ):
        await pod.refused(Code.NOT_FOUND, method, "'x'", id="x")
    await pod.refused(Code.NOT_FOUND, "Kill", id="x", signal=9)
    for method in ("Start", "State", "Wait", "Delete", "CloseIO", "ResizePty"):
        await pod.refused(Code.NOT_FOUND, method, "no exec 'x'", id="c", exec_id="x")


async def test_stats_without_a_cgroup_are_not_found(pod: Pod) -> None:
    await pod.run("c", "sleep", "60")
    await pod.refused(Code.NOT_FOUND, "Stats", id="c")


async def test_checkpoints_are_not_offered(pod: Pod) -> None:
    await pod.refused(Code.UNIMPLEMENTED, "Checkpoint", "c", id="c")
    await pod.refused(Code.INVALID_ARGUMENT, "Create", "checkpoint", id="c", bundle="/x", checkpoint="/y")


@pytest.mark.parametrize("signum", [65, 4_000_000])
async def test_what_is_no_signal_is_refused(pod: Pod, signum: int) -> None:
    await pod.run("c", "sleep", "60")
    await pod.refused(Code.INVALID_ARGUMENT, "Kill", "not a signal", id="c", signal=signum)


async def test_signal_0_tells_whether_a_process_lives(pod: Pod) -> None:
    await pod.run("c", "sleep", "60")
    await pod.call("Kill", id="c", signal=0)
    await pod.call("Kill", id="c", signal=9)
    await pod.call("Wait", id="c")
    await pod.refused(Code.NOT_FOUND, "Kill", "finished", id="c", signal=0)


@pytest.mark.parametrize("container_id", ["", "..", "a/b", "x" * 77])
async def test_malformed_ids_are_refused(pod: Pod, container_id: str) -> None:
    await pod.refused(Code.INVALID_ARGUMENT, "Create", "not allowed", id=container_id, bundle="/x")


async def test_a_duplicate_exists_already_and_the_first_goes_on(pod: Pod) -> None:
    pid = await pod.run("c", "sleep", "60")
    await pod.refused(Code.ALREADY_EXISTS, "Create", id="c", bundle=str(pod.directory / "bundles/c"))
    assert (await pod.call("State", id="c")).pid == pid


def no_bundle(pod: Pod) -> dict[str, Any]:
    return {"bundle": str(pod.directory / "none")}


def relative_bundle(pod: Pod) -> dict[str, Any]:
    return {"bundle": "bundles/c"}


def upward_bundle(pod: Pod) -> dict[str, Any]:
    return {"bundle": pod.bundle("c", ["true"]) + "/../c"}


def linked_bundle(pod: Pod) -> dict[str, Any]:
    link = pod.directory / "link"
    link.symlink_to(pod.bundle("c", ["true"]))
    return {"bundle": str(link)}


def nul_bundle(pod: Pod) -> dict[str, Any]:
    return {"bundle": "/a\0b"}


def no_json(pod: Pod) -> dict[str, Any]:
    bundle = pod.bundle("c", ["true"])
    Path(bundle, "config.json").write_text("{")
    return {"bundle": bundle}


def fifo_as_spec(pod: Pod) -> dict[str, Any]:
    bundle = pod.bundle("c", ["true"])
    os.unlink(f"{bundle}/config.json")
    os.mkfifo(f"{bundle}/config.json")
    return {"bundle": bundle}


def huge_spec(pod: Pod) -> dict[str, Any]:
    bundle = pod.bundle("c", ["true"])
    os.truncate(f"{bundle}/config.json", (16 << 20) + 1)
    return {"bundle": bundle}


def no_rootfs(pod: Pod) -> dict[str, Any]:
    bundle = pod.bundle("c", ["true"])
    os.rmdir(f"{bundle}/rootfs")
    return {"bundle": bundle}


def linked_rootfs(pod: Pod) -> dict[str, Any]:
    bundle = pod.bundle("c", ["true"])
    os.rmdir(f"{bundle}/rootfs")
    os.symlink("/", f"{bundle}/rootfs")
    return {"bundle": bundle}


def upward_rootfs(pod: Pod) -> dict[str, Any]:
    return {"bundle": pod.bundle("c", ["true"], root={"path": "../../.."})}


def no_root(pod: Pod) -> dict[str, Any]:
    return {"bundle": pod.bundle("c", ["true"], root=None)}


def stranger(pod: Pod) -> dict[str, Any]:
    namespaces = [{"type": "network", "path": "/proc/1/ns/net"}]
    return {"bundle": pod.bundle("c", ["true"], linux={"namespaces": namespaces})}


def missing_program(pod: Pod) -> dict[str, Any]:
    return {"bundle": pod.bundle("c", ["/nonesuch"])}


def missing_fifo(pod: Pod) -> dict[str, Any]:
    return {"bundle": pod.bundle("c", ["true"]), "stdout": str(pod.directory / "nofifo")}


def logger(pod: Pod) -> dict[str, Any]:
    return {"bundle": pod.bundle("c", ["true"]), "stdout": "binary:///bin/logger"}


def failing_backend(pod: Pod) -> dict[str, Any]:
    pod.life.backend.failures["create"] = Internal("no")
    return {"bundle": pod.bundle("c", ["true"])}


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (no_bundle, Code.NOT_FOUND),
        (relative_bundle, Code.INVALID_ARGUMENT),
        (upward_bundle, Code.INVALID_ARGUMENT),
        (linked_bundle, Code.INVALID_ARGUMENT),
        (nul_bundle, Code.INVALID_ARGUMENT),
        (no_json, Code.INVALID_ARGUMENT),
        (fifo_as_spec, Code.INVALID_ARGUMENT),
        (huge_spec, Code.INVALID_ARGUMENT),
        (no_rootfs, Code.INVALID_ARGUMENT),
        (linked_rootfs, Code.INVALID_ARGUMENT),
        (upward_rootfs, Code.INVALID_ARGUMENT),
        (no_root, Code.INVALID_ARGUMENT),
        (stranger, Code.INVALID_ARGUMENT),
        (missing_program, Code.INVALID_ARGUMENT),
        (missing_fifo, Code.NOT_FOUND),
        (logger, Code.INVALID_ARGUMENT),
        (failing_backend, Code.INTERNAL),
    ],
)
async def test_a_create_that_fails_leaves_nothing(pod: Pod, make: Any, code: Code) -> None:
    fields = {"stdin": pod.fifo("in"), **make(pod)}
    before = open_descriptors()
    await pod.refused(code, "Create", id="c", **fields)
    assert pod.life.service.containers == {}
    assert pod.life.sink.published == []
    tasks = pod.life.directory / "tasks"
    assert not tasks.exists() or os.listdir(tasks) == []
    assert open_descriptors() == before
    pod.life.backend.failures.clear()
    shutil.rmtree(pod.directory / "bundles", ignore_errors=True)
    await pod.run("c", "true", stdin=fields["stdin"])


@pytest.mark.parametrize("path", ["/", "/proc", "."])
async def test_mounts_go_nowhere_but_into_the_bundle(pod: Pod, path: str) -> None:
    bundle = pod.bundle("c", ["true"], root={"path": path})
    rootfs = [mount_pb2.Mount(type="bind", source="/nonesuch", options=["bind"])]
    await pod.refused(
        Code.INVALID_ARGUMENT, "Create", "outside of the bundle", id="c", bundle=bundle, rootfs=rootfs
    )


# -- execs -----------------------------------------------------------------------------------------


async def test_an_exec_lives_and_dies_beside_its_container(pod: Pod) -> None:
    await pod.run("c", "sleep", "60")
    await pod.add_exec("c", "e", "sh", "-c", "echo out; exit 5", stdout=pod.fifo("out"))
    state = await pod.call("State", id="c", exec_id="e")
    assert (state.status, state.pid, state.exec_id) == (types.CREATED, 0, "e")
    wait = asyncio.ensure_future(pod.call("Wait", id="c", exec_id="e"))
    started = await pod.call("Start", id="c", exec_id="e")
    ended = await wait
    assert ended.exit_status == 5
    assert os.read(pod.outputs[0], 100) == b"out\n"
    deleted = await pod.call("Delete", id="c", exec_id="e")
    assert (deleted.pid, deleted.exit_status) == (started.pid, 5)
    await pod.refused(Code.NOT_FOUND, "State", id="c", exec_id="e")
    assert (await pod.call("State", id="c")).status == types.RUNNING
    assert pod.life.sink.topics()[2:] == ["exec-added", "exec-started", "exit"]
    exit_event = pod.life.sink.published[-1][1]
    assert isinstance(exit_event, events.TaskExit)
    assert (exit_event.container_id, exit_event.id, exit_event.exit_status) == ("c", "e", 5)


async def test_an_exec_of_a_missing_program_fails_at_start_and_leaves_nothing(pod: Pod) -> None:
    await pod.run("c", "sleep", "60")
    await pod.add_exec("c", "e", "/nonesuch", stdin=pod.fifo("in"), stdout=pod.fifo("out"))
    before = open_descriptors()
    await pod.refused(Code.INVALID_ARGUMENT, "Start", "/nonesuch", id="c", exec_id="e")
    assert open_descriptors() == before
    assert (await pod.call("State", id="c", exec_id="e")).status == types.CREATED
    await pod.call("Delete", id="c", exec_id="e")


async def test_execs_are_refused_where_they_cannot_be(pod: Pod) -> None:
    await pod.run("c", "sleep", "60")
    await pod.add_exec("c", "e", "true")
    await pod.refused(Code.ALREADY_EXISTS, "Exec", id="c", exec_id="e", spec=process("true"))
    await pod.refused(Code.INVALID_ARGUMENT, "Exec", id="c", exec_id="../e", spec=process("true"))
    await pod.refused(Code.INVALID_ARGUMENT, "Exec", id="c", exec_id="f")
    await pod.refused(Code.NOT_FOUND, "Exec", id="x", exec_id="e", spec=process("true"))
    await pod.call("Kill", id="c", signal=9)
    await pod.call("Wait", id="c")
    await pod.refused(Code.FAILED_PRECONDITION, "Exec", id="c", exec_id="g", spec=process("true"))
    await pod.refused(Code.FAILED_PRECONDITION, "Start", id="c", exec_id="e")


async def test_an_exec_gets_no_more_than_a_daemon_without_privileges_can_grant(pod: Pod) -> None:
    own = int(Path("/proc/self/oom_score_adj").read_text())
    pod.life.service.preparer = pod.life.preparer(may_raise_limits=False)
    await pod.run("c", "sleep", "60")
    wanted = process("true")
    wanted.value = wanted.value.replace(b"{", b'{"oomScoreAdj":%d,' % (own - 1), 1)
    await pod.call("Exec", id="c", exec_id="e", spec=wanted)
    record = pod.life.service.containers["c"].process("e").record
    assert record is not None
    command = json.loads(record.command)
    assert command == {**json.loads(wanted.value), "oomScoreAdj": own}
    await pod.call("Start", id="c", exec_id="e")


async def test_a_running_exec_is_killed_alone(pod: Pod) -> None:
    await pod.run("c", "sleep", "60")
    await pod.add_exec("c", "e", "sleep", "60")
    await pod.refused(Code.NOT_FOUND, "Kill", "no process yet", id="c", exec_id="e", signal=9)
    await pod.call("Start", id="c", exec_id="e")
    await pod.refused(Code.FAILED_PRECONDITION, "Delete", id="c", exec_id="e")
    await pod.call("Kill", id="c", exec_id="e", signal=15)
    assert (await pod.call("Wait", id="c", exec_id="e")).exit_status == 143
    assert (await pod.call("State", id="c")).status == types.RUNNING


async def test_who_waits_for_an_exec_that_is_deleted_unstarted_is_told(pod: Pod) -> None:
    await pod.run("c", "sleep", "60")
    await pod.add_exec("c", "e", "true")
    wait = asyncio.ensure_future(pod.refused(Code.NOT_FOUND, "Wait", "deleted", id="c", exec_id="e"))
    await pod.call("State", id="c", exec_id="e")
    await pod.call("Delete", id="c", exec_id="e")
    await wait


async def test_input_may_be_closed_before_the_exec_starts(pod: Pod) -> None:
    await pod.run("c", "sleep", "60")
    await pod.add_exec("c", "e", "cat", stdin=pod.fifo("in"))
    await pod.call("CloseIO", id="c", exec_id="e", stdin=True)
    await pod.call("Start", id="c", exec_id="e")
    assert (await pod.call("Wait", id="c", exec_id="e")).exit_status == 0


async def test_a_terminal_is_sized_before_and_after_its_start(pod: Pod) -> None:
    await pod.run("c", "sleep", "60")
    out = pod.fifo("out")
    await pod.add_exec("c", "e", "sh", "-c", "stty size; sleep 60", terminal=True, stdout=out)
    await pod.call("ResizePty", id="c", exec_id="e", width=77, height=22)
    await pod.call("Start", id="c", exec_id="e")
    seen = bytearray()

    def read() -> bool:
        try:
            seen.extend(os.read(pod.outputs[0], 100))
        except BlockingIOError:
            return False
        return b"\n" in seen

    await until(read)
    assert bytes(seen) == b"22 77\r\n"
    await pod.call("ResizePty", id="c", exec_id="e", width=10, height=5)
    await pod.refused(Code.FAILED_PRECONDITION, "ResizePty", "no terminal", id="c", width=1, height=1)
