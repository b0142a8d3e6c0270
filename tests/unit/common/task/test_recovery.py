"""What a daemon makes of the containers that an earlier one has left."""

from __future__ import annotations

import asyncio
import os
import re
import select
import time

import pytest

from common.descriptors.store import DescriptorStore, NoStore
from common.errors import Code, FailedPrecondition, Internal, Unavailable
from common.process.exit_log import ExitLog, LoggedExit
from common.records import UnreadableRecord
from common.task.recovery import recover_containers
from common.ttrpc import CallContext
from proto.gen.containerd.task.v3 import shim_pb2 as api
from proto.gen.containerd.types import task_pb2 as types
from tests.descriptor_store import KeptInMemory
from tests.unit.common.task.conftest import until
from tests.unit.common.task.pod_lives import Life, Pod


async def test_a_new_daemon_goes_on_with_what_it_finds(pod: Pod) -> None:
    pid = await pod.run("running", "sleep", "60")
    await pod.run("ended", "sh", "-c", "exit 9")
    ended = await pod.call("Wait", id="ended")
    created = (await pod.create("created", "sleep", "60")).pid
    await begin_life(pod, end_life(pod))
    state = await pod.call("State", id="running")
    assert (state.status, state.pid) == (types.RUNNING, pid)
    state = await pod.call("State", id="ended")
    assert (state.status, state.exit_status, state.exited_at) == (types.STOPPED, 9, ended.exited_at)
    assert (await pod.call("Wait", id="ended")) == ended
    state = await pod.call("State", id="created")
    assert (state.status, state.pid) == (types.CREATED, created)
    await pod.call("Start", id="created")
    await pod.call("Kill", id="running", signal=9)
    assert (await pod.call("Wait", id="running")).exit_status == 137


async def test_what_cannot_be_rolled_back_yet_goes_with_the_pod(pod: Pod) -> None:
    pid = await pod.run("good", "sleep", "60")
    await pod.run("a", "sleep", "60")
    record = pod.life.directory / "tasks/a/container.json"
    text = record.read_text()
    old = end_life(pod)
    record.write_text(re.sub(r'"pid":\d+', '"pid":0', text))
    old.backend.failures["delete"] = Internal("no")
    await begin_life(pod, old)
    assert (await pod.call("State", id="good")).pid == pid
    assert (await pod.call("State", id="a")).status == types.STOPPED
    old.backend.failures.clear()
    await pod.life.service.stop(5)
    await pod.life.service.delete_all()
    assert os.listdir(pod.life.directory / "tasks") == []


def end_life(pod: Pod) -> Life:
    pod.client.close()
    pod.life.close()
    return pod.life


def end_life_of_process(pod: Pod) -> Life:
    """As SIGKILL does: descriptors are closed, and nobody is told."""
    store, pod.life.parts.store = pod.life.parts.store, NoStore()
    for container in pod.life.service.containers.values():
        assert container.init.stdio is not None
        container.init.stdio._store = NoStore()
    old = end_life(pod)
    old.parts.store = store
    if isinstance(store, KeptInMemory):
        store.restart()
    return old


async def begin_life(
    pod: Pod, old: Life, store: DescriptorStore | None = None, log: ExitLog | None = None
) -> None:
    pod.life = Life(old.directory, store, log)
    pod.life.backend = pod.life.parts.backend = old.backend
    await recover_containers(pod.life.service, f"{old.directory}/tasks")
    pod.client = await pod.life.listen()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("junk", UnreadableRecord),
        ('{"version": 1, "boot_id": "x", "record": {"owner": [1]}}', UnreadableRecord),
        ('{"version": 99, "boot_id": "x", "record": {}}', FailedPrecondition),
    ],
)
async def test_a_record_that_cannot_be_understood_leaves_the_whole_pod_as_it_is(
    pod: Pod, text: str, error: type[Exception]
) -> None:
    await pod.run("good", "sleep", "60")
    await pod.create("bad", "sleep", "60")
    directory = pod.life.directory / "tasks"
    record = directory / "bad/container.json"
    text_before = record.read_text()
    old = end_life(pod)
    record.write_text(text)
    files = {path: path.read_bytes() for path in directory.rglob("*.json")}
    with pytest.raises(error, match=r"bad/container\.json"):
        await begin_life(pod, old)
    assert {path: path.read_bytes() for path in directory.rglob("*.json")} == files
    assert pod.life.service.containers == {}
    record.write_text(text_before)
    pod.life.close()
    await begin_life(pod, old)
    assert (await pod.call("State", id="good")).status == types.RUNNING
    assert (await pod.call("State", id="bad")).status == types.CREATED


async def test_a_start_of_which_nobody_knows_is_settled_by_the_backend(pod: Pod) -> None:
    await pod.create("before", "sleep", "60")
    await pod.run("after", "sleep", "60")
    old = end_life(pod)
    for name in ("before", "after"):
        record = pod.life.directory / f"tasks/{name}/container.json"
        text = record.read_text().replace('"started":true', '"started":false')
        record.write_text(text.replace('"starting":false', '"starting":true'))
    await begin_life(pod, old)
    assert (await pod.call("State", id="before")).status == types.CREATED
    assert (await pod.call("State", id="after")).status == types.RUNNING
    await pod.call("Start", id="before")
    assert (await pod.call("State", id="before")).status == types.RUNNING


async def test_the_end_of_a_container_is_told_though_the_backend_says_nothing_of_it(pod: Pod) -> None:
    await pod.run("c", "sleep", "60")
    old = end_life(pod)
    record = pod.life.directory / "tasks/c/container.json"
    text = record.read_text().replace('"started":true', '"started":false')
    record.write_text(text.replace('"starting":false', '"starting":true'))
    old.backend.failures["is_started"] = Internal("it hangs")
    await begin_life(pod, old)
    ended = asyncio.ensure_future(pod.call("Wait", id="c"))
    await pod.call("Kill", id="c", signal=9)
    assert (await ended).exit_status == 137


async def test_execs_are_taken_up_in_every_state(pod: Pod) -> None:
    await pod.run("c", "sleep", "60")
    await pod.add_exec("c", "waiting", "sh", "-c", "exit 3")
    await pod.add_exec("c", "running", "sleep", "60")
    await pod.add_exec("c", "ended", "sh", "-c", "exit 4")
    pid = (await pod.call("Start", id="c", exec_id="running")).pid
    await pod.call("Start", id="c", exec_id="ended")
    ended = await pod.call("Wait", id="c", exec_id="ended")
    await begin_life(pod, end_life(pod))
    state = await pod.call("State", id="c", exec_id="running")
    assert (state.status, state.pid) == (types.RUNNING, pid)
    assert await pod.call("Wait", id="c", exec_id="ended") == ended
    assert (await pod.call("State", id="c", exec_id="waiting")).status == types.CREATED
    await pod.call("Start", id="c", exec_id="waiting")
    assert (await pod.call("Wait", id="c", exec_id="waiting")).exit_status == 3
    await pod.call("Kill", id="c", exec_id="running", signal=9)
    assert (await pod.call("Wait", id="c", exec_id="running")).exit_status == 137
    for exec_id in ("running", "waiting", "ended"):
        await pod.call("Delete", id="c", exec_id=exec_id)
    assert os.listdir(pod.life.directory / "tasks/c/execs") == []


async def test_stdin_that_was_closed_stays_closed_and_open_stdin_stays_open(pod: Pod) -> None:
    store = KeptInMemory()
    end_life(pod)
    pod.life = Life(pod.life.directory, store)
    pod.client = await pod.life.listen()
    stdin = str(pod.directory / "stdin")
    os.mkfifo(stdin)
    await pod.run("c", "cat", stdin=stdin, stdout=pod.fifo("out"))
    await begin_life(pod, end_life_of_process(pod), store)
    writer = os.open(stdin, os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, b"still here\n")
    os.close(writer)
    await pod.call("CloseIO", id="c", stdin=True)
    assert (await pod.call("Wait", id="c")).exit_status == 0
    assert os.read(pod.outputs[0], 100) == b"still here\n"
    store.close()


@pytest.mark.parametrize("fate", ["started", "deleted", "deleted with its container"])
async def test_an_output_that_a_daemon_may_have_opened_has_no_end_before_its_process(
    pod: Pod, fate: str
) -> None:
    store = KeptInMemory()
    end_life(pod)
    pod.life = Life(pod.life.directory, store)
    pod.client = await pod.life.listen()
    await pod.run("c", "sleep", "60")
    await pod.add_exec("c", "e", "echo", "said", stdout=pod.fifo("out"))
    for _ in range(2):  # once kept it is not opened again
        await begin_life(pod, end_life_of_process(pod), store)
        with pytest.raises(BlockingIOError):
            os.read(pod.outputs[0], 1)
        assert [len(fds) for name, fds in store.kept.items() if name.startswith("o")] == [1]
    if fate == "started":
        await pod.call("Start", id="c", exec_id="e")
    elif fate == "deleted":
        await pod.call("Delete", id="c", exec_id="e")
    else:
        await pod.call("Kill", id="c", signal=9)
        await pod.call("Wait", id="c")
        await pod.call("Delete", id="c")
    assert await read_until_end(pod.outputs[0]) == (b"said\n" if fate == "started" else b"")
    assert not [name for name in store.kept if name.startswith("o")]
    await pod.life.service.delete_all()
    store.close()


async def test_nobody_is_told_of_a_process_before_all_of_it_is_kept(pod: Pod) -> None:
    store = KeptInMemory()
    end_life(pod)
    pod.life = Life(pod.life.directory, store)
    pod.client = await pod.life.listen()
    with store.busy():
        created = asyncio.ensure_future(pod.create("c", "sleep", "60", stdout=pod.fifo("out")))
        await until(lambda: "c" in pod.life.service.containers and pod.life.service.containers["c"].init.runs)
        await asyncio.sleep(0.05)
        assert not created.done()
        assert '"pid":0' in (pod.life.directory / "tasks/c/container.json").read_text()
    await created
    await pod.call("Start", id="c")
    await pod.add_exec("c", "e", "sleep", "60", stdout=pod.fifo("out"))
    with store.busy():
        started = asyncio.ensure_future(pod.call("Start", id="c", exec_id="e"))
        await until(lambda: pod.life.service.containers["c"].process("e").runs)
        await asyncio.sleep(0.05)
        assert not started.done()
    await started
    await pod.life.service.delete_all()
    store.close()


async def test_an_exec_that_cannot_be_recorded_is_killed_and_can_be_started_again(pod: Pod) -> None:
    store = KeptInMemory()
    end_life(pod)
    pod.life = Life(pod.life.directory, store)
    pod.client = await pod.life.listen()
    await pod.run("c", "sleep", "60")
    await pod.add_exec("c", "e", "sh", "-c", "echo $$; exec sleep 60", stdout=pod.fifo("out"))
    kept = set(store.kept)
    obstacle = pod.life.directory / "tasks/c/execs/e.json.new"
    obstacle.mkdir()
    await pod.refused(Code.INTERNAL, "Start", "e.json.new", id="c", exec_id="e")
    assert set(store.kept) == kept
    assert await read_until_end(pod.outputs[0]) in (b"", b"%d\n" % pod.life.backend.pids("c")[-1])
    obstacle.rmdir()
    pid = (await pod.call("Start", id="c", exec_id="e")).pid
    await until(lambda: select.select([pod.outputs[0]], [], [], 0)[0])
    assert os.read(pod.outputs[0], 100) == b"%d\n" % pid
    assert not [name for name in store.kept if name.startswith("o")]
    await pod.life.service.delete_all()
    store.close()


async def read_until_end(fd: int) -> bytes:
    """Return what is written until the last writer is gone."""
    data = b""
    while True:
        try:
            piece = os.read(fd, 100)
        except BlockingIOError:
            await asyncio.sleep(0.001)
            continue
        if not piece:
            return data
        data += piece


@pytest.mark.parametrize("logged", [True, False])
async def test_an_exec_that_ran_and_ended_in_the_gap_has_its_code_or_fails(pod: Pod, logged: bool) -> None:
    await pod.run("c", "sleep", "60")
    await pod.add_exec("c", "e", "sh", "-c", "exit 3")
    old = end_life(pod)
    ended = await asyncio.create_subprocess_exec("sh", "-c", "exit 3")
    await ended.wait()
    old.backend.cut_execs["e"] = ended.pid
    log = ExitLog.create()
    if logged:
        now = int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
        # The pid was another's before, and became another's later.
        for start, code in ((now - 6000, 4), (now, 3), (now + 100, 5)):
            log.append(LoggedExit(ended.pid, start, code << 8, time.time_ns()))
    await begin_life(pod, old, log=log)
    process = pod.life.service.containers["c"].process("e")
    assert process.exit is not None
    assert (process.exit.known, process.exit.code) == ((True, 3) if logged else (False, 255))
    context = CallContext("s", "Start", (), None, None, 1, 1, replayed=True)
    request = api.StartRequest(id="c", exec_id="e")
    if logged:
        assert (await pod.life.service.start(request, context)).pid == ended.pid
    else:
        with pytest.raises(Unavailable, match="lost"):
            await pod.life.service.start(request, context)
    log.close()
