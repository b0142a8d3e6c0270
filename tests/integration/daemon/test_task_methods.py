"""Every method of the Task service once where all is well."""

from __future__ import annotations

import asyncio
import json
import signal

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from common.errors import Code
from proto.gen.cgroups.v1.metrics_pb2 import Metrics as MetricsV1
from proto.gen.cgroups.v2.metrics_pb2 import Metrics as MetricsV2
from proto.gen.containerd.task.v2 import shim_pb2 as api_v2
from tests.integration.daemon.client import TASK_METHODS, Container, Pod, refused
from tests.integration.daemon.events import Events


async def test_a_container_runs_from_create_to_delete(pod: Pod, events: Events) -> None:
    container = pod.container("sh", "-c", "echo out; echo err >&2; exit 3")
    pid = await container.create()
    assert pid > 0
    assert await container.state() == "created"
    early = [asyncio.create_task(container.wait()) for _ in range(3)]
    assert await container.start() == pid
    assert await asyncio.gather(*early) == [3, 3, 3]
    assert await container.wait() == 3
    assert await container.stdout.end() == b"out\n"
    assert await container.stderr.end() == b"err\n"
    state = await pod.task("State", id=container.id)
    assert (state.pid, state.exit_status, state.bundle) == (pid, 3, container.bundle)
    assert (state.stdin, state.stdout, state.stderr) == ("", container.io["stdout"], container.io["stderr"])
    deleted = await container.delete()
    assert (deleted.pid, deleted.exit_status) == (pid, 3)
    assert deleted.exited_at == state.exited_at
    await events.until(container.id, "/tasks/delete")
    assert events.topics_of(container.id) == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


async def test_the_topics_and_types_of_events_are_those_of_the_engine(pod: Pod, events: Events) -> None:
    container = await pod.running()
    await container.run_exec("true")
    await pod.task("Pause", id=container.id)
    await pod.task("Resume", id=container.id)
    await container.kill(9)
    await container.wait()
    await container.delete()
    await events.until(container.id, "/tasks/delete")
    mine = [(topic, kind) for topic, kind, _, event in events.received if container.id.encode() in event]
    assert mine == [
        ("/tasks/create", "containerd.events.TaskCreate"),
        ("/tasks/start", "containerd.events.TaskStart"),
        ("/tasks/exec-added", "containerd.events.TaskExecAdded"),
        ("/tasks/exec-started", "containerd.events.TaskExecStarted"),
        ("/tasks/exit", "containerd.events.TaskExit"),
        ("/tasks/paused", "containerd.events.TaskPaused"),
        ("/tasks/resumed", "containerd.events.TaskResumed"),
        ("/tasks/exit", "containerd.events.TaskExit"),
        ("/tasks/delete", "containerd.events.TaskDelete"),
    ]
    assert {namespace for _, _, namespace, _ in events.received} == {"k8s.io"}


@pytest.mark.parametrize("code", [0, 1, 127, 255])
async def test_exit_codes_are_true(pod: Pod, code: int) -> None:
    container = await pod.running("sh", "-c", f"exit {code}")
    assert await container.wait() == code


async def test_a_signal_gives_128_and_its_number(pod: Pod) -> None:
    container = await pod.running()
    for signum in (signal.SIGTERM, signal.SIGSEGV, signal.SIGKILL, 34):
        process = await container.exec("sleep", "1000")
        await process.start()
        await process.kill(signum)
        assert await process.wait() == 128 + signum
        await process.delete()
    await container.kill(signal.SIGKILL)
    assert await container.wait() == 137


async def test_a_container_that_was_never_started_can_be_killed_and_deleted(pod: Pod) -> None:
    killed, deleted = pod.container("true"), pod.container("true")
    await killed.create()
    await killed.kill(9)
    assert await killed.wait() == 137
    await killed.delete()
    await deleted.create()
    await deleted.delete()
    with refused(Code.NOT_FOUND, deleted.id):
        await deleted.state()


async def test_kill_of_what_has_ended_is_not_found(pod: Pod) -> None:
    container = await pod.running("true")
    await container.wait()
    for everything in (False, True):
        with refused(Code.NOT_FOUND, container.id, "finished"):
            await container.kill(9, everything=everything)


async def test_kill_all_reaches_every_process(pod: Pod) -> None:
    container = await pod.running("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1000; done")
    process = await container.exec("sleep", "1000")
    await process.start()
    await container.stdout.until(b"ready")
    await container.kill(signal.SIGTERM, everything=True)
    assert await process.wait() == 143
    assert await container.state() == "running"


async def test_an_exec_has_its_own_streams_and_exit_code(pod: Pod) -> None:
    container = await pod.running()
    process = await container.exec("sh", "-c", "echo here; echo there >&2; exit 7")
    assert await process.state() == "created"
    waiting = asyncio.create_task(process.wait())
    await process.start()
    assert await waiting == 7
    assert await process.stdout.end() == b"here\n"
    assert await process.stderr.end() == b"there\n"
    assert await process.state() == "stopped"
    assert (await process.delete()).exit_status == 7
    with refused(Code.NOT_FOUND, "exec1", container.id):
        await process.state()
    assert await container.state() == "running"


async def test_an_exec_can_have_a_user_a_directory_and_an_environment(pod: Pod) -> None:
    container = await pod.running()
    command = ("sh", "-c", "id -u; pwd; echo $COLOUR")
    assert await container.run_exec(*command, uid=65534, gid=65534, cwd="/tmp", env=["COLOUR=blue"]) == (
        0,
        "65534\n/tmp\nblue\n",
    )


async def test_cat_ends_after_close_io_and_has_read_everything(pod: Pod) -> None:
    container = await pod.running("cat", streams=("stdin", "stdout"))
    container.write(b"first\n")
    await container.stdout.until(b"first\n")
    container.close_stdin()
    await asyncio.sleep(0.05)
    assert await container.state() == "running", "an attached client that detaches must not end the input"
    container.write(b"second\n")
    await container.task("CloseIO", id=container.id, stdin=True)
    container.close_stdin()
    assert await container.wait() == 0
    assert await container.stdout.end() == b"first\nsecond\n"


async def test_close_io_of_an_exec_counts_even_before_its_start(pod: Pod) -> None:
    container = await pod.running()
    process = await container.exec("cat", streams=("stdin", "stdout"))
    await pod.task("CloseIO", **process.ids, stdin=True)
    await pod.task("Start", **process.ids)
    assert await process.wait() == 0


async def test_pids_lists_all_processes_and_never_none(pod: Pod) -> None:
    container = await pod.running("sh", "-c", "sleep 1000 & echo ready; wait")
    await container.stdout.until(b"ready")
    process = await container.exec("sleep", "1000")
    exec_pid = await process.start()
    pids = [entry.pid for entry in (await pod.task("Pids", id=container.id)).processes]
    assert len(pids) == 3
    assert {container.pid, exec_pid} < set(pids)
    await container.kill(9)
    await container.wait()
    assert len((await pod.task("Pids", id=container.id)).processes) >= 1


async def test_connect_tells_pids_and_knows_no_strangers(pod: Pod) -> None:
    container = await pod.running()
    answer = await pod.task("Connect", id=container.id)
    assert (answer.task_pid, answer.shim_pid, answer.version) == (container.pid, pod.daemon.inner_pid, "3")
    assert (await pod.task("Connect", id="nobody")).task_pid == 0


async def test_pause_freezes_and_resume_thaws(pod: Pod) -> None:
    container = await pod.running(
        "sh", "-c", "while read line; do echo $line; done", streams=("stdin", "stdout")
    )
    await pod.task("Pause", id=container.id)
    assert await container.state() == "paused"
    container.write(b"hello\n")
    await asyncio.sleep(0.1)
    assert container.stdout.data == b""
    with refused(Code.FAILED_PRECONDITION, container.id, "paused"):
        await pod.task("Pause", id=container.id)
    await pod.task("Resume", id=container.id)
    assert await container.state() == "running"
    await container.stdout.until(b"hello\n")
    with refused(Code.FAILED_PRECONDITION, container.id, "running"):
        await pod.task("Resume", id=container.id)


async def test_a_paused_container_can_be_killed_and_deleted(pod: Pod) -> None:
    container = await pod.running()
    await pod.task("Pause", id=container.id)
    await container.kill(9)
    assert await container.wait() == 137
    await container.delete()


async def test_stats_measure_the_container(pod: Pod) -> None:
    container = await pod.running(
        "sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo; sleep 1000"
    )
    await container.stdout.until(b"\n")
    assert await _figures(container) == (True, True, 128 << 20, 1, 200)


async def test_update_changes_limits(pod: Pod) -> None:
    container = await pod.running()
    resources = AnyMessage(
        type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
        value=json.dumps({"memory": {"limit": 64 << 20}, "cpu": {"shares": 512}}).encode(),
    )
    await pod.task("Update", id=container.id, resources=resources)
    assert (await _figures(container))[2] == 64 << 20


async def test_shutdown_of_the_task_service_changes_nothing(pod: Pod) -> None:
    container = await pod.running()
    await pod.task("Shutdown", id=container.id, now=True)
    await pod.task("Shutdown", id="")
    assert await container.state() == "running"


async def test_checkpoint_is_not_offered(pod: Pod) -> None:
    container = await pod.running()
    with refused(Code.UNIMPLEMENTED, container.id):
        await pod.task("Checkpoint", id=container.id, path="/tmp/image")


async def test_version_2_of_the_service_answers_the_same(pod: Pod) -> None:
    container = await pod.running()
    answer = await pod.task.client.call(
        "containerd.task.v2.Task", "State", api_v2.StateRequest(id=container.id), api_v2.StateResponse
    )
    assert (answer.id, answer.pid) == (container.id, container.pid)


@pytest.mark.parametrize(
    "method", sorted(set(TASK_METHODS) - {"Create", "Connect", "Shutdown", "Checkpoint"})
)
async def test_an_unknown_container_is_not_found(pod: Pod, method: str) -> None:
    fields = {"exec_id": "x"} if method == "Exec" else {"signal": 9} if method == "Kill" else {}
    with refused(Code.NOT_FOUND, "nobody", pod.id):
        await pod.task(method, id="nobody", **fields)


async def test_two_invocations_of_the_runtime_start_a_container(pod: Pod) -> None:
    seen = len(pod.daemon.lab.runtime_calls())
    container = await pod.running("true")
    await container.wait()
    commands = [
        call.split("--log-format json ")[1].split()[0] for call in pod.daemon.lab.runtime_calls()[seen:]
    ]
    assert commands == ["create", "start"]
    await container.delete()
    assert len(pod.daemon.lab.runtime_calls()) == seen + 3


async def _figures(container: Container) -> tuple[bool, bool, int, int, int]:
    """Whether CPU time (over 1 ms) and memory were used; the memory limit; processes and their limit."""
    stats = (await container.task("Stats", id=container.id)).stats
    if stats.type_url == "io.containerd.cgroups.v1.Metrics":
        v1 = MetricsV1.FromString(stats.value)
        memory = v1.memory.usage
        return v1.cpu.usage.total > 1e6, memory.usage > 0, memory.limit, v1.pids.current, v1.pids.limit
    assert stats.type_url == "io.containerd.cgroups.v2.Metrics"
    v2 = MetricsV2.FromString(stats.value)
    return v2.cpu.usage_usec > 1e3, v2.memory.usage > 0, v2.memory.usage_limit, v2.pids.current, v2.pids.limit
