"""A daemon that stops, is killed or is started twice: its pods go on, and what it had half made goes away."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from common.errors import Code
from common.ttrpc import ConnectionLost
from proto.gen.runtime.v1 import api_pb2 as cri
from tests.durations import async_expect_within
from tests.integration.daemon.client import Controller, Pod, refused
from tests.integration.daemon.lab import Daemon, Lab, until
from tests.integration.daemon.specs import pod_config

KERNEL_TELLS_EXIT_CODES = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 15)
_serial = itertools.count(1)


def known(code: int) -> int:
    """What is told of a container that an earlier daemon has started: before Linux 6.15 a kernel tells the code to
    parents alone."""
    return code if KERNEL_TELLS_EXIT_CODES else 255


class Node:
    """A daemon of the test's own, and the engine's channel to it."""

    def __init__(self, lab: Lab, runtime_timeout_s: float = 20.0) -> None:
        self.lab = lab
        self.daemon = Daemon(lab, f"own{next(_serial)}", runtime={"timeout_s": runtime_timeout_s})
        self.controller = Controller(self.daemon)
        self.pods: list[Pod] = []

    async def pod(self, *, start: bool = True, **config: Any) -> Pod:
        name = f"{self.daemon.name}-pod{len(self.pods)}"
        pod = Pod(self.daemon, self.controller, name, pod_config(name, network=cri.NODE, **config), "")
        self.pods.append(pod)
        await pod.create()
        if start:
            await pod.start()
        return pod

    async def restart(self, signum: int = signal.SIGKILL) -> None:
        self.daemon.stop(signum)
        await self.start()

    async def start(self) -> None:
        await self.daemon.start()
        # A new channel: the old one would wait before it tries again.
        await self.controller.close()
        self.controller = Controller(self.daemon)
        for pod in self.pods:
            pod.controller = self.controller

    async def close(self) -> None:
        for pod in self.pods:
            await self.controller("Shutdown", pod.id)
            pod.disconnect()
            for container in pod.containers:
                container.discard()
        await self.controller.close()
        self.daemon.remove()


@pytest_asyncio.fixture(loop_scope="session")
async def node(lab: Lab, _nothing_is_left_or_disturbed: None) -> AsyncIterator[Node]:
    node = Node(lab)
    await node.daemon.start()
    yield node
    await node.close()


@pytest_asyncio.fixture(loop_scope="session")
async def impatient_node(lab: Lab, _nothing_is_left_or_disturbed: None) -> AsyncIterator[Node]:
    """Its daemon waits for a runtime no longer than 3 s, in which one that does not hang is done on a busy machine."""
    node = Node(lab, runtime_timeout_s=3.0)
    await node.daemon.start()
    yield node
    await node.close()


async def test_a_second_daemon_is_refused_and_told_the_pid_of_the_first(node: Node, lab: Lab) -> None:
    result = lab.namespaces.run(node.daemon.command, env=node.daemon.environment, check=False)
    assert result.returncode == 1
    assert f"pid {node.daemon.inner_pid}" in result.stdout + result.stderr
    assert node.daemon.state_dir in result.stdout + result.stderr
    await node.pod()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_daemon_that_is_told_to_stop_leaves_its_pods_alone(node: Node, lab: Lab, signum: int) -> None:
    pod = await node.pod(pid=cri.POD)
    container = await pod.running()
    waits = [asyncio.ensure_future(node.controller.begin("Wait", pod.id)) for _ in range(3)]
    await asyncio.sleep(0.2)
    assert await asyncio.to_thread(node.daemon.stop, signum) == 0
    for outcome in await asyncio.gather(*waits, return_exceptions=True):
        assert isinstance(outcome, grpc.aio.AioRpcError)
        assert outcome.code() is grpc.StatusCode.UNAVAILABLE, (
            "anything else tells the engine that the pod died"
        )
    assert {container.pid, pod.pid} <= lab.processes().keys()
    await node.start()
    await pod.connect()
    assert await container.state() == "running"


async def test_pods_and_containers_are_taken_up_again(node: Node) -> None:
    pod = await node.pod(pid=cri.POD)
    plain = await node.pod()
    created = plain.container("echo", "late", streams=("stdout",))
    await created.create()
    running = await plain.running("sh", "-c", "while :; do sleep 0.05; done")
    shared = await pod.running()
    ended = await plain.running("sh", "-c", "exit 6")
    assert await ended.wait() == 6
    before = await node.controller("Status", pod.id)
    await node.restart()
    status = await node.controller("Status", pod.id)
    assert (status.state, status.pid, status.address) == ("SANDBOX_READY", pod.pid, pod.address)
    assert status.created_at == before.created_at
    for each in (pod, plain):
        await each.connect()
    assert await ended.state() == "stopped"
    assert await ended.wait() == 6
    for container in (running, shared):
        state = await container.task("State", id=container.id)
        assert (state.pid, state.stdout) == (container.pid, container.io["stdout"])
        assert await container.state() == "running"
        assert await container.run_exec("echo", "hello") == (0, "hello\n")
        waiting = asyncio.create_task(container.wait())
        await container.kill(9)
        assert await waiting == known(137)
        await container.delete()
    assert await created.state() == "created"
    await created.start()
    assert await created.wait() == known(0)
    assert await plain.run("echo", "new") == (0, "new\n")


async def test_a_container_that_ends_while_the_daemon_is_away_is_known_to_have_ended(
    node: Node, lab: Lab
) -> None:
    pod = await node.pod()
    container = await pod.running("sleep", "1000")
    node.daemon.stop(signal.SIGKILL)
    lab.run("kill", "-9", str(container.pid))
    await until(lambda: container.pid not in lab.processes(), 20, "the end of the container")
    await node.start()
    await pod.connect()
    assert await container.state() == "stopped"
    assert await container.wait() in (137, 255)
    await container.delete()


async def test_a_pod_whose_init_dies_while_the_daemon_is_away_has_ended(node: Node, lab: Lab) -> None:
    pod = await node.pod(pid=cri.POD)
    await pod.running()
    node.daemon.stop(signal.SIGKILL)
    lab.run("kill", "-9", str(pod.pid))
    await until(lambda: pod.pid not in lab.processes(), 20, "the end of the init")
    await node.start()
    answer = await node.controller("Wait", pod.id)
    assert answer.exit_status in (137, 255)
    assert (await node.controller("Status", pod.id)).state == "SANDBOX_NOTREADY"


async def test_a_stopped_pod_stays_stopped(node: Node) -> None:
    pod = await node.pod()
    await node.controller("Stop", pod.id)
    await node.restart()
    assert (await node.controller("Status", pod.id)).state == "SANDBOX_NOTREADY"
    assert (await node.controller("Wait", pod.id)).exit_status == 0


async def test_calls_on_a_lost_connection_fail_and_do_not_hang(node: Node) -> None:
    pod = await node.pod()
    container = await pod.running()
    waiting = asyncio.create_task(container.wait())
    await asyncio.sleep(0.1)
    node.daemon.stop(signal.SIGKILL)
    with pytest.raises(ConnectionLost):
        await waiting
    await node.start()


# -- what is half made -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    ["kill -9 $PPID; exit 0", 'crun "$@"; kill -9 $PPID; exit 0'],
    ids=["before the runtime has run", "after the runtime has run"],
)
async def test_a_half_made_container_is_rolled_back(node: Node, lab: Lab, script: str) -> None:
    pod = await node.pod()
    other = await pod.running()
    half = pod.container("sleep", "1000")
    before = lab.inventory(0, node.daemon.state_dir)
    with lab.sabotage(half.id, "create", script), pytest.raises(ConnectionLost):
        await half.create()
    node.daemon.stop(signal.SIGKILL)
    assert lab.path(f"{pod.directory}/tasks/{half.id}").exists()
    assert lab.is_mounted(f"{half.bundle}/rootfs")
    await node.start()
    await lab.expect_nothing_more_than(before, 0, node.daemon.state_dir)
    await pod.connect()
    with refused(Code.NOT_FOUND, half.id):
        await half.state()
    assert await other.state() == "running"
    await half.create()
    await half.start()
    assert await half.state() == "running"


@pytest.mark.parametrize("pid", [cri.CONTAINER, cri.POD], ids=["own PIDs", "shared PIDs"])
async def test_a_half_made_pod_is_rolled_back(node: Node, lab: Lab, pid: cri.NamespaceMode) -> None:
    before = lab.inventory(0, node.daemon.state_dir)
    pod = await node.pod(start=False, pid=pid)
    gate = lab.path("/run/lab/gate")
    os.mkfifo(gate)
    lab.run("mount", "--bind", "/run/lab/gate", "/etc/hosts")
    try:
        starting = asyncio.create_task(pod.start())
        # The daemon is held where it copies /etc/hosts.
        await until(lambda: lab.path(f"{pod.directory}/etc").exists(), 20, "the pod's files")
        node.daemon.stop(signal.SIGKILL)
        with pytest.raises(grpc.aio.AioRpcError):
            await starting
    finally:
        lab.run("umount", "/etc/hosts")
        gate.unlink()
    assert lab.path(f"{pod.directory}/etc").exists()
    await node.start()
    await lab.expect_nothing_more_than(before, 0, node.daemon.state_dir)
    with refused(Code.NOT_FOUND, pod.id):
        await node.controller("Status", pod.id)


async def test_a_pod_that_was_created_can_be_started_by_the_next_daemon(node: Node, lab: Lab) -> None:
    pod = await node.pod(start=False)
    await node.restart()
    assert (await node.controller("Status", pod.id)).state == "SANDBOX_NOTREADY"
    await pod.start()
    assert await pod.run("echo", "here") == (0, "here\n")


# -- records ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file", ["sandbox.json", "tasks/{container}/container.json", "namespaces.json", "shm.json"]
)
@pytest.mark.parametrize("damage", ["torn", "of the future"])
async def test_a_record_that_cannot_be_understood_leaves_its_pod_alone(
    node: Node, lab: Lab, file: str, damage: str
) -> None:
    strange, sound = await node.pod(), await node.pod()
    container = await strange.running()
    # One that a daemon would roll back, if only it understood the rest of the pod.
    half = await strange.running()
    half_record = strange.file(f"tasks/{half.id}/container.json")
    record = lab.path(f"{strange.directory}/{file.format(container=container.id)}")
    text = record.read_text()
    node.daemon.stop(signal.SIGKILL)
    envelope = json.loads(half_record.read_text())
    envelope["record"]["pid"] = 0
    half_record.write_text(json.dumps(envelope))
    changed = text[:-5] if damage == "torn" else json.dumps({**json.loads(text), "version": 99})
    record.write_text(changed)
    await node.start()
    assert (await node.controller("Status", sound.id)).state == "SANDBOX_READY"
    # Never NOT_FOUND: an engine would begin to clean up.
    for call in ("Status", "Stop", "Shutdown"):
        with refused(Code.UNAVAILABLE, strange.id):
            await node.controller(call, strange.id)
    with refused(Code.UNAVAILABLE, strange.id):
        await strange.create()
    assert {container.pid, half.pid} <= lab.processes().keys()
    assert half_record.exists()
    assert record.read_text() == changed
    # What the operator may do: repair it, or start the version that wrote it.
    record.write_text(text)
    await node.restart()
    assert (await node.controller("Status", strange.id)).state == "SANDBOX_READY"
    await strange.connect()
    assert await container.state() == "running"
    await until(lambda: half.pid not in lab.processes(), 20, "the end of what was rolled back")


async def test_pods_of_an_earlier_boot_are_forgotten(node: Node, lab: Lab) -> None:
    pod = await node.pod()
    bystander = await node.pod()
    node.daemon.stop(signal.SIGKILL)
    record = lab.path(f"{pod.directory}/sandbox.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "boot_id": "another"}))
    await node.start()
    with refused(Code.NOT_FOUND, pod.id):
        await node.controller("Status", pod.id)
    assert not lab.path(pod.directory).exists()
    assert (await node.controller("Status", bystander.id)).state == "SANDBOX_READY"


# -- time limits -----------------------------------------------------------------------------------


async def test_a_runtime_that_hangs_is_killed_and_nothing_is_left(impatient_node: Node, lab: Lab) -> None:
    pod = await impatient_node.pod()
    container = pod.container("true")
    pod.file("tasks").mkdir(mode=0o700)
    before = impatient_node.daemon.inventory()
    with (
        lab.sabotage(container.id, "create", 'crun "$@"; exec sleep 1000'),
        refused(Code.DEADLINE_EXCEEDED, "3 s"),
    ):
        await container.create()
    await impatient_node.daemon.expect_nothing_more_than(before)
    await container.create()
    assert await container.run() == (0, "")


async def test_a_terminal_that_never_comes_is_an_error(impatient_node: Node, lab: Lab) -> None:
    pod = await impatient_node.pod()
    container = await pod.running()
    process = await container.exec("true", streams=("terminal", "stdout"))
    script = 'while [ "$1" != --pid-file ]; do shift; done; echo $$ >"$2"; exit 0'
    before = impatient_node.daemon.inventory()
    with lab.sabotage(container.id, "exec", script), refused(Code.DEADLINE_EXCEEDED, "terminal"):
        await process.start()
    await impatient_node.daemon.expect_nothing_more_than(before)
    assert await container.state() == "running"


async def test_an_engine_without_an_events_service_delays_an_exit_only_briefly(node: Node) -> None:
    pod = await node.pod()

    async def run_out_of_memory() -> None:
        limit = {"resources": {"memory": {"limit": 16 << 20}}}
        assert await pod.run("sh", "-c", "x=a; while :; do x=$x$x; done", changes=limit) == (137, "")

    async def expect_true() -> None:
        assert await pod.run("true") == (0, "")

    # The event is waited for for 2 s, not until its call is given up after 5 s, and only by the end that it is about.
    await async_expect_within(4.5, run_out_of_memory)
    await async_expect_within(1.5, expect_true)
