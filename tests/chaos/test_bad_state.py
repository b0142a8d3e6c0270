"""What the daemon finds is full, damaged, from the future or in use: it says so, and loses nothing."""

import asyncio
import json
import subprocess
from pathlib import Path

import grpc
import pytest

from common.ttrpc import StatusCode, StatusError
from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2 as api
from proto.gen.containerd.services.sandbox.v1 import sandbox_pb2_grpc as api_grpc
from proto.gen.containerd.task.v3 import shim_pb2 as task_api
from sandboxers.records import RECORD_FILE
from tests.chaos.trial import CALL_TIMEOUT_S, Trial
from tests.chaos.workload import Container, Pod
from tests.engine.cri import pod_config
from tests.engine.engine import OURS, PYTHON
from tests.engine.images import CHECKOUT
from tests.engine.namespaces import wait_until


def test_a_full_state_directory_is_an_error_that_names_the_file_and_passes(trial: Trial) -> None:
    engine = trial.engine
    engine.namespaces.run(["mkdir", "-m", "700", "-p", f"/{engine.ours.state_dir}"])
    engine.namespaces.run(
        ["mount", "-t", "tmpfs", "-o", "mode=700,size=4m", "tmpfs", f"/{engine.ours.state_dir}"]
    )
    trial.start()
    pod = Pod(trial)
    writer = pod.writer()
    filling = trial.state("filling")
    subprocess.run(["dd", "if=/dev/zero", f"of={filling}", "bs=4k"], check=False, capture_output=True)

    with pytest.raises(grpc.RpcError) as refusal:
        engine.cri.run_pod(pod_config("refused"), OURS)
    assert "No space left on device" in str(refusal.value.details()), refusal.value
    assert str(engine.ours.state_dir) in str(refusal.value.details())
    trial.restart()
    assert pod.is_ready
    filling.unlink()

    pod.expect_exec(writer, 12)
    another = Pod(trial)
    another.remove()
    pod.end_writer(writer)
    pod.remove()
    assert trial.lost_connections() == []
    assert [path.name for path in trial.state().iterdir() if not path.name.startswith(".")] == []


@pytest.mark.parametrize("damage", ["cut short", "from the future"])
def test_a_pod_whose_record_cannot_be_understood_is_left_alone_until_it_can(
    trial: Trial, damage: str
) -> None:
    trial.start()
    victim, neighbour = Pod(trial), Pod(trial)
    writer, other = victim.writer(), neighbour.writer()
    record = trial.state(victim.id, RECORD_FILE)
    good = record.read_bytes()
    trial.hold()
    trial.engine.kill_daemon()
    newer = json.dumps({**json.loads(good), "version": 1000}).encode()
    bad = good[: len(good) // 2] if damage == "cut short" else newer
    record.write_bytes(bad)
    trial.release()
    trial.engine.wait_for_daemon()

    neighbour.expect_exec(other, 13)
    assert record.read_bytes() == bad
    log = (trial.engine.logs / "sandboxer.log").read_text()
    assert str(record.relative_to(trial.engine.namespaces.root)) in log
    size = writer.log.stat().st_size
    wait_until(lambda: writer.log.stat().st_size > size, timeout_s=20, what="more lines")
    # Something to be tried again: "not found" would make the engine forget it.
    address = f"unix:{trial.engine.sandboxer_socket}"
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refusal:
        request = api.ControllerShutdownRequest(sandbox_id=victim.id)
        api_grpc.ControllerStub(channel).Shutdown(request, timeout=10)
    assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    assert RECORD_FILE in str(refusal.value.details())

    # Neither silence on the connection that was kept, nor on another one.
    with pytest.raises(grpc.RpcError) as refusal:
        trial.engine.cri.exec(writer.id, ["true"])
    assert RECORD_FILE in str(refusal.value.details())
    assert asyncio.run(state_refusal(trial, victim, writer)) == StatusCode.UNAVAILABLE

    trial.hold()
    trial.engine.kill_daemon()
    record.write_bytes(good)
    trial.release()
    trial.engine.wait_for_daemon()
    for pod, container in ((victim, writer), (neighbour, other)):
        pod.end_writer(container)
        pod.remove()
    assert trial.lost_connections() == []


async def state_refusal(trial: Trial, pod: Pod, container: Container) -> int:
    async with await trial.task_client(pod.id) as client:
        request = task_api.StateRequest(id=container.id)
        with pytest.raises(StatusError) as refusal:
            await client.call(
                "containerd.task.v3.Task", "State", request, task_api.StateResponse, CALL_TIMEOUT_S
            )
        return int(refusal.value.code)


def test_a_second_daemon_names_the_first_and_disturbs_nobody(trial: Trial) -> None:
    trial.start()
    pod = Pod(trial)
    writer = pod.writer()
    owner = trial.state(".lock").read_text().strip()
    config = str(CHECKOUT / "configs/runc.yaml")
    for arguments in (["--config", config], ["--supervise", "--config", config]):
        second = trial.engine.namespaces.run(
            [str(PYTHON), "-m", "sandboxers", *arguments],
            check=False,
            env={"PYTHONPATH": str(CHECKOUT), "PATH": "/usr/bin:/bin"},
            timeout=20,
        )
        assert second.returncode == 1
        assert f"pid {owner}" in second.stderr + second.stdout
    trial.restart()
    pod.expect_exec(writer, 14)
    pod.end_writer(writer)
    pod.remove()
    assert trial.lost_connections() == []


def test_sockets_that_a_dead_daemon_has_left_are_no_obstacle(trial: Trial) -> None:
    trial.start()
    trial.engine.kill_sandboxer()
    assert (trial.engine.namespaces.root / "run/sandboxd/runc.sock").is_socket()
    stray = Path(trial.state("stray"))
    stray.mkdir(0o700)
    trial.start()
    Pod(trial).remove()
