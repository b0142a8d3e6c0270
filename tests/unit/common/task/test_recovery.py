"""What a daemon makes of the containers that an earlier one has left."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from common.errors import Code, Internal
from proto.gen.containerd.types import task_pb2 as types
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


async def test_a_record_of_a_newer_version_is_left_alone_and_the_others_go_on(pod: Pod) -> None:
    pid = await pod.run("good", "sleep", "60")
    await pod.run("a", "sleep", "60")
    record = pod.life.directory / "tasks/a/container.json"
    text = record.read_text()
    old = end_life(pod)
    record.write_text(text.replace('"version":1', '"version":99'))
    await begin_life(pod, old)
    assert (await pod.call("State", id="good")).pid == pid
    await pod.refused(Code.NOT_FOUND, "State", id="a")
    assert '"version":99' in record.read_text()
    prepared = old.service.containers["a"].prepared
    assert prepared is not None
    await old.backend.delete("a", prepared)


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


async def begin_life(pod: Pod, old: Life) -> None:
    pod.life = Life(old.directory)
    pod.life.backend = pod.life.parts.backend = old.backend
    await pod.life.service.recover(f"{old.directory}/tasks")
    pod.client = await pod.life.listen()


@pytest.mark.parametrize("text", ["junk", '{"version": 1, "boot_id": "x", "record": {"owner": [1]}}'])
async def test_an_unreadable_record_is_kept_and_the_others_go_on(pod: Pod, text: str) -> None:
    pid = await pod.run("good", "sleep", "60")
    await pod.run("bad", "sleep", "60")
    record = pod.life.directory / "tasks/bad/container.json"
    old = end_life(pod)
    record.write_text(text)
    await begin_life(pod, old)
    assert (await pod.call("State", id="good")).pid == pid
    await pod.refused(Code.NOT_FOUND, "State", id="bad")
    assert Path(f"{record}.unreadable").read_text() == text
    for container in old.service.containers.values():
        assert container.prepared is not None
        if container.id == "bad":
            await old.backend.delete("bad", container.prepared)
