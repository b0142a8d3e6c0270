"""Containers and peers that misbehave: they hurt themselves alone."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from common.errors import Code
from common.ttrpc import ConnectionLost, StatusError
from proto.gen.containerd.task.v3 import shim_pb2 as api
from proto.gen.containerd.types import task_pb2 as types
from proto.gen.runtime.v1 import api_pb2 as cri
from proto.gen.ttrpc.request_pb2 import Request, Response
from tests.durations import async_expect_within
from tests.integration.daemon.client import TASK, Container, Controller, Pod, Task, refused
from tests.integration.daemon.conftest import MakePod
from tests.integration.daemon.events import Events
from tests.integration.daemon.lab import Daemon

HEADER = struct.Struct(">IIBB")
REQUEST, RESPONSE = 1, 2


# -- containers ------------------------------------------------------------------------------------


async def test_a_container_that_forks_up_to_its_limit(pod: Pod) -> None:
    script = "(while :; do sleep 1000 & done) 2>/dev/null & exec sleep 1000"
    container = await pod.running("sh", "-c", script, changes={"resources": {"pids": {"limit": 40}}})
    deadline = time.monotonic() + 20
    while len((await pod.task("Pids", id=container.id)).processes) < 38:
        assert time.monotonic() < deadline, "it does not reach its limit"
        await asyncio.sleep(0.02)
    assert await pod.run("echo", "alive") == (0, "alive\n")
    await container.kill(9, everything=True)
    assert await container.wait() == 137
    await container.delete()


async def test_a_container_that_ignores_sigterm_dies_of_sigkill(pod: Pod) -> None:
    container = await pod.running("sh", "-c", "trap 'echo no' TERM; echo up; while :; do sleep 0.05; done")
    await container.stdout.until(b"up")
    await container.kill(signal.SIGTERM)
    await container.stdout.until(b"no")
    assert await container.state() == "running"
    await container.kill(signal.SIGKILL)
    assert await container.wait() == 137


async def test_a_container_that_ends_before_start_returns(pod: Pod, events: Events) -> None:
    container = pod.container("true")
    await container.create()
    waiting = asyncio.create_task(container.wait())
    # The answer to Start comes after the end has been told.
    with pod.daemon.lab.gated(container.id, "start", 'crun "$@"', "exit 0") as gate:
        starting = asyncio.create_task(container.start())
        assert await waiting == 0
        assert await container.state() == "stopped"
        assert not starting.done()
        gate.touch()
        assert await starting == container.pid
    assert await container.state() == "stopped"
    await container.delete()
    await events.until(container.id, "/tasks/delete")
    assert sorted(events.topics_of(container.id)) == [
        "/tasks/create",
        "/tasks/delete",
        "/tasks/exit",
        "/tasks/start",
    ]


async def test_execs_that_end_at_once_all_tell_their_exit_codes(pod: Pod) -> None:
    container = await pod.running()
    processes = [await container.exec("sh", "-c", f"exit {number}") for number in range(12)]
    waits = [asyncio.create_task(process.wait()) for process in processes]
    await asyncio.gather(*(process.start() for process in processes))
    assert await asyncio.gather(*waits) == list(range(12))
    await asyncio.gather(*(process.delete() for process in processes))


async def test_an_exec_that_is_left_behind_goes_with_its_container(pod: Pod) -> None:
    container = await pod.running()
    process = await container.exec("sleep", "1000")
    await process.start()
    waiting = asyncio.create_task(process.wait())
    await container.kill(9)
    assert await container.wait() == 137
    assert await waiting == 137
    await container.delete()


async def test_out_of_memory_is_told_before_the_exit(pod: Pod, events: Events) -> None:
    container = pod.container(
        "sh", "-c", "x=a; while :; do x=$x$x; done", changes={"resources": {"memory": {"limit": 16 << 20}}}
    )
    await container.create()
    waiting = asyncio.create_task(container.wait())
    told: list[str] = []
    waiting.add_done_callback(lambda _: told.extend(events.topics_of(container.id)))
    await container.start()
    assert await waiting == 137
    assert "/tasks/oom" in told, told


async def test_out_of_memory_of_a_child_is_told_while_the_container_goes_on(pod: Pod, events: Events) -> None:
    container = await pod.running(
        "sh",
        "-c",
        "sh -c 'x=a; while :; do x=$x$x; done'; echo survived; sleep 1000",
        changes={"resources": {"memory": {"limit": 16 << 20}}},
    )
    await container.stdout.until(b"survived")
    await events.until(container.id, "/tasks/oom")
    assert await container.state() == "running"


async def test_a_hanging_runtime_delays_its_container_alone(pod: Pod, make_pod: MakePod) -> None:
    other = await make_pod(network=cri.NODE)
    hanging = pod.container("true")
    with pod.daemon.lab.gated(hanging.id, "create") as gate:
        creating = asyncio.create_task(hanging.create())
        await pod.daemon.lab.runtime_called(hanging.id)
        assert await pod.run("true") == (0, "")
        assert await other.run("true") == (0, "")
        assert (await pod.controller("Status", pod.id)).state == "SANDBOX_READY"
        with refused(Code.FAILED_PRECONDITION, hanging.id, "being created"):
            await hanging.start()
        with refused(Code.ALREADY_EXISTS, hanging.id):
            await hanging.create()
        assert not creating.done()
        gate.touch()
        await creating
    assert await hanging.run() == (0, "")


async def test_a_pod_is_shut_down_while_a_container_is_being_created(
    make_pod: MakePod, controller: Controller
) -> None:
    pod = await make_pod(network=cri.NODE)
    container = pod.container("sleep", "1000")
    with pod.daemon.lab.sabotage(container.id, "create", "sleep 0.5"):
        creating = asyncio.create_task(container.create())
        await pod.daemon.lab.runtime_called(container.id)
        await controller("Shutdown", pod.id)
        # It was created and has gone with the pod, whether its answer came before the end of the connection or not.
        await asyncio.wait([creating], timeout=20)
        creating.exception()
    assert not pod.daemon.lab.path(pod.directory).exists()


# -- peers of the Task service ---------------------------------------------------------------------


@asynccontextmanager
async def _raw_connection(pod: Pod) -> AsyncIterator[socket.socket]:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, str(pod.file("task.sock")))
        yield sock


def _frame(stream_id: int, method: str, message: bytes, service: str = TASK) -> bytes:
    payload = Request(service=service, method=method, payload=message).SerializeToString()
    return HEADER.pack(len(payload), stream_id, REQUEST, 0) + payload


async def _read_response(sock: socket.socket) -> Response:
    async def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = await asyncio.get_running_loop().sock_recv(sock, size - len(data))
            assert piece, "the daemon closed the connection"
            data += piece
        return data

    async with asyncio.timeout(20):
        size, _, kind, _ = HEADER.unpack(await exactly(HEADER.size))
        assert kind == RESPONSE
        return Response.FromString(await exactly(size))


async def _send_slowly(sock: socket.socket, data: bytes) -> None:
    async with asyncio.timeout(20):
        await asyncio.get_running_loop().sock_sendall(sock, data)


async def _is_closed(sock: socket.socket) -> bool:
    async with asyncio.timeout(20):
        try:
            return await asyncio.get_running_loop().sock_recv(sock, 1) == b""
        except ConnectionResetError:
            return True


async def test_an_oversized_frame_is_refused_and_the_connection_goes_on(pod: Pod) -> None:
    container = await pod.running()
    async with _raw_connection(pod) as sock:
        size = (4 << 20) + 1
        await _send_slowly(sock, HEADER.pack(size, 1, REQUEST, 0) + bytes(size))
        response = await _read_response(sock)
        assert Code(response.status.code) is Code.RESOURCE_EXHAUSTED
        await _send_slowly(sock, _frame(3, "State", api.StateRequest(id=container.id).SerializeToString()))
        response = await _read_response(sock)
        assert api.StateResponse.FromString(response.payload).status == types.RUNNING


async def test_half_a_frame_and_the_end(pod: Pod) -> None:
    whole = _frame(1, "Connect", b"")
    for cut in (1, HEADER.size - 1, HEADER.size, len(whole) - 1):
        async with _raw_connection(pod) as sock:
            await _send_slowly(sock, whole[:cut])
            await asyncio.sleep(0.01)
    assert (await pod.task("Connect")).task_pid == 0


async def test_half_a_frame_and_silence_costs_nothing(pod: Pod) -> None:
    async with _raw_connection(pod) as sock:
        await _send_slowly(sock, _frame(1, "Connect", b"")[:-3])
        before = _cpu_ticks(pod.daemon)
        await asyncio.sleep(1)
        assert _cpu_ticks(pod.daemon) - before < 20
        await _send_slowly(sock, _frame(1, "Connect", b"")[-3:])
        assert (await _read_response(sock)).status.code == 0


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 20,
        bytes(1000),
        b"\xff" * 1000,
        _frame(2, "Connect", b""),
        _frame(1, "Connect", b"") + _frame(1, "Connect", b""),
        HEADER.pack(3, 1, REQUEST, 0) + b"\xff\xff\xff",
        HEADER.pack(0, 1, 77, 0),
    ],
    ids=["HTTP", "zeros", "ones", "an even stream", "a stream twice", "no request", "no type"],
)
async def test_what_is_no_ttrpc_hurts_nobody(pod: Pod, garbage: bytes) -> None:
    container = await pod.running()
    async with _raw_connection(pod) as sock:
        await _send_slowly(sock, garbage)
        await asyncio.sleep(0.05)
        assert await container.state() == "running"
    assert await container.state() == "running"


async def test_a_request_that_is_none_of_the_methods_is_refused(pod: Pod) -> None:
    async with _raw_connection(pod) as sock:
        await _send_slowly(sock, _frame(1, "Destroy", b""))
        response = await _read_response(sock)
        assert (Code(response.status.code), "Destroy" in response.status.message) == (
            Code.UNIMPLEMENTED,
            True,
        )
        await _send_slowly(sock, _frame(3, "State", b"", service="some.Service"))
        response = await _read_response(sock)
        assert Code(response.status.code) is Code.UNIMPLEMENTED
        assert "some.Service" in response.status.message
        await _send_slowly(sock, _frame(5, "State", b"\xff\xff"))
        response = await _read_response(sock)
        assert Code(response.status.code) is Code.INVALID_ARGUMENT


async def test_a_client_that_never_reads_is_given_up_and_no_other_notices(pod: Pod) -> None:
    container = await pod.running()
    request = api.StateRequest(id=container.id).SerializeToString()
    before_kib = pod.daemon.memory_kib()
    async with _raw_connection(pod) as sock:
        stream_id = 1
        begun = time.monotonic()
        try:
            while time.monotonic() - begun < 60:
                frames = b"".join(_frame(stream_id + 2 * i, "State", request) for i in range(500))
                stream_id += 1000
                await _send_slowly(sock, frames)
                if stream_id % 20_000 == 1:
                    assert await container.state() == "running"
            raise AssertionError("the daemon reads on and on")
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert await container.state() == "running"
        assert pod.daemon.memory_kib() - before_kib < 40 << 10


async def test_a_connection_that_is_lost_takes_no_container_along(pod: Pod) -> None:
    container = await pod.running()
    second = await Task.connect(pod.daemon.lab, pod.address)
    waiting = asyncio.create_task(second("Wait", id=container.id))
    await asyncio.sleep(0.05)
    second.client.close()
    with pytest.raises(ConnectionLost):
        await waiting
    assert await container.state() == "running"
    await container.kill(9)
    assert await container.wait() == 137


@pytest.mark.parametrize("delay_ms", range(0, 60, 4))
async def test_a_create_whose_connection_is_lost_leaves_nothing(pod: Pod, delay_ms: int) -> None:
    assert await pod.run("true") == (0, "")
    before = pod.daemon.inventory()
    container = pod.container("sleep", "1000")
    connection = await Task.connect(pod.daemon.lab, pod.address)
    await connection("Connect")
    creating = asyncio.create_task(
        connection(
            "Create", id=container.id, bundle=container.bundle, rootfs=container.rootfs, **container.io
        )
    )
    await asyncio.sleep(delay_ms / 1000)
    connection.client.close()
    with contextlib.suppress(ConnectionLost):
        await creating
    # What the daemon answers now it has read after the other connection.
    await pod.task("Connect")
    await _delete_once_made(container)
    container.discard()
    await pod.daemon.expect_nothing_more_than(before)


async def _delete_once_made(container: Container) -> None:
    """Delete a container that may be in the making, or may never be made."""
    async with asyncio.timeout(20):
        while True:
            try:
                await container.delete()
            except StatusError as error:
                if Code(error.code) is Code.FAILED_PRECONDITION:
                    await asyncio.sleep(0.01)
                    continue
                assert Code(error.code) is Code.NOT_FOUND, error
            return


async def test_a_parked_wait_delays_no_other_call_of_its_connection(pod: Pod) -> None:
    container = await pod.running()
    waits = [asyncio.create_task(container.wait()) for _ in range(200)]

    async def expect_running() -> None:
        assert await container.state() == "running"

    await async_expect_within(0.04, expect_running, tries=50)
    assert not any(wait.done() for wait in waits)
    await container.kill(9)
    assert set(await asyncio.gather(*waits)) == {137}


# -- peers of the Controller -----------------------------------------------------------------------


async def test_a_thousand_parked_waits_on_one_channel(
    make_pod: MakePod, controller: Controller, daemon: Daemon
) -> None:
    pod = await make_pod(network=cri.NODE)
    waits = [asyncio.ensure_future(controller.begin("Wait", pod.id)) for _ in range(1000)]
    await asyncio.sleep(0.5)

    async def expect_ready() -> None:
        assert (await controller("Status", pod.id)).state == "SANDBOX_READY"

    async def run_another() -> None:
        other = await make_pod(network=cri.NODE)
        assert await other.run("true") == (0, "")
        await other.remove()

    await async_expect_within(0.05, expect_ready, tries=20)
    await async_expect_within(4.0, run_another)
    assert not any(wait.done() for wait in waits)
    await controller("Stop", pod.id)
    answers = await asyncio.wait_for(asyncio.gather(*waits), 20)
    assert {answer.exit_status for answer in answers} == {0}


async def test_a_wait_that_its_caller_gives_up_is_forgotten(pod: Pod, controller: Controller) -> None:
    waits = [controller.begin("Wait", pod.id) for _ in range(5)]
    await asyncio.sleep(0.1)
    for wait in waits:
        wait.cancel()
    assert (await controller("Status", pod.id)).state == "SANDBOX_READY"


async def test_a_request_larger_than_16_mib_is_refused(controller: Controller) -> None:
    with refused(Code.RESOURCE_EXHAUSTED, "message"):
        await controller("Create", "x" * (17 << 20))


async def test_calls_for_the_same_pod_at_once_are_put_in_order(
    make_pod: MakePod, controller: Controller
) -> None:
    pod = await make_pod(start=False)
    results = await asyncio.gather(
        controller("Start", pod.id),
        controller("Start", pod.id),
        controller("Stop", pod.id),
        controller("Stop", pod.id),
        controller("Shutdown", pod.id),
        controller("Shutdown", pod.id),
        controller("Status", pod.id),
        return_exceptions=True,
    )
    for result in results:
        if isinstance(result, grpc.aio.AioRpcError):
            # Whoever comes too late is told so.
            assert result.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND), result
    assert all(not isinstance(result, BaseException) for result in results[4:6]), results
    assert not pod.daemon.lab.path(pod.directory).exists()


async def test_pods_that_start_at_once_all_start(make_pod: MakePod) -> None:
    pods = await asyncio.gather(*(make_pod(network=cri.NODE, pid=index % 2) for index in range(12)))
    containers: list[Container] = await asyncio.gather(*(pod.running() for pod in pods))
    assert len({container.pid for container in containers}) == 12
    await asyncio.gather(*(pod.remove() for pod in pods))


def _cpu_ticks(daemon: Daemon) -> int:
    with open(f"/proc/{daemon.pid}/stat", encoding="ascii") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])
