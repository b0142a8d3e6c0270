"""The Task service of a VM pod, in front of an agent that answers as it likes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from common.ttrpc import Client, StatusCode, StatusError
from proto.gen.cgroups.v1 import metrics_pb2 as v1
from proto.gen.cgroups.v2 import metrics_pb2 as v2
from proto.gen.containerd.events import task_pb2 as events
from proto.gen.containerd.task.v3 import shim_pb2 as api
from proto.gen.containerd.types import task_pb2 as types
from proto.gen.sandboxd.agent.v1.agent_pb2 import StreamEnd
from sandboxers.vm.containers import HIGHEST_HOST_PID
from sandboxers.vm.recovery import adopt_containers, read_containers
from tests.unit.common.ttrpc.peers import until
from tests.unit.sandboxers.vm.conftest import SERVICE, TIMEOUT_S, Pod


async def call(engine: Client, method: str, request: Message, kind: type[Any] = Empty) -> Any:
    return await engine.call(SERVICE, method, request, kind, TIMEOUT_S)


async def create(pod: Pod, engine: Client, container_id: str = "one") -> int:
    stdout = f"{pod.directory}/{container_id}.out"
    os.mkfifo(stdout)
    pod.outputs.append(os.open(stdout, os.O_RDONLY | os.O_NONBLOCK))
    request = api.CreateTaskRequest(id=container_id, bundle=f"/bundles/{container_id}", stdout=stdout)
    pid: int = (await call(engine, "Create", request, api.CreateTaskResponse)).pid
    return pid


async def test_nothing_that_names_something_comes_from_the_guest(pod: Pod, engine: Client) -> None:
    pid = await create(pod, engine)
    assert pid > HIGHEST_HOST_PID
    assert (await call(engine, "Start", api.StartRequest(id="one"), api.StartResponse)).pid == pid
    state = await call(engine, "State", api.StateRequest(id="one"), api.StateResponse)
    stdout = f"{pod.directory}/one.out"
    assert state == api.StateResponse(
        id="one", bundle="/bundles/one", pid=pid, status=types.RUNNING, stdout=stdout
    )
    assert (await call(engine, "Connect", api.ConnectRequest(id="one"), api.ConnectResponse)).task_pid == pid
    pids = await call(engine, "Pids", api.PidsRequest(id="one"), api.PidsResponse)
    assert [process.pid for process in pids.processes] == [pid]
    waiting = asyncio.create_task(call(engine, "Wait", api.WaitRequest(id="one"), api.WaitResponse))
    pod.agent.ended.set()
    ended = await waiting
    assert ended.exit_status == 7
    assert abs(ended.exited_at.seconds - time.time()) < 60
    deleted = await call(engine, "Delete", api.DeleteRequest(id="one"), api.DeleteResponse)
    assert (deleted.pid, deleted.exit_status, deleted.exited_at) == (pid, 7, ended.exited_at)
    assert pod.lost == []


async def state(engine: Client) -> int:
    answer = await call(engine, "State", api.StateRequest(id="one"), api.StateResponse)
    return int(answer.status)


async def test_a_state_that_cannot_have_changed_is_told_without_the_guest(pod: Pod, engine: Client) -> None:
    await create(pod, engine)
    assert await state(engine) == types.CREATED
    await call(engine, "Start", api.StartRequest(id="one"), api.StartResponse)
    assert await state(engine) == types.RUNNING
    assert "State" not in pod.agent.methods
    await call(engine, "Pause", api.PauseRequest(id="one"))
    assert await state(engine) == types.RUNNING  # so says the guest
    assert pod.agent.methods[-1] == "State"
    await pod.tasks.on_event(events.TaskExit(container_id="one", id="one", exit_status=3))
    assert await state(engine) == types.STOPPED
    assert pod.agent.methods.count("State") == 1


async def test_while_a_process_is_being_started_the_guest_tells_its_state(pod: Pod, engine: Client) -> None:
    await create(pod, engine)
    pod.agent.silent_on = "Start"
    starting = asyncio.create_task(call(engine, "Start", api.StartRequest(id="one"), api.StartResponse))
    await until(lambda: "Start" in pod.agent.methods)
    assert await state(engine) == types.RUNNING
    assert pod.agent.methods[-1] == "State"
    pod.agent.go_on.set()
    await starting
    assert await state(engine) == types.RUNNING
    assert pod.agent.methods.count("State") == 1


async def test_a_later_daemon_asks_the_guest_for_states(pod: Pod, engine: Client) -> None:
    await create(pod, engine)
    later = pod.new_tasks()
    adopt_containers(later, read_containers(later.directory))
    assert later.state_as_known(api.StateRequest(id="one")) is None
    for process in later.container("one").processes():
        later.end_streams(process)


async def test_the_guest_gets_a_bundle_and_streams_of_its_own(pod: Pod, engine: Client) -> None:
    await create(pod, engine)
    method, request = pod.agent.asked[0]
    assert method == "Create"
    assert isinstance(request, api.CreateTaskRequest)
    (stream,) = pod.guest.streams
    assert request == api.CreateTaskRequest(
        id="one", bundle="/run/sandboxd/shares/pod/one", stdout=f"stream:{stream}"
    )
    assert pod.preparer.prepared == ["one"]


async def test_figures_of_an_unknown_kind_are_a_lie(pod: Pod, engine: Client) -> None:
    await create(pod, engine)
    asked = asyncio.create_task(call(engine, "Stats", api.StatsRequest(id="one"), api.StatsResponse))
    async with asyncio.timeout(TIMEOUT_S):
        while not pod.lost:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    pod.end()
    with pytest.raises(StatusError) as raised:
        await asked
    assert raised.value.code == StatusCode.NOT_FOUND


async def test_an_engine_that_knows_v1_alone_gets_the_guests_figures_so(pod: Pod, engine: Client) -> None:
    await create(pod, engine)
    figures = v2.Metrics(cpu=v2.CPUStat(usage_usec=7))
    pod.agent.figures = AnyMessage(type_url=figures.DESCRIPTOR.full_name, value=figures.SerializeToString())
    told = await call(engine, "Stats", api.StatsRequest(id="one"), api.StatsResponse)
    assert told.stats == pod.agent.figures
    pod.tasks.stats_as_v1 = True
    told = await call(engine, "Stats", api.StatsRequest(id="one"), api.StatsResponse)
    assert told.stats.type_url == "io.containerd.cgroups.v1.Metrics"
    assert v1.Metrics.FromString(told.stats.value).cpu.usage.total == 7000


@pytest.mark.parametrize("refuses", [False, True])
async def test_execs_that_do_not_run_and_are_not_listed_are_forgotten_here_and_in_the_guest(
    pod: Pod, engine: Client, refuses: bool
) -> None:
    await create(pod, engine)
    for exec_id in ("ended", "listed", "running", "registered"):
        request = api.ExecProcessRequest(id="one", exec_id=exec_id)
        request.spec.value = b'{"args": ["true"], "cwd": "/"}'
        await call(engine, "Exec", request)
        if exec_id != "registered":
            start = api.StartRequest(id="one", exec_id=exec_id)
            await call(engine, "Start", start, api.StartResponse)
    execs = pod.tasks.container("one").execs
    assert execs is not None
    for exec_id in ("ended", "listed"):
        pod.tasks.note_exit(execs[exec_id], 0, Timestamp())
    pod.guest.refuses = refuses
    await pod.tasks.forget_unlisted_execs({"one": {"listed"}})
    assert execs.keys() == {"listed", "running"}
    assert sorted(os.listdir(f"{pod.tasks.directory}/one/execs")) == ["listed.json", "running.json"]
    deleted = [("Delete", api.DeleteRequest(id="one", exec_id=name)) for name in ("ended", "registered")]
    assert pod.guest.calls == ([] if refuses else deleted)


async def test_a_create_that_the_guest_refuses_leaves_nothing(pod: Pod, engine: Client) -> None:
    pod.agent.refusing = "Create"
    with pytest.raises(StatusError, match="refused by the guest"):
        await create(pod, engine)
    assert pod.preparer.released == ["one"]
    assert pod.tasks.containers == {}
    assert os.listdir(pod.tasks.directory) == []


async def test_an_ended_machine_answers_as_if_all_had_been_killed(pod: Pod, engine: Client) -> None:
    pid = await create(pod, engine)
    await call(engine, "Start", api.StartRequest(id="one"), api.StartResponse)
    waiting = asyncio.create_task(call(engine, "Wait", api.WaitRequest(id="one"), api.WaitResponse))
    await call(engine, "State", api.StateRequest(id="one"), api.StateResponse)
    pod.end()
    assert (await waiting).exit_status == 137
    state = await call(engine, "State", api.StateRequest(id="one"), api.StateResponse)
    assert (state.pid, state.status, state.exit_status) == (pid, types.STOPPED, 137)
    assert (await call(engine, "Wait", api.WaitRequest(id="one"), api.WaitResponse)).exit_status == 137
    with pytest.raises(StatusError) as raised:
        await call(engine, "Kill", api.KillRequest(id="one", signal=signal.SIGKILL))
    assert raised.value.code == StatusCode.NOT_FOUND
    for method, request in (("Start", api.StartRequest(id="one")), ("Pause", api.PauseRequest(id="one"))):
        with pytest.raises(StatusError, match="the machine is gone"):
            await call(engine, method, request, api.StartResponse)
    await call(engine, "CloseIO", api.CloseIORequest(id="one", stdin=True))
    with pytest.raises(StatusError, match="the machine is gone"):
        await create(pod, engine, "two")
    deleted = await call(engine, "Delete", api.DeleteRequest(id="one"), api.DeleteResponse)
    assert (deleted.pid, deleted.exit_status) == (pid, 137)
    assert pod.preparer.released == ["one"]


async def test_an_exit_that_the_guest_has_told_is_told_by_the_host_from_then_on(
    pod: Pod, engine: Client
) -> None:
    await create(pod, engine)
    await pod.tasks.on_event(events.TaskExit(container_id="one", id="one", exit_status=3))
    await pod.tasks.on_event(events.TaskExit(container_id="stranger", id="x", exit_status=4))
    await pod.tasks.on_event(events.TaskExit(container_id="one", id="one", exit_status=5))
    assert (await call(engine, "Wait", api.WaitRequest(id="one"), api.WaitResponse)).exit_status == 3
    pod.end()
    state = await call(engine, "State", api.StateRequest(id="one"), api.StateResponse)
    assert (state.status, state.exit_status) == (types.STOPPED, 3)


async def test_a_later_daemon_knows_containers_pids_and_exits(pod: Pod, engine: Client) -> None:
    pid = await create(pod, engine)
    other = await create(pod, engine, "two")
    await pod.tasks.on_event(events.TaskExit(container_id="two", id="two", exit_status=3))
    later = pod.new_tasks()
    adopt_containers(later, read_containers(later.directory))
    assert {c.id: (c.init.pid, c.made, c.bundle) for c in later.containers.values()} == {
        "one": (pid, True, "/bundles/one"),
        "two": (other, True, "/bundles/two"),
    }
    assert later.containers["one"].init.exit is None
    ended = later.containers["two"].init.exit
    assert ended is not None
    assert ended.code == 3
    assert later.abandoned() == ["one", "two"]


async def test_a_frozen_guest_is_found_out_when_something_must_be_killed(
    pod: Pod, engine: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandboxers.vm.guest_pod._KILL_PATIENCE_S", 0.05)
    await create(pod, engine)
    await call(engine, "Kill", api.KillRequest(id="one", signal=signal.SIGKILL))
    await asyncio.sleep(0.2)
    assert pod.frozen == []
    pod.guest.refuses = True
    await call(engine, "Kill", api.KillRequest(id="one", signal=signal.SIGKILL))
    await asyncio.sleep(0.2)
    assert len(pod.frozen) == 1


async def test_a_guest_that_opens_no_stream_is_asked_whether_it_is_there(pod: Pod, engine: Client) -> None:
    pod.guest.silent = True
    with pytest.raises(StatusError) as raised:
        await create(pod, engine)
    assert raised.value.code == StatusCode.DEADLINE_EXCEEDED
    await until(lambda: bool(pod.frozen))
    assert pod.frozen == ["it does not answer (silence)"]


async def test_a_guest_that_answers_but_accepts_no_connection_is_ended(pod: Pod, engine: Client) -> None:
    pod.guest.deaf = True
    with pytest.raises(StatusError):
        await create(pod, engine)
    await until(lambda: bool(pod.frozen))
    assert pod.frozen == ["it does not accept connections (silence)"]


async def test_a_guest_that_answers_with_an_error_is_there(pod: Pod, engine: Client) -> None:
    await create(pod, engine)
    pod.guest.exhausted = True
    pod.tasks.doubt()
    await asyncio.sleep(0.05)
    assert pod.frozen == []


async def test_a_guest_that_gives_no_figures_is_asked_whether_it_is_there(
    pod: Pod, engine: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandboxers.vm.guest_pod._LAST_PATIENCE_S", 0.05)
    await create(pod, engine)
    pod.agent.silent_on = "Stats"
    asked = [asyncio.create_task(call(engine, "Stats", api.StatsRequest(id="one"), api.StatsResponse))]
    await asyncio.sleep(0.1)
    # It was busy, and is believed.
    asked.append(asyncio.create_task(call(engine, "Stats", api.StatsRequest(id="one"), api.StatsResponse)))
    await asyncio.sleep(0.1)
    assert pod.frozen == []
    pod.guest.silent = True
    while not pod.frozen:
        asked.append(
            asyncio.create_task(call(engine, "Stats", api.StatsRequest(id="one"), api.StatsResponse))
        )
        await asyncio.sleep(0.02)
    assert pod.frozen == ["it does not answer (silence)"]
    pod.end()
    ends = await asyncio.gather(*asked, return_exceptions=True)
    assert {end.code for end in ends if isinstance(end, StatusError)} == {StatusCode.NOT_FOUND}


async def test_a_guest_that_does_not_end_what_is_killed_is_ended(
    pod: Pod, engine: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_KILL_PATIENCE_S", "_LAST_PATIENCE_S"):
        monkeypatch.setattr(f"sandboxers.vm.guest_pod.{name}", 0.02)
    await create(pod, engine)
    kill = api.KillRequest(id="one", signal=signal.SIGKILL)
    await call(engine, "Kill", kill)
    await until(lambda: bool(pod.frozen))
    assert pod.frozen == ["container one was killed and has not ended"]
    # An engine waits for the end of the output, too.
    await pod.tasks.on_event(events.TaskExit(container_id="one", id="one", exit_status=3))
    with pytest.raises(StatusError):
        await call(engine, "Kill", kill)
    await until(lambda: len(pod.frozen) == 2)
    (stream,) = pod.guest.streams
    await pod.tasks.on_event(StreamEnd(id=stream, length=0))
    with pytest.raises(StatusError):
        await call(engine, "Kill", kill)
    await asyncio.sleep(0.1)
    assert len(pod.frozen) == 2


async def test_a_guest_is_believed_once_about_the_end_of_a_stream_and_once_about_want_of_memory(
    pod: Pod, engine: Client
) -> None:
    await create(pod, engine)
    (stream,) = pod.guest.streams
    record = Path(pod.tasks.directory, "one/container.json")
    for _ in range(3):
        await pod.tasks.on_event(StreamEnd(id=stream, length=1 << 62))
        await pod.tasks.on_event(events.TaskOOM(container_id="one"))
    assert record.read_text().count(str(1 << 62)) == 1
    await pod.tasks.on_event(StreamEnd(id=stream, length=1))
    assert str(1 << 62) in record.read_text()
    assert pod.sink.heard == ["/tasks/create", "/tasks/oom"]


async def test_an_exit_that_comes_before_the_answer_to_start_is_told_after_it(
    pod: Pod, engine: Client
) -> None:
    await create(pod, engine)
    await pod.tasks.on_event(events.TaskExit(container_id="one", id="one", exit_status=3))
    assert pod.sink.heard == ["/tasks/create"]
    await call(engine, "Start", api.StartRequest(id="one"), api.StartResponse)
    assert pod.sink.heard == ["/tasks/create", "/tasks/start", "/tasks/exit"]


async def test_a_create_that_the_engine_gives_up_is_taken_back_in_the_guest(pod: Pod) -> None:
    pod.agent.silent_on = "Create"
    async with await pod.connect() as engine:
        creating = asyncio.create_task(create(pod, engine))
        await until(lambda: bool(pod.agent.asked))
        creating.cancel()
    await until(lambda: pod.tasks.containers == {})
    assert [method for method, _ in pod.guest.calls] == ["Kill", "Wait", "Delete"]
    assert pod.preparer.released == ["one"]


async def test_a_container_that_is_deleted_while_it_is_created_is_not_left_in_the_guest(
    pod: Pod, engine: Client
) -> None:
    pod.agent.silent_on = "Create"
    creating = asyncio.create_task(create(pod, engine))
    await until(lambda: bool(pod.agent.asked))
    async with await pod.connect() as other:
        await call(other, "Delete", api.DeleteRequest(id="one"), api.DeleteResponse)
    pod.agent.go_on.set()
    with pytest.raises(StatusError) as raised:
        await creating
    assert raised.value.code == StatusCode.NOT_FOUND
    assert [method for method, _ in pod.guest.calls] == ["Kill", "Wait", "Delete"]
    assert pod.tasks.containers == {}
    assert os.listdir(pod.tasks.directory) == []


async def test_unknown_containers_and_signals_are_refused_here(pod: Pod, engine: Client) -> None:
    await create(pod, engine)
    pod.agent.asked.clear()
    for request, code in (
        (api.KillRequest(id="one", signal=65), StatusCode.INVALID_ARGUMENT),
        (api.KillRequest(id="two", signal=9), StatusCode.NOT_FOUND),
        (api.KillRequest(id="one", exec_id="no", signal=9), StatusCode.NOT_FOUND),
    ):
        with pytest.raises(StatusError) as raised:
            await call(engine, "Kill", request)
        assert raised.value.code == code
    assert (await call(engine, "Connect", api.ConnectRequest(id="two"), api.ConnectResponse)).task_pid == 0
    assert pod.agent.asked == []
