"""The Sandbox API as an engine sees it: real gRPC over a unix socket, pods of the fake sandboxer behind it."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from common import log
from common.errors import Code, FailedPrecondition, Internal, SandboxdError
from proto.gen.cgroups.v2 import metrics_pb2
from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2 as api
from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2_grpc as api_grpc
from proto.gen.runtime.v1 import api_pb2 as cri
from sandboxers.config import EngineKind
from sandboxers.controller import MAX_MESSAGE_BYTES, Controller, serve
from tests.contract.fake_sandboxer import PID, FakeSandboxer
from tests.durations import async_expect_within
from tests.unit.common.task.conftest import until
from tests.unit.sandboxers.conftest import Daemon

LIMITS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),
]


class Engine:
    """The engine's side: one connection, the calls with the least that they need."""

    def __init__(self, daemon: Daemon, controller: Controller, server: Any, socket_path: str) -> None:
        self.sandboxer: FakeSandboxer = daemon.sandboxer
        self.registry = daemon.registry
        self.controller = controller
        self.server = server
        self.socket_path = socket_path
        self.channel = grpc.aio.insecure_channel(f"unix:{socket_path}", options=LIMITS)
        self.stub: Any = api_grpc.ControllerStub(self.channel)

    async def create(self, sandbox_id: str = "pod", **config: Any) -> Any:
        request = api.ControllerCreateRequest(sandbox_id=sandbox_id, netns_path="/run/netns/x")
        request.options.type_url = "runtime.v1.PodSandboxConfig"
        request.options.value = cri.PodSandboxConfig(**config).SerializeToString()
        return await self.stub.Create(request)

    async def start(self, sandbox_id: str = "pod") -> Any:
        return await self.stub.Start(api.ControllerStartRequest(sandbox_id=sandbox_id))

    async def run(self, sandbox_id: str = "pod", **config: Any) -> Any:
        await self.create(sandbox_id, **config)
        return await self.start(sandbox_id)

    async def status(self, sandbox_id: str = "pod", verbose: bool = False) -> Any:
        request = api.ControllerStatusRequest(sandbox_id=sandbox_id, verbose=verbose)
        return await self.stub.Status(request)

    def wait(self, sandbox_id: str = "pod") -> Any:
        return self.stub.Wait(api.ControllerWaitRequest(sandbox_id=sandbox_id))

    async def stop(self, sandbox_id: str = "pod", timeout_secs: int = 0) -> Any:
        request = api.ControllerStopRequest(sandbox_id=sandbox_id, timeout_secs=timeout_secs)
        return await self.stub.Stop(request)

    async def shutdown(self, sandbox_id: str = "pod") -> Any:
        return await self.stub.Shutdown(api.ControllerShutdownRequest(sandbox_id=sandbox_id))


@pytest.fixture(scope="module", autouse=True)
def _grpc() -> Iterator[None]:
    """Keep gRPC's own sockets, which live as long as any channel object does, out of the look for leaks."""
    library: Any = grpc.aio

    async def call(function: Callable[[], None]) -> None:
        function()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(call(library.init_grpc_aio))
    yield
    loop.run_until_complete(call(library.shutdown_grpc_aio))
    loop.close()


@pytest.fixture
async def engine(daemon: Daemon, tmp_path: Path) -> AsyncIterator[Engine]:
    controller = Controller(daemon.registry)
    path = str(tmp_path / "c.sock")
    server = await serve(controller, path)
    engine = Engine(daemon, controller, server, path)
    yield engine
    await engine.channel.close(None)
    controller.close()
    await server.stop(grace=0)


async def refused(call: Any, code: grpc.StatusCode, text: str = "") -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    assert raised.value.code() is code, raised.value.details()
    assert text in (raised.value.details() or "")
    assert "Traceback" not in (raised.value.details() or "")


# -- a pod's life ----------------------------------------------------------------------------------


async def test_a_pod_lives_and_dies(engine: Engine) -> None:
    assert (await engine.create()).sandbox_id == "pod"
    assert (await engine.status()).state == "SANDBOX_NOTREADY"
    started = await engine.start()
    assert (started.sandbox_id, started.pid, started.version) == ("pod", PID, 3)
    assert started.address.startswith("ttrpc+unix:///")
    assert os.path.exists(started.address.removeprefix("ttrpc+unix://"))
    status = await engine.status()
    assert (status.state, status.pid, status.version) == ("SANDBOX_READY", PID, 3)
    assert (status.address, status.created_at) == (started.address, started.created_at)
    assert status.created_at.seconds > 1_600_000_000
    assert not status.HasField("exited_at")
    assert dict(status.info) == {}

    wait = engine.wait()
    await engine.stop()
    ended = await wait
    assert ended.exit_status == 0
    assert ended.exited_at.seconds >= status.created_at.seconds
    status = await engine.status()
    assert (status.state, status.pid, status.exited_at) == ("SANDBOX_NOTREADY", 0, ended.exited_at)
    assert (await engine.wait()) == ended, "a Wait after the end answers at once"
    await engine.stop()

    await engine.shutdown()
    await engine.shutdown()
    await refused(engine.status(), grpc.StatusCode.NOT_FOUND, "no sandbox 'pod'")


async def test_a_pod_that_ends_by_itself_is_told_with_its_code_and_time(engine: Engine) -> None:
    await engine.run()
    wait = engine.wait()
    await engine.status()
    engine.sandboxer.sandboxes["pod"].end(137, 1_700_000_000_000_000_005)
    ended = await wait
    assert (ended.exit_status, ended.exited_at.ToNanoseconds()) == (137, 1_700_000_000_000_000_005)
    assert (await engine.status()).state == "SANDBOX_NOTREADY"


async def test_shutdown_ends_a_wait(engine: Engine) -> None:
    await engine.run()
    wait = engine.wait()
    await engine.status()
    await engine.shutdown()
    assert (await wait).HasField("exited_at")


async def test_the_deadline_of_stop_is_the_callers(engine: Engine) -> None:
    await engine.run()
    engine.sandboxer.failures["stop"] = FailedPrecondition("still alive after 7 s")
    await refused(engine.stop(timeout_secs=7), grpc.StatusCode.FAILED_PRECONDITION, "still alive after 7 s")
    engine.sandboxer.failures.clear()
    await engine.stop()


async def test_the_platform_is_this_machines(engine: Engine) -> None:
    answer = await engine.stub.Platform(api.ControllerPlatformRequest(sandbox_id="whatever"))
    names = {"x86_64": "amd64", "aarch64": "arm64"}
    assert answer.platform.os == "linux"
    assert answer.platform.architecture == names.get(platform.machine(), platform.machine())


async def test_a_verbose_status_is_json_for_operators(engine: Engine) -> None:
    metadata = cri.PodSandboxMetadata(name="web", namespace="shop", uid="u")
    await engine.run(metadata=metadata, linux=cri.LinuxPodSandboxConfig(cgroup_parent="/kube/x"))
    status = await engine.status(verbose=True)
    assert list(status.info) == ["info"]
    info = json.loads(status.info["info"])
    assert info["pod"] == {"name": "web", "namespace": "shop", "uid": "u"}
    assert (info["state"], info["cgroupParent"]) == ("running", "/kube/x")
    assert info["netNamespace"] == "/run/netns/x"
    assert info["marker"].endswith("/pod/pod"), "what the type tells is in there too"


async def test_what_is_being_done_for_a_pod_is_told_while_it_is(engine: Engine) -> None:
    gate = engine.sandboxer.gates["start"] = asyncio.Event()
    await engine.create()
    start = asyncio.ensure_future(engine.start())
    await until(lambda: engine.sandboxer.calls)
    (operation,) = json.loads((await engine.status(verbose=True)).info["info"])["operations"]
    assert (operation["action"], operation["error"]) == ("sandbox.start", "")
    assert [step for step, _ in operation["steps"]] == ["sandbox.starting"]
    gate.set()
    await start
    assert json.loads((await engine.status(verbose=True)).info["info"])["operations"] == []


async def test_metrics_have_the_bare_type_that_engines_compare(engine: Engine) -> None:
    await engine.run(linux=cri.LinuxPodSandboxConfig(cgroup_parent="/kube/x"))
    await engine.run("bare")
    answer = await engine.stub.Metrics(api.ControllerMetricsRequest(sandbox_id="pod"))
    assert answer.metrics.data.type_url == "io.containerd.cgroups.v2.Metrics"
    assert metrics_pb2.Metrics.FromString(answer.metrics.data.value).memory.usage == 42
    assert answer.metrics.id == "pod"
    answer = await engine.stub.Metrics(api.ControllerMetricsRequest(sandbox_id="bare"))
    assert answer.metrics.data.type_url == ""


async def test_updates_that_engines_send_are_taken_and_others_refused(engine: Engine) -> None:
    await engine.run()
    for fields in ([], ["extensions"], ["labels"]):
        await engine.stub.Update(api.ControllerUpdateRequest(sandbox_id="pod", fields=fields))
    request = api.ControllerUpdateRequest(sandbox_id="pod", fields=["runtime"])
    await refused(engine.stub.Update(request), grpc.StatusCode.INVALID_ARGUMENT, "'runtime'")


async def test_isulad_is_refused_where_another_engine_is_configured(engine: Engine, state_dir: Path) -> None:
    request = api.ControllerCreateRequest(sandbox_id="pod", netns_path="/run/netns/x")
    request.options.value = cri.PodSandboxConfig(hostname="a").SerializeToString()
    with log.capture() as lines:
        await refused(engine.stub.Create(request), grpc.StatusCode.FAILED_PRECONDITION, "'engine.kind'")
    assert [(line["event"], line["sandbox_id"]) for line in lines] == [("engine.unexpected", "pod")]
    assert list(state_dir.iterdir()) == []


@pytest.mark.parametrize("kind", EngineKind)
async def test_what_is_refused_is_in_the_log_where_the_engine_keeps_it_to_itself(
    daemon: Daemon, tmp_path: Path, kind: EngineKind
) -> None:
    path = str(tmp_path / "c.sock")
    controller = Controller(daemon.registry, engine=kind)
    server = await serve(controller, path)
    engine = Engine(daemon, controller, server, path)
    with log.capture() as lines:
        await refused(engine.create("a/b"), grpc.StatusCode.INVALID_ARGUMENT, "not allowed")
        await refused(engine.status("unknown"), grpc.StatusCode.NOT_FOUND)
    logged = [(line["event"], line["sandbox_id"], line["code"]) for line in lines]
    assert logged == ([("call.refused", "a/b", "INVALID_ARGUMENT")] if kind is EngineKind.ISULAD else [])
    await engine.channel.close(None)
    controller.close()
    await server.stop(grace=0)


def update_of_tasks(text: str) -> api.ControllerUpdateRequest:
    request = api.ControllerUpdateRequest(sandbox_id="pod", fields=["extensions.tasks"])
    request.sandbox.extensions["tasks"].type_url = "github.com/containerd/containerd/Tasks"
    request.sandbox.extensions["tasks"].value = text.encode()
    return request


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        ('{"tasks": []}', {}),
        ("{}", {}),
        ('{"tasks": [{"task_id": "a", "spec": {"new": 1}, "more": 2}]}', {"a": set()}),
        (
            '{"tasks": [{"task_id": "a", "processes": [{"exec_id": "x", "tty": 1}, {"exec_id": "y"}]},'
            ' {"task_id": "b", "processes": null}], "version": 7}',
            {"a": {"x", "y"}, "b": set()},
        ),
    ],
)
async def test_a_list_of_tasks_is_taken_whatever_else_it_says(
    engine: Engine, text: str, listed: dict[str, set[str]]
) -> None:
    await engine.run()
    await engine.stub.Update(update_of_tasks(text))
    assert engine.sandboxer.sandboxes["pod"].listed == listed


@pytest.mark.parametrize(
    "text", ["", "[", "[]", "7", '{"tasks": 7}', '{"tasks": ["a"]}', '{"tasks": [{}]}', "[" * 100_000]
)
async def test_a_list_of_tasks_that_is_none_is_refused(engine: Engine, text: str) -> None:
    await engine.run()
    await refused(
        engine.stub.Update(update_of_tasks(text)), grpc.StatusCode.INVALID_ARGUMENT, "the update of"
    )


async def test_an_update_of_tasks_without_any_is_refused(engine: Engine) -> None:
    await engine.run()
    request = api.ControllerUpdateRequest(sandbox_id="pod", fields=["extensions.tasks"])
    await refused(engine.stub.Update(request), grpc.StatusCode.INVALID_ARGUMENT, "no such extension")


# -- errors ----------------------------------------------------------------------------------------


async def test_what_is_unknown_is_not_found(engine: Engine) -> None:
    for call in (
        engine.start("x"),
        engine.stop("x"),
        engine.status("x"),
        engine.wait("x"),
        engine.stub.Metrics(api.ControllerMetricsRequest(sandbox_id="x")),
        engine.stub.Update(api.ControllerUpdateRequest(sandbox_id="x")),
    ):
        await refused(call, grpc.StatusCode.NOT_FOUND, "no sandbox 'x'")


async def test_malformed_ids_are_refused(engine: Engine, state_dir: Path) -> None:
    for sandbox_id in ("", "..", "../../x", "a/b", "x" * 77, "a\nb", "ä"):
        await refused(engine.create(sandbox_id), grpc.StatusCode.INVALID_ARGUMENT, "not allowed")
    assert list(state_dir.iterdir()) == []


async def test_a_duplicate_exists_already(engine: Engine) -> None:
    await engine.create()
    await refused(engine.create(), grpc.StatusCode.ALREADY_EXISTS, "pod")


async def test_a_second_start_is_refused_and_harms_nothing(engine: Engine) -> None:
    await engine.run()
    await refused(engine.start(), grpc.StatusCode.FAILED_PRECONDITION, "it is running")
    assert (await engine.status()).state == "SANDBOX_READY"


@pytest.mark.parametrize("code", [c for c in Code if c not in (Code.OK, Code.CANCELLED, Code.ABORTED)])
async def test_every_error_arrives_with_its_code(engine: Engine, code: Code) -> None:
    class Failure(SandboxdError):
        pass

    Failure.code = code
    await engine.create()
    engine.sandboxer.failures["start"] = Failure("what failed: ☃")
    await refused(engine.start(), grpc.StatusCode[code.name], "what failed: ☃")
    await refused(engine.status(), grpc.StatusCode.NOT_FOUND)


async def test_a_bug_is_internal_and_the_daemon_goes_on(engine: Engine) -> None:
    await engine.create()
    engine.sandboxer.failures["start"] = KeyError("oops")
    await refused(engine.start(), grpc.StatusCode.INTERNAL, "KeyError: 'oops'")
    engine.sandboxer.failures.clear()
    await engine.run("next")


async def test_a_caller_that_gives_up_its_start_leaves_no_pod(engine: Engine, state_dir: Path) -> None:
    await engine.create()
    engine.sandboxer.gates["start"] = asyncio.Event()
    request = api.ControllerStartRequest(sandbox_id="pod")
    await refused(engine.stub.Start(request, timeout=0.1), grpc.StatusCode.DEADLINE_EXCEEDED)
    async with asyncio.timeout(20):
        while list(state_dir.iterdir()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await refused(engine.status(), grpc.StatusCode.NOT_FOUND)


# -- sizes and numbers -----------------------------------------------------------------------------


async def test_a_request_may_have_16_mib(engine: Engine) -> None:
    filling = "x" * (MAX_MESSAGE_BYTES - 4096)
    await engine.create("big", annotations={"a": filling})
    assert (await engine.start("big")).version == 3


async def test_a_larger_one_is_refused_and_the_connection_lives(engine: Engine) -> None:
    big = Engine.__new__(Engine)
    big.channel = grpc.aio.insecure_channel(
        f"unix:{engine.socket_path}", options=[("grpc.max_send_message_length", -1)]
    )
    big.stub = api_grpc.ControllerStub(big.channel)
    call = big.create("big", annotations={"a": "x" * (MAX_MESSAGE_BYTES + 1)})
    await refused(call, grpc.StatusCode.RESOURCE_EXHAUSTED)
    await big.create("small")
    await big.channel.close(None)


async def test_a_thousand_parked_waits_delay_nothing(engine: Engine) -> None:
    await engine.run()
    waits = [engine.wait() for _ in range(1000)]
    async with asyncio.timeout(30):
        while engine.registry.parked_waits < 1000:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def expect_ready() -> None:
        assert (await engine.status()).state == "SANDBOX_READY"

    await async_expect_within(0.05, expect_ready, tries=20)
    await engine.stop()
    ends = await asyncio.gather(*waits)
    assert {(end.exit_status, end.exited_at.nanos) for end in ends} == {(0, ends[0].exited_at.nanos)}
    assert engine.registry.parked_waits == 0


async def test_a_wait_that_its_caller_cancelled_is_forgotten(engine: Engine) -> None:
    await engine.run()
    waits = [engine.wait() for _ in range(3)]
    async with asyncio.timeout(20):
        while engine.registry.parked_waits < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        waits[0].cancel()
        while engine.registry.parked_waits > 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await engine.stop()
    assert (await waits[1]).exit_status == (await waits[2]).exit_status == 0


async def test_a_pod_that_hangs_does_not_delay_status(engine: Engine) -> None:
    await engine.run()
    gate = engine.sandboxer.gates["stop"] = asyncio.Event()
    stop = asyncio.ensure_future(engine.stop())
    await asyncio.sleep(0.05)
    assert (await asyncio.wait_for(engine.status(), 20)).state == "SANDBOX_NOTREADY"
    gate.set()
    await stop


# -- the end of the daemon -------------------------------------------------------------------------


async def test_a_daemon_that_stops_answers_unavailable_and_its_pods_go_on(engine: Engine) -> None:
    await engine.run()
    waits = [engine.wait() for _ in range(20)]
    async with asyncio.timeout(20):
        while engine.registry.parked_waits < 20:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    engine.controller.close()
    for wait in waits:
        await refused(wait, grpc.StatusCode.UNAVAILABLE, "stopping")
    for call in (engine.wait(), engine.status(), engine.status("unknown"), engine.create("y"), engine.stop()):
        await refused(call, grpc.StatusCode.UNAVAILABLE, "stopping")
    assert engine.sandboxer.calls == [("start", "pod")]


async def test_the_socket_is_roots_and_replaces_a_stale_one(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    path.write_text("stale")
    server = await serve(Controller(daemon.registry), str(path))
    mode = path.stat().st_mode
    await server.stop(grace=0)
    assert stat.S_ISSOCK(mode)
    assert mode & 0o777 == 0o600


async def test_failures_of_the_edge_are_logged_with_their_method(engine: Engine) -> None:
    await engine.create()
    engine.sandboxer.failures["start"] = Internal("no")
    with log.capture() as lines:
        await refused(engine.start(), grpc.StatusCode.INTERNAL)
    failed = [line for line in lines if line["event"] == "call.failed"]
    assert [(line["method"], line["sandbox_id"]) for line in failed] == [("Start", "pod")]
